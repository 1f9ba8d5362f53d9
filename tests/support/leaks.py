"""What a test run has left behind: processes, mounts and files that belong to its own directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

from hako.sandbox import zygotes
from hako.template import keeper

#: What is in these directories of hako's live state is meant to stay.
_STAYING = ("templates", "starting", "zygotes")


def processes(root: str, *, keepers: bool = False) -> dict[int, str]:
    """The processes that were given something below ``root``, by command line or environment; not this one.

    Those that keep a template in memory, and zygotes, are meant to stay; they count with ``keepers`` alone.
    """
    wanted = root.rstrip("/").encode() + b"/"
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            cmdline = _read(f"/proc/{name}/cmdline")
            if not keepers and _is_keeper(cmdline, wanted):
                continue
            if wanted in cmdline or wanted in _read(f"/proc/{name}/environ"):
                found[int(name)] = cmdline.replace(b"\0", b" ").decode(errors="replace").strip() or "(no command line)"
        except OSError:
            continue  # it has ended meanwhile
    return found


def stop_keepers() -> None:
    """End what stays for the next start, in the directories that are in force here."""
    keeper.stop_all()
    zygotes.stop_all()


def _is_keeper(cmdline: bytes, root: bytes) -> bool:
    if cmdline.startswith(b"hako-zygote") or b"from hako.shim.zygote import" in cmdline:
        return True
    words = cmdline.split(b"\0")
    return words[0].endswith((b"/sh", b"/nsenter")) and any(
        word.startswith(root) and word.endswith(b".json") and b"/templates/" in word for word in words
    )


def unmount(point: str) -> None:
    """Undo a mount, though it may be in use."""
    subprocess.run(["umount", "--lazy", point], check=False)


def mounts(root: str) -> list[str]:
    """The mount points below ``root``, innermost first."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        points = [line.split()[4] for line in file]
    return [point for point in reversed(points) if point.startswith(root.rstrip("/") + "/")]


def files(root: str) -> list[str]:
    """What is below ``root`` other than directories, and locks and records of templates and zygotes, which may stay."""
    return [
        os.path.join(folder, name)
        for folder, _, names in os.walk(root)
        for name in names
        if not name.endswith(("lock", ".lock")) and os.path.relpath(folder, root) not in _STAYING
    ]


def wait_gone(root: str, seconds: float, *, keepers: bool = False) -> dict[int, str]:
    """The processes of ``root`` that are still there after at most ``seconds`` in which they may end."""
    deadline = time.monotonic() + seconds
    while (left := processes(root, keepers=keepers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def clean(root: str) -> None:
    """End the processes of ``root``, undo its mounts and remove it, whatever state it is in."""
    for pid in processes(root, keepers=True):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_gone(root, 5, keepers=True)
    for point in mounts(root):
        unmount(point)
    if not mounts(root):  # never delete through a mount: the host's own files could be below it
        shutil.rmtree(root, ignore_errors=True)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
