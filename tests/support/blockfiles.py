"""Files that hold file systems, and loop devices over them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def ext4(path: Path, tree: Path | None = None, size: int = 32 << 20) -> Path:
    """Make a file with an ext4 file system that holds a copy of ``tree``."""
    path.touch()
    os.truncate(path, size)
    content = ["-d", str(tree)] if tree is not None else []
    subprocess.run(["mkfs.ext4", "-q", "-F", *content, str(path)], check=True)
    return path


def erofs(path: Path, tree: Path) -> Path:
    """Make a file with an erofs file system that holds a copy of ``tree``."""
    subprocess.run(["mkfs.erofs", str(path), str(tree)], check=True, stdout=subprocess.DEVNULL)
    return path


def text_in(image: Path, path: str) -> str:
    """What the file ``path`` of an ext4 file system in a file says."""
    argv = ["debugfs", "-R", f"cat {path}", str(image)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def is_clean(image: Path) -> bool:
    """Whether an ext4 file system was unmounted as it should be, and is sound."""
    head = subprocess.run(["dumpe2fs", "-h", str(image)], check=True, capture_output=True, text=True).stdout
    sound = subprocess.run(["e2fsck", "-fn", str(image)], check=False, capture_output=True).returncode == 0
    return sound and "needs_recovery" not in head


@contextlib.contextmanager
def loop(image: Path, *options: str) -> Iterator[str]:
    """A loop device over ``image``. It is an error when somebody still uses it in the end."""
    argv = ["losetup", "--find", "--show", *options, str(image)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        # Detaching a device that is in use only marks it.
        left = subprocess.run(["losetup", device], check=False, capture_output=True, text=True)
        assert str(image) not in left.stdout, left.stdout
