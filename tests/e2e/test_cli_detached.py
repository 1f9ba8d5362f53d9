"""A container in the background and every verb that works on one, through the real command."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import RunHako
from support.children import started
from support.terminals import OnTerminal

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_SCRIPT = """
echo to-stdout; echo to-stderr >&2; printf 'no line feed'
trap 'echo stopping; exit 4' TERM
exec 3<&0
while read -r line <&3; do echo "got $line"; done &
while :; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the host that the container has at /volume and, read-only, at /readonly."""
    return tmp_path_factory.mktemp("volume")


@pytest.fixture(scope="module")
def box(run_hako: RunHako, guest_image: object, busybox_image: object, volume: Path) -> Iterator[str]:
    """The id of a container called ``box`` that runs while the tests of this module do."""
    done = run_hako(
        "run", "-d", "-i", "--name", "box", "-e", "FROM_RUN=yes", "-v", f"{volume}:/volume", "-v",
        f"{volume}:/readonly:ro", "--tmpfs", "/scratch", "busybox", "sh", "-c", _SCRIPT,
    )  # fmt: skip
    container = done.stdout.strip()
    yield container
    run_hako("rm", "-f", "box", check=False)


def test_the_id_is_printed_and_ps_shows_it(box: str, run_hako: RunHako) -> None:
    assert re.fullmatch("[0-9a-f]{16}", box)
    line = run_hako("ps").stdout.splitlines()[1]
    assert line.startswith(box[:12])
    assert line.endswith(" box")
    assert " Up " in line
    assert run_hako("ps", "-q", "--no-trunc").stdout.split() == [box]


@pytest.mark.parametrize("ref", ["box", "{id}", "{prefix}"])
def test_exec_finds_it_by_every_name(box: str, run_hako: RunHako, ref: str) -> None:
    name = ref.format(id=box, prefix=box[:6])
    assert run_hako("exec", name, "echo", "-n", "here").stdout == "here"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 9"], 9, ""),
        (["no-such-program"], 127, "hako: executable file `no-such-program` not found"),
        (["/etc/passwd"], 126, "hako: "),
    ],
)
def test_exit_codes_of_exec(box: str, run_hako: RunHako, command: list[str], status: int, said: str) -> None:
    done = run_hako("exec", "box", *command, check=False)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == (1 if said else 0)


def test_exec_has_the_containers_settings_and_its_own(box: str, run_hako: RunHako) -> None:
    script = "echo $FROM_RUN $OWN; pwd; id -un; hostname"
    done = run_hako("exec", "-e", "OWN=1", "-w", "/tmp", "-u", "hako", "box", "sh", "-c", script)
    assert done.stdout.split() == ["yes", "1", "/tmp", "hako", box[:12]]


def test_exec_passes_input_only_when_asked(box: str, run_hako: RunHako) -> None:
    assert run_hako("exec", "-i", "box", "cat", input="words").stdout == "words"
    assert run_hako("exec", "box", "cat", input="words").stdout == ""


def test_exec_in_the_background(box: str, run_hako: RunHako, volume: Path) -> None:
    run_hako("exec", "-d", "box", "sh", "-c", "echo done > /volume/background")
    script = "until [ -s /volume/background ]; do sleep 0.05; done"
    run_hako("exec", "box", "sh", "-c", script, timeout=30)
    assert (volume / "background").read_text() == "done\n"


def test_exec_with_a_terminal(box: str, hako_cmd: list[str]) -> None:
    with OnTerminal([*hako_cmd, "exec", "-it", "box", "sh"], rows=30, columns=90) as terminal:
        terminal.expect("# ")
        terminal.type("stty size; tty\r")
        terminal.expect("30 90\r\n/dev/pts/")
        terminal.type("exit 6\r")
        assert terminal.wait() == 6


def test_a_large_input_is_not_held_in_memory(box: str, hako_cmd: list[str], run_hako: RunHako, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    expected = hashlib.sha256(block * 200).hexdigest()
    with open(tmp_path / "data", "wb") as file:
        for _ in range(200):
            file.write(block)
    with open(tmp_path / "data", "rb") as stdin:
        argv = [*hako_cmd, "exec", "-i", "box", "sha256sum"]
        done = subprocess.run(argv, stdin=stdin, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.split()[0] == expected
    pid = json.loads(run_hako("inspect", "box").stdout)[0]["sandbox"]["pid"]
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    assert peak < 80 << 10


def test_logs_keep_streams_and_bytes(box: str, run_hako: RunHako) -> None:
    done = run_hako("logs", "box")
    assert done.stdout.startswith("to-stdout\nno line feed")
    assert done.stderr == "to-stderr\n"
    lines = run_hako("logs", "-t", "box").stdout.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z to-stdout", lines[0])
    assert run_hako("logs", "--tail", "0", "box").stdout == ""
    assert run_hako("logs", "--since", "2100-01-01", "box").stdout == ""


def test_attach_feeds_it_and_logs_follow(box: str, hako_cmd: list[str]) -> None:
    with started([*hako_cmd, "logs", "-f", "--tail", "1", "box"]) as following:
        with started([*hako_cmd, "attach", "--sig-proxy=false", "box"], stdin=subprocess.PIPE) as attached:
            attached.input.write(b"first\n")
            attached.input.flush()
            assert attached.output.readline() == b"got first\n"
            attached.terminate()
            assert attached.wait(30) == 143
        assert following.output.readline().endswith(b"got first\n")
        following.terminate()


def test_inspect(box: str, run_hako: RunHako) -> None:
    (found,) = json.loads(run_hako("inspect", "box").stdout)
    assert (found["id"], found["name"], found["status"], found["image"]) == (box, "box", "running", "busybox")
    assert found["sandbox"]["info"]["kernel"] == run_hako("exec", "box", "uname", "-r").stdout.strip()
    assert os.path.exists(f"/proc/{found['sandbox']['vm_pid']}")


def test_stats(box: str, run_hako: RunHako) -> None:
    (line,) = run_hako("stats", "--no-stream", "--interval", "0.3", "--format", "json", "box").stdout.splitlines()
    found = json.loads(line)
    assert found["name"] == "box"
    assert 0 < found["memory"] < found["memory_limit"]
    assert found["pids"] >= 2
    assert found["vm_pss"] > 20 << 20
    table = run_hako("stats", "--no-stream", "--interval", "0.1").stdout.splitlines()
    assert table[0].startswith("CONTAINER ID")
    assert table[1].startswith(box[:12])


def test_pause_and_unpause(box: str, run_hako: RunHako) -> None:
    run_hako("pause", "box")
    assert "(Paused)" in run_hako("ps").stdout
    refused = run_hako("exec", "box", "true", check=False)
    assert refused.returncode == 125
    assert refused.stderr == "hako: The container box is paused; hako unpause box lets it go on.\n"
    run_hako("unpause", "box")
    assert run_hako("exec", "box", "echo", "again").stdout == "again\n"


def test_cp_in_and_out(box: str, run_hako: RunHako, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_bytes(b"\x00binary\xff")
    (tmp_path / "tree" / "link").symlink_to("sub/file")
    os.chmod(tmp_path / "tree" / "sub" / "file", 0o751)
    run_hako("cp", f"{tmp_path}/tree", "box:/srv")
    script = "stat -c '%a %n' /srv/tree/sub/file; readlink /srv/tree/link; od -c /srv/tree/link | head -1"
    seen = run_hako("exec", "box", "sh", "-c", script).stdout.splitlines()
    assert seen[:2] == ["751 /srv/tree/sub/file", "sub/file"]
    assert "b   i   n   a   r   y 377" in seen[2]
    run_hako("cp", "box:/srv/tree/.", f"{tmp_path}/back")
    assert (tmp_path / "back" / "sub" / "file").read_bytes() == b"\x00binary\xff"
    assert os.readlink(tmp_path / "back" / "link") == "sub/file"


def test_cp_through_volumes(box: str, run_hako: RunHako, volume: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("for the volume")
    run_hako("exec", "box", "ln", "-sf", "/volume", "/to-volume")
    run_hako("cp", f"{tmp_path}/file", "box:/to-volume/through")
    assert (volume / "through").read_text() == "for the volume"
    run_hako("cp", "box:/readonly/through", f"{tmp_path}/back")
    assert (tmp_path / "back").read_text() == "for the volume"
    refused = run_hako("cp", f"{tmp_path}/file", "box:/readonly/new", check=False)
    assert (refused.returncode, refused.stderr) == (
        125,
        "hako: Cannot copy to box:/readonly/new: Read-only file system.\n",
    )


def test_cp_of_archives(box: str, hako_cmd: list[str], run_hako: RunHako, tmp_path: Path) -> None:
    made = subprocess.run([*hako_cmd, "cp", "box:/etc", "-"], capture_output=True, timeout=60, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        passwd = archive.extractfile("etc/passwd")
        assert passwd is not None
        assert passwd.read().startswith(b"root:x:0:0:")
    run_hako("exec", "box", "mkdir", "-p", "/unpacked")
    subprocess.run([*hako_cmd, "cp", "-", "box:/unpacked"], input=made, timeout=60, check=True)
    assert run_hako("exec", "box", "cmp", "/etc/passwd", "/unpacked/etc/passwd").stdout == ""


@pytest.mark.parametrize(
    ("source", "destination", "wanted"),
    [
        ("box:/no/such", ".", "Cannot copy box:/no/such: No such file or directory."),
        ("/etc/hostname", "box:/no/such/file", "Cannot copy to box:/no/such/file: box:/no/such: No such file"),
        ("/etc/hostname", "box:/scratch/file", "is in a tmpfs file system inside the VM"),
        ("box:/proc/self/environ", ".", "is in a proc file system inside the VM"),
        ("box:/../../../../etc/shadow", ".", "Cannot copy box:/../../../../etc/shadow: No such file or directory."),
    ],
)
def test_cp_of_what_cannot_be(box: str, run_hako: RunHako, source: str, destination: str, wanted: str) -> None:
    done = run_hako("cp", source, destination, check=False)
    assert done.returncode == 125
    assert wanted in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["rm", "box"], "The container box is running: stop it first, or remove it with -f."),
        (["run", "--name", "box", "busybox"], "The name box is in use by sandbox"),
        (["rmi", "busybox"], "The image busybox is used by a container: remove the container first."),
        (["exec", "box"], "There is no command to run in the container."),
        (["exec", "-u", "nobody-there", "box", "true"], "nobody-there"),
    ],
)
def test_what_is_refused_while_it_runs(box: str, run_hako: RunHako, words: list[str], wanted: str) -> None:
    done = run_hako(*words, check=False)
    assert done.returncode == 125
    assert wanted in done.stderr
    assert len(done.stderr.splitlines()) == 1
