"""``docker run`` and ``podman run`` with runc and with hako: what a container sees, and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from support import blockfiles
from support.children import started
from support.engines import IMAGE, Box, Engine, differs
from support.terminals import OnTerminal

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KERNEL = differs(
    "kernel (`uname -r`, `/proc/sys/kernel/random/boot_id`)",
    runc="the host's",
    hako="one of its own for each container or pod",
    why="every container or pod has its own VM",
)

CPUS = differs(
    "numbers of processors (`--cpuset-cpus`, `Cpus_allowed_list`)",
    runc="the host's",
    hako="those of the VM, which has as many as the set",
    why="a VM has processors of its own; the set is where the host runs them",
)


def boot_id() -> str:
    """What tells this boot of the host's kernel from all others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def test_kernel(box: Box) -> None:
    first, second = (box.shell("cat /proc/sys/kernel/random/boot_id") for _ in range(2))
    assert len({first, second, boot_id()}) == box.either(KERNEL, runc=1, hako=3)


# Cgroups are of version 1 or 2, whichever kernel it is.
_LIMITS = """
cgroup() { cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2; }
cgroup memory/memory.limit_in_bytes memory.max
cgroup cpu/cpu.cfs_quota_us cpu.max | cut -d' ' -f1
cgroup pids/pids.max pids.max
ulimit -n
nproc
grep -E '^(Cpus_allowed_list|CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'
cat /proc/sys/net/core/somaxconn
stat -c '%F %t %T' /dev/xnull; echo lost >/dev/xnull
df -k /dev/shm | awk 'END { print $2 }'
grep -c ' /scratch tmpfs .*size=1024k' /proc/mounts; stat -c %a /scratch
mkdir /tmp/x 2>&1
touch /x 2>&1
true
"""


def test_the_default_runtime(docker: Engine) -> None:
    done = docker.run("run", "--rm", IMAGE, "uname", "-r", runtime="")
    assert done.stdout.strip() not in ("", os.uname().release)


def test_limits_and_privileges(box: Box, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    }
    (tmp_path / "seccomp.json").write_text(json.dumps(profile))
    said = box.shell(
        "--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--cpuset-cpus", "1", "--pids-limit", "40",
        "--ulimit", "nofile=300:400", "--ulimit", "nproc=900:900", "--cap-drop", "all", "--cap-add", "net_raw",
        "--security-opt", "no-new-privileges", "--security-opt", f"seccomp={tmp_path}/seccomp.json",
        "--sysctl", "net.core.somaxconn=123", "--device", "/dev/null:/dev/xnull", "--shm-size", "8m",
        "--tmpfs", "/scratch:size=1m,mode=1777", "--read-only", _LIMITS,
    )  # fmt: skip
    assert said.splitlines() == [
        str(64 << 20), "50000", "40", "300", "1", "CapEff:0000000000002000", "NoNewPrivs:1", "Seccomp:2",
        f"Cpus_allowed_list:{box.either(CPUS, runc=1, hako=0)}", "123", "character special file 1 3",
        "8192", "1", "1777",
        "mkdir: can't create directory '/tmp/x': Operation not permitted",
        "touch: /x: Read-only file system",
    ]  # fmt: skip


def test_user_directory_variables_and_names(box: Box) -> None:
    script = """
        id -u; id -g; pwd; echo $A-$B; hostname; echo $(cat /etc/hostname)
        grep other /etc/hosts; cat /etc/resolv.conf
    """
    said = box.shell(
        "-u", "1000:100", "-w", "/var/tmp", "-e", "A=1", "-e", "B=two words", "--hostname", "inner",
        "--add-host", "other:10.9.8.7", "--dns", "10.1.1.1", "--dns-search", "example.org", script,
    ).splitlines()  # fmt: skip
    assert said[:6] == ["1000", "100", "/var/tmp", "1-two words", "inner", "inner"]
    assert said[6].split() == ["10.9.8.7", "other"]
    assert set(said[7:]) == {"nameserver 10.1.1.1", "search example.org"}


def test_volumes(box: Box, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    tmp_path.chmod(0o777)
    box("volume", "create", "shelf")
    script = """
        cat /data/in; echo out >/data/out; chown 1000:100 /data/out; cat /ro/in; echo x >/ro/x
        cat /single; echo changed >/single; echo kept >/shelf/file
    """
    done = box(
        "run", "--rm", "-v", f"{tmp_path}:/data:z", "-v", f"{tmp_path}:/ro:ro", "-v", f"{tmp_path}/in:/single",
        "-v", "shelf:/shelf", IMAGE, "sh", "-c", script,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["from the host"] * 3
    assert "/ro/x: Read-only file system" in done.stderr
    assert (tmp_path / "out").read_text() == "out\n"
    assert (tmp_path / "out").stat()[4:6] == (1000, 100)
    assert (tmp_path / "in").read_text() == "changed\n"
    assert box.shell("-v", "shelf:/again", "cat /again/file") == "kept"


_ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect("/run/host.sock")
    s.sendall(b"question")
    s.shutdown(socket.SHUT_WR)
    print(s.makefile().read())
"""


def test_a_socket_of_the_host_as_a_volume(box: Box, tmp_path: Path) -> None:
    """As docker's own socket is given to containers."""

    def answer() -> None:
        for _ in range(2):
            connected, _ = listener.accept()
            with connected, connected.makefile("rb") as incoming:
                uid, gid = struct.unpack("3I", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1:]
                connected.sendall(incoming.read()[::-1] + f" {uid} {gid}".encode())

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0o666)
        listener.listen()
        listener.settimeout(100)
        answering = threading.Thread(target=answer)
        answering.start()
        volumes = [word for path in ("/usr", "/lib", "/lib64") for word in ("-v", f"{path}:{path}:ro")]
        volumes += ["-v", f"{tmp_path}/s:/run/host.sock"]
        for user in ("0:0", "1000:1001"):
            told = box.output("run", "--rm", "-u", user, *volumes, IMAGE, "/usr/bin/python3", "-IS", "-c", _ASK)
            assert told == f"noitseuq {user.replace(':', ' ')}"
        answering.join()


def test_init(box: Box) -> None:
    script = "cat /proc/1/comm; exit 6"
    done = box("run", "--rm", "--init", IMAGE, "sh", "-c", script, check=False)
    assert done.stdout.splitlines()[0] in ("docker-init", "podman-init")
    assert done.status == 6


def test_privileged(box: Box) -> None:
    if box.docker and box.runtime == "runc" and not _has_all_capabilities():
        pytest.skip("this machine's root lacks capabilities that docker has runc set")
    script = "grep CapEff /proc/self/status; mount -t tmpfs none /mnt && echo mounted"
    capabilities, mounted = box.shell("--privileged", script).splitlines()
    assert int(capabilities.split()[1], 16) & 1 << 21
    assert mounted == "mounted"


def _has_all_capabilities() -> bool:
    with open("/proc/self/status", encoding="ascii") as status, open("/proc/sys/kernel/cap_last_cap") as last:
        (bounding,) = (line.split()[1] for line in status if line.startswith("CapBnd"))
        return int(bounding, 16) == (1 << int(last.read()) + 1) - 1


@pytest.mark.parametrize(
    ("command", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_exit_codes(box: Box, command: str, status: int) -> None:
    # Signals reach process 1 only if it handles them; what it starts they end.
    assert box("run", "--rm", IMAGE, "sh", "-c", f"sh -c '{command}'; exit $?", check=False).status == status


def test_commands_that_cannot_be_run(box: Box) -> None:
    missing = box("run", "--rm", IMAGE, "no-such-program", check=False)
    assert missing.status == 127
    assert '"no-such-program": executable file not found in $PATH' in missing.stderr
    forbidden = box("run", "--rm", IMAGE, "/etc/passwd", check=False)
    assert forbidden.status == 126
    assert "permission denied" in forbidden.stderr.lower()
    assert box("run", "--rm", "-w", "/etc/passwd", IMAGE, "true", check=False).status in (125, 126)
    assert box.output("ps", "-aq") == ""


def test_large_binary_streams(box: Box) -> None:
    data = os.urandom(8 << 20)
    done = subprocess.run(
        box.argv("run", "-i", "--rm", IMAGE, "sh", "-c", "tee /dev/stderr"),
        env=box.engine.machine.environment, input=data, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stderr).digest() == hashlib.sha256(data).digest()


def test_a_terminal(box: Box) -> None:
    argv = box.argv("run", "-it", "--rm", "--name", "seat", IMAGE, "sh")
    with OnTerminal(["/usr/bin/env", *argv], rows=31, columns=101) as terminal:
        terminal.expect("# ")
        terminal.type("until [ \"$(stty size)\" = '31 101' ]; do :; done; echo si''zed; tty\r")
        terminal.expect("sized\r\n/dev/pts/0")
        terminal.resize(40, 120)
        terminal.type("until [ \"$(stty size)\" = '40 120' ]; do :; done; echo res''ized\r")
        terminal.expect("resized")
        terminal.type("sh -c \"echo slee''ping; exec sleep 1000\"\r")
        terminal.expect("sleeping")
        terminal.type("\x03")
        terminal.expect("# ")
        terminal.type("exit 5\r")
        assert terminal.wait() == 5


def test_leaving_a_terminal_and_coming_back(box: Box) -> None:
    # One key, because podman does not know two that arrive at once.
    argv = box.argv("run", "-it", "--detach-keys", "ctrl-x", "--name", "seat", IMAGE, "sh")
    with OnTerminal(["/usr/bin/env", *argv]) as terminal:
        terminal.expect("# ")
        terminal.type("cd /tmp; echo read''y\r")
        terminal.expect("ready")
        terminal.type("\x18")
        assert terminal.wait() == 0
    assert box.state("seat")["Status"] == "running"
    with OnTerminal(["/usr/bin/env", *box.argv("attach", "seat")], rows=20, columns=70) as terminal:
        terminal.type("pwd\r")
        terminal.expect("/tmp\r\n")
        terminal.type("exit 3\r")
        assert terminal.wait() == (3 if box.docker else 0)
    assert box.until_state("seat", "exited")["ExitCode"] == 3


def test_attaching_to_pipes(box: Box) -> None:
    box.start("reader", "-i", IMAGE, "sh", "-c", "read -r line; echo got $line; echo bad >&2; read -r line; exit 4")
    argv = box.argv("attach", "reader")
    # An input that ended would end the client, and not the container.
    with started(argv, env=box.engine.machine.environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        client.input.write(b"one\n")
        client.input.flush()
        assert client.output.readline() == b"got one\n"
        assert client.complaints.readline() == b"bad\n"
        client.input.write(b"two\n")
        client.input.flush()
        assert client.wait(60) == (4 if box.docker else 0)
    assert box.until_state("reader", "exited")["ExitCode"] == 4


def test_a_block_device(box: Box, tmp_path: Path) -> None:
    image = tmp_path / "raw"
    image.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    with blockfiles.loop(image) as host:
        script = "head -c 13 /dev/xvda; printf back | dd of=/dev/xvda bs=512 seek=1 conv=sync 2>/dev/null"
        assert box.output("run", "--rm", "--device", f"{host}:/dev/xvda", IMAGE, "sh", "-c", script) == "from the host"
        with open(host, "rb") as file:
            file.seek(512)
            assert file.read(4) == b"back"
        script = "head -c 13 /dev/xvda; (echo x >/dev/xvda) 2>/dev/null || echo ' refused'"
        said = box.output("run", "--rm", "--device", f"{host}:/dev/xvda:r", IMAGE, "sh", "-c", script)
        assert said == "from the host refused"
