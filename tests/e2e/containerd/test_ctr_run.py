"""``ctr run`` with runc and with hako: what a container sees, and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.children import started
from support.containerd import USER_IMAGE
from support.ctr import Ctr, resize
from support.engines import differs

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HOST_NETWORK = differs(
    "`ctr run --net-host`",
    runc="the host's network",
    hako="refused",
    why="a VM cannot be in the host's network namespace",
)


def boot_id() -> str:
    """What tells this boot of the host's kernel from all others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def test_kernel(ctr: Ctr) -> None:
    assert (ctr.shell("cat /proc/sys/kernel/random/boot_id").strip() != boot_id()) is ctr.hako


def test_environment(ctr: Ctr) -> None:
    script = 'echo $A-$B; pwd; id -u; id -g; echo "$@"; echo err >&2; exit 3'
    options = ("--env", "A=1", "--env", "B=two words", "--cwd", "/var/tmp")
    done = ctr.run("sh", "-c", script, "sh", "one", "two", options=options, image=USER_IMAGE, check=False)
    assert (done.status, done.stderr) == (3, "err\n")
    assert done.stdout.splitlines() == ["1-two words", "/var/tmp", "1000", "1000", "one two"]


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("kill -KILL $$", 137)])
def test_exit_codes(ctr: Ctr, command: str, status: int) -> None:
    # Signals reach process 1 only if it handles them; what it starts they end.
    assert ctr.run("sh", "-c", f"sh -c '{command}'; exit $?", check=False).status == status


def test_commands_that_cannot_be_run(ctr: Ctr) -> None:
    missing = ctr.run("no-such-program", check=False)
    assert missing.status != 0
    assert '"no-such-program": executable file not found in $PATH' in missing.stderr
    forbidden = ctr.run("/etc/passwd", name="other", check=False)
    assert forbidden.status != 0
    assert "permission denied" in forbidden.stderr.lower()
    assert ctr.tasks() == {}
    # The name can be used again at once.
    assert ctr.shell("echo fine") == "fine\n"


def test_mounts(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    script = "cat /data/in; echo out >/data/out; cat /ro/in; echo x >/ro/x; touch /x; true"
    mounts = [
        f"type=bind,src={tmp_path},dst=/{name},options=rbind:{way}" for name, way in (("data", "rw"), ("ro", "ro"))
    ]
    options = ("--read-only", *(word for mount in mounts for word in ("--mount", mount)))
    done = ctr.run("sh", "-c", script, options=options)
    assert done.stdout == "from the host\n" * 2
    assert "/ro/x: Read-only file system" in done.stderr
    assert "/x: Read-only file system" in done.stderr
    assert (tmp_path / "out").read_text() == "out\n"


_LIMITS = """
cgroup() { cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2; }
cgroup memory/memory.limit_in_bytes memory.max
cgroup cpu/cpu.cfs_quota_us cpu.max | cut -d' ' -f1
grep -E '^(CapEff|NoNewPrivs):' /proc/self/status | tr -d '\\t'
"""


def test_limits(ctr: Ctr) -> None:
    options = ("--memory-limit", str(64 << 20), "--cpu-quota", "50000", "--cpu-period", "100000")
    shown = ("--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro:nosuid:noexec:nodev")
    said = ctr.run("sh", "-c", _LIMITS, options=(*options, *shown)).stdout
    assert said.splitlines() == [str(64 << 20), "50000", "CapEff:00000000a80425fb", "NoNewPrivs:1"]


def test_root_directory_without_a_snapshot(ctr: Ctr) -> None:
    options = ("--rootfs", "--read-only", "--env", "PATH=/bin")
    done = ctr.run("sh", "-c", "head -n 1 /etc/group; touch /x", options=options, image=ctr.root, check=False)
    assert (done.status, done.stdout) == (1, "root:x:0:\n")
    assert "Read-only file system" in done.stderr


def test_specification_from_a_file(ctr: Ctr, tmp_path: Path) -> None:
    process = {"args": ["sh", "-c", "hostname; id -u"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 7, "gid": 7}}
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
    ]
    specification = {
        "ociVersion": "1.0.2", "process": process, "root": {"path": ctr.root, "readonly": True}, "hostname": "filed",
        "mounts": mounts, "linux": {"namespaces": namespaces, "cgroupsPath": f"/{ctr.containerd.namespace}/filed"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(specification))
    done = ctr("run", "--rm", "--runtime", ctr.type, "--config", f"{tmp_path}/config.json", "filed")
    assert done.stdout == "filed\n7\n"


def test_the_hosts_network(ctr: Ctr) -> None:
    done = ctr.run("ls", "/sys/class/net", options=("--net-host",), check=False)
    if ctr.either(HOST_NETWORK, runc=True, hako=False):
        assert (done.status, "lo" in done.stdout.split()) == (0, True)
    else:
        assert done.status != 0
        assert "the container is to use the host's network" in done.stderr


def test_standard_input(ctr: Ctr) -> None:
    argv = ctr.containerd.argv(
        "run", "--rm", *ctr.made("reader", "sh", "-c", "read -r first; echo $first; cat; echo end")
    )
    with started(argv, env=ctr.containerd.machine.environment, stdin=subprocess.PIPE) as client:
        # ctr forgets the end of an input that is there before the task is.
        client.input.write(b"one\ntwo\n")
        client.input.flush()
        assert client.output.readline() == b"one\n"
        assert client.output.readline() == b"two\n"
        client.input.write(b"three")
        client.input.close()
        assert client.output.read() == b"threeend\n"
        assert client.wait(60) == 0


def test_large_binary_streams(ctr: Ctr) -> None:
    data = os.urandom(4 << 20)
    done = subprocess.run(
        ctr.containerd.argv("run", "--rm", *ctr.made("large", "sh", "-c", "tee /dev/stderr")),
        env=ctr.containerd.machine.environment, input=data, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stderr).digest() == hashlib.sha256(data).digest()


def test_a_terminal(ctr: Ctr) -> None:
    with ctr.on_terminal("run", "--tty", "--rm", *ctr.made("seat", "sh")) as terminal:
        terminal.expect("# ")
        # ctr tells the size of the terminal once the process runs.
        terminal.type("until [ \"$(stty size)\" = '24 80' ]; do :; done; echo si''zed; tty\r")
        terminal.expect("sized\r")
        terminal.expect("/dev/pts/0\r")
        resize(terminal)
        terminal.type("sh -c \"echo slee''ping; exec sleep 1000\"\r")
        terminal.expect("sleeping")
        terminal.type("\x03")
        terminal.expect("# ")
        terminal.type("exit 5\r")
        assert terminal.wait() == 5


def test_many_at_once(ctr: Ctr) -> None:
    count = 6

    def one(number: int) -> str:
        return ctr.run("sh", "-c", f"echo {number}", name=f"many{number}").stdout

    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(one, range(count))) == [f"{number}\n" for number in range(count)]


def test_names_are_unique(ctr: Ctr) -> None:
    ctr.start("taken", "sleep", "1000")
    done = ctr.run("true", name="taken", check=False)
    assert done.status != 0
    assert "already exists" in done.stderr
    assert ctr.status("taken") == "RUNNING"
