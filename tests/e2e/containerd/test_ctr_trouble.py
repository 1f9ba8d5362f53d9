"""What nobody wishes for under containerd: a guest that hangs, and full disks. With hako alone: runc has no guest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ctr import Ctr

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.parametrize("ctr", ["old-hako", "new-hako"], indirect=True),
]

#: What a user is ready to wait for the end of what does not answer, seconds.
_PATIENCE = 10.0


@pytest.fixture
def full(ctr: Ctr) -> Iterator[str]:
    """A directory on a file system that has no room."""
    path = f"{ctr.directory}/full"
    os.mkdir(path)
    ctr.containerd.machine.output("mount", "-t", "tmpfs", "-o", "size=64k", "none", path)
    ctr.containerd.machine.output("sh", "-c", f"head -c 65536 /dev/zero >{path}/ballast")
    yield path
    ctr.containerd.machine.output("umount", "--lazy", path)  # a shim may still have a file of it


def machine_of(ctr: Ctr) -> int:
    """The process of the one VM there is."""
    (shim,) = ctr.shims()
    children = Path(f"/proc/{shim}/task/{shim}/children").read_text().split()
    (machine,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")]
    return int(machine)


def test_a_guest_that_hangs(ctr: Ctr) -> None:
    ctr.start("victim", "sleep", "100000")
    os.kill(machine_of(ctr), signal.SIGSTOP)
    assert ctr.status("victim") == "RUNNING"
    refused = ctr("task", "ps", "victim", check=False)
    assert refused.status != 0
    assert re.search(r"The guest of sandbox \w+ does not answer\.(: unavailable)?$", refused.stderr.strip())
    begin = time.monotonic()
    ctr("task", "kill", "--signal", "KILL", "victim")
    ctr.until_stopped("victim")
    assert ctr.delete("victim") == 137
    assert time.monotonic() - begin < _PATIENCE


def test_a_guest_that_hangs_is_removed_by_force(ctr: Ctr) -> None:
    ctr.start("victim", "sleep", "100000")
    os.kill(machine_of(ctr), signal.SIGSTOP)
    begin = time.monotonic()
    ctr("task", "delete", "--force", "victim")
    assert time.monotonic() - begin < _PATIENCE
    ctr("container", "delete", "victim")


def test_no_room_for_what_a_process_writes(ctr: Ctr, full: str) -> None:
    options = ("--log-uri", f"file://{full}/log")
    ctr("run", "--detach", *ctr.made("writes", "sh", "-c", "echo much; sleep 100000", options=options))
    assert ctr.exec("writes", "echo", "alive").stdout == "alive\n"
    assert "cannot be written any more: No space left on device." in ctr.containerd.log()


def test_no_room_for_state(ctr: Ctr, full: str, tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    shim = f"{ctr.containerd.base}/bin/hako-shim"
    words = ["-namespace", "default", "-id", "one", "-address", str(tmp_path), "start"]
    environment = {**os.environ, "HAKO_STATE_ROOT": full}
    argv = ctr.containerd.machine.inside("env", "-C", str(tmp_path), shim, *words)
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("containerd-shim-hako-v2: Cannot ")
    assert done.stderr.endswith(": No space left on device.\n")
    left = ctr.containerd.machine.output("find", full, "-mindepth", "1").split()
    assert [path for path in left if not path.endswith(("/ballast", "/sandboxes"))] == []
