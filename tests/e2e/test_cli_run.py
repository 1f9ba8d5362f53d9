"""``hako run`` through the real command, each container in a real VM."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from conftest import Roots, RunHako
from support import leaks
from support.children import started
from support.terminals import OnTerminal

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]


@pytest.fixture(autouse=True)
def nothing_left(roots: Roots) -> object:
    """Each test ends without a process, mount or file of a sandbox."""
    yield
    assert leaks.wait_gone(roots.base, 10) == {}
    assert leaks.mounts(roots.base) == []
    assert leaks.files(roots.state) == []
    assert leaks.files(os.path.join(roots.data, "sandboxes")) == []


def test_each_container_has_a_kernel_of_its_own(run_hako: RunHako) -> None:
    script = "uname -r; cat /proc/sys/kernel/random/boot_id"
    first, second = (run_hako("run", "--rm", "busybox", "sh", "-c", script).stdout.split() for _ in range(2))
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        host = file.read().strip()
    assert len({first[1], second[1], host}) == 3
    assert first[0] == second[0]
    assert first[0] != os.uname().release


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["no-such-program"], 127, "hako: executable file `no-such-program` not found"),
        (["/etc/passwd"], 126, "hako: open executable: Permission denied"),
    ],
)
def test_exit_codes(run_hako: RunHako, command: list[str], status: int, said: str) -> None:
    done = run_hako("run", "--rm", "busybox", *command, check=False)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == (1 if said else 0)


def test_what_could_not_be_started_is_not_kept(run_hako: RunHako) -> None:
    assert run_hako("run", "--name", "never", "busybox", "no-such-program", check=False).returncode == 127
    assert run_hako("run", "-d", "--name", "never", "busybox", "no-such-program", check=False).returncode == 127
    assert run_hako("ps", "-a", "-q").stdout == ""


_SCRIPT = """
echo "A=$A B=$B F=$F"
pwd
id -u; id -g
hostname
cat /sys/fs/cgroup/memory.max
cat /sys/fs/cgroup/cpu.max
grep -c ^processor /proc/cpuinfo
awk '/MemTotal/ { print $2 }' /proc/meminfo
touch /file 2>&1
grep -c ' /scratch tmpfs ' /proc/mounts
touch /scratch/file && echo scratch-ok
cat /data/in; echo out > /data/out && echo data-ok
cat /ro/in; echo out 2>/dev/null > /ro/out2 || echo ro-ok
cat /single
cat /sys/class/net/*/operstate
"""


def test_options_are_seen_inside(run_hako: RunHako, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    (tmp_path / "env").write_text("F=file\nB=file\n")
    os.chmod(tmp_path, 0o777)
    done = run_hako(
        "run", "--rm", "-e", "A=1", "-e", "B=two words", "--env-file", f"{tmp_path}/env", "-w", "/tmp", "-u", "hako",
        "--hostname", "box", "--memory", "96m", "--cpus", "1.5", "--read-only", "--tmpfs", "/scratch:mode=1777",
        "-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/ro:ro", "-v", f"{tmp_path}/in:/single:ro",
        "--network", "none", "busybox", "sh", "-c", _SCRIPT,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:4] == ["A=1 B=two words F=file", "/tmp", "1000", "1000"]
    assert lines[4:8] == ["box", str(96 << 20), "150000 100000", "2"]
    # The container has its limit; the VM is no smaller than those that are made without one.
    assert 400 << 10 < int(lines[8]) < 512 << 10
    assert lines[9:] == [
        "touch: /file: Read-only file system",
        "1",
        "scratch-ok",
        "from the host",
        "data-ok",
        "from the host",
        "ro-ok",
        "from the host",
        "down",  # eth0
        "unknown",  # lo, which is always called so when it is up
    ]
    assert (tmp_path / "out").read_text() == "out\n"
    assert not (tmp_path / "out2").exists()


def test_entrypoint_and_an_empty_standard_input(run_hako: RunHako) -> None:
    done = run_hako("run", "--rm", "--entrypoint", "cat", "busybox", "/etc/hosts", "-", input="not passed on")
    assert done.stdout == "127.0.0.1\tlocalhost\n"


def test_large_binary_data_passes_through_unchanged(hako_cmd: list[str], tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    total = hashlib.sha256()
    with open(tmp_path / "data", "wb") as file:
        for number in range(200):
            piece = number.to_bytes(4, "big") + block[4:]
            total.update(piece)
            file.write(piece)
    received = hashlib.sha256()
    with open(tmp_path / "data", "rb") as stdin:
        argv = [*hako_cmd, "run", "--rm", "-i", "busybox", "cat"]
        with started(argv, stdin=stdin) as child:
            while piece := child.output.read(1 << 20):
                received.update(piece)
            assert child.wait(60) == 0
    assert received.digest() == total.digest()


def test_output_goes_on_while_nobody_reads_and_streams_stay_apart(hako_cmd: list[str]) -> None:
    script = "cat /bin/busybox; cat /bin/busybox >&2"
    done = subprocess.run(
        [*hako_cmd, "run", "--rm", "busybox", "sh", "-c", script], capture_output=True, timeout=100, check=True
    )
    assert done.stdout == done.stderr
    assert done.stdout[:4] == b"\x7fELF"
    assert len(done.stdout) > 1_000_000


def test_standard_streams_may_be_closed(hako_cmd: list[str]) -> None:
    def run(redirections: str) -> subprocess.CompletedProcess[str]:
        argv = ["sh", "-c", f'exec "$@" {redirections}', "sh", *hako_cmd, "run", "--rm", "-i", "busybox"]
        script = "cat; echo out; echo err >&2; exit 3"
        return subprocess.run([*argv, "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)

    done = run("<&-")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    done = run("<&- >&-")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "err\n")
    done = run("<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_a_reader_that_leaves_ends_the_container(hako_cmd: list[str]) -> None:
    with started([*hako_cmd, "run", "--rm", "busybox", "yes"]) as child:
        assert child.output.read(4) == b"y\ny\n"
        child.output.close()
        assert child.wait(60) in (0, 1, 141)  # yes says that it cannot write, or dies of SIGPIPE


def test_a_terminal(hako_cmd: list[str]) -> None:
    with OnTerminal([*hako_cmd, "run", "-it", "--rm", "busybox", "sh"], rows=31, columns=101) as terminal:
        terminal.expect("# ")
        assert terminal.is_raw()
        terminal.type("stty size; echo $TERM\r")
        terminal.expect("31 101\r\n")
        terminal.resize(40, 120)
        terminal.type("until [ \"$(stty size)\" = '40 120' ]; do :; done; echo res''ized\r")
        terminal.expect("resized")
        # The shell that says it is what the interrupt ends, whether it has become sleep yet or not.
        terminal.type("sh -c \"echo slee''ping; exec sleep 1000\"\r")
        terminal.expect("sleeping")
        terminal.type("\x03")
        terminal.expect("# ")
        terminal.type("echo status=$?\r")
        terminal.expect("status=130")
        terminal.type("exit 5\r")
        assert terminal.wait() == 5
        assert not terminal.is_raw()


def test_a_terminal_comes_back_when_the_client_is_told_to_end(hako_cmd: list[str]) -> None:
    with OnTerminal([*hako_cmd, "run", "-it", "--rm", "busybox", "sh"]) as terminal:
        terminal.expect("# ")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.wait() == 143
        assert not terminal.is_raw()


def test_a_terminal_can_be_left_and_joined_again(hako_cmd: list[str], run_hako: RunHako) -> None:
    with OnTerminal([*hako_cmd, "run", "-it", "--name", "left", "busybox", "sh"]) as terminal:
        terminal.expect("# ")
        terminal.type("cd /tmp; echo read''y\r")
        terminal.expect("ready")
        terminal.type("\x10\x11")
        assert terminal.wait() == 0
        assert not terminal.is_raw()
    assert "Up" in run_hako("ps").stdout
    with OnTerminal([*hako_cmd, "attach", "left"], rows=20, columns=70) as terminal:
        terminal.type("pwd; stty size\r")
        terminal.expect("/tmp\r\n20 70")
        terminal.type("exit 3\r")
        assert terminal.wait() == 3
    run_hako("rm", "left")


_TRAP = "trap 'echo caught; exit 9' {}; echo ready; while :; do sleep 0.1; done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_container(hako_cmd: list[str], number: signal.Signals) -> None:
    script = _TRAP.format(number.name.removeprefix("SIG"))
    argv = [*hako_cmd, "run", "--rm", "busybox", "sh", "-c", script]
    with started(argv) as child:
        assert child.output.readline() == b"ready\n"
        child.send_signal(number)
        assert child.output.read() == b"caught\n"
        assert child.wait(60) == 9


def test_three_interrupts_end_a_container_that_ignores_them(hako_cmd: list[str]) -> None:
    argv = [*hako_cmd, "run", "--rm", "busybox", "sh", "-c", "trap '' INT; echo ready; sleep 1000"]
    with started(argv) as child:
        assert child.output.readline() == b"ready\n"
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):  # and signals that come at once would count as one
                child.wait(0.3)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 137


def test_an_interrupt_while_the_vm_boots_gives_up(hako_cmd: list[str], roots: Roots) -> None:
    with started([*hako_cmd, "run", "busybox", "true"], stderr=subprocess.PIPE) as child:
        while not leaks.files(os.path.join(roots.state, "sandboxes")):
            pass
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.complaints.read() == b""
