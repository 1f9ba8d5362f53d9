"""Files that are never half-written, and locks that vanish with their holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from hako.errors import HostError
from hako.wire import jsontext

#: Directories whose making is not finished are called so.
STAGING_PREFIX = ".new-"


def identity(path: str) -> list[object]:
    """Which file ``path`` is: another one, or other content put there, gives another answer. Raises HostError."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError as error:
        raise HostError(f"Cannot read {path}: {error.strerror}.") from error
    return [real, status.st_size, status.st_mtime_ns]


def ensure_dir(path: str, mode: int = 0o755) -> str:
    """Create ``path`` with its parents; return it. Raises HostError with the reason when that fails."""
    try:
        os.makedirs(path, mode=mode, exist_ok=True)
    except OSError as error:
        raise HostError(f"Cannot create {path}: {error.strerror}.") from error
    return path


def write_atomic(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data`` in one step: readers see the old or the new content, never a part.

    Raises HostError when the disk is full or the directory cannot be written.
    """
    temp = f"{path}.{os.getpid()}.tmp"
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.replace(temp, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise HostError(f"Cannot write {path}: {error.strerror}.") from error


def write_json(path: str, value: object) -> None:
    """Write ``value`` as JSON, atomically."""
    write_atomic(path, jsontext.dumps(value) + b"\n")


def read_json(path: str) -> dict[str, object] | None:
    """The JSON object in ``path``, or None when the file is missing or is not a JSON object."""
    try:
        with open(path, "rb") as file:
            value = jsontext.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def lock(path: str, *, wait: bool = True, shared: bool = False, create: bool = True) -> int | None:
    """Take the lock file ``path`` and return its fd; closing the fd gives it back.

    With ``wait`` False, None means that somebody else holds it. A missing file is created, or is a
    FileNotFoundError if ``create`` is False.
    """
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_CLOEXEC, 0o600)
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return fd


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock file ``path`` for the block."""
    fd = lock(path)
    assert fd is not None
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def staging_dir(parent: str) -> Iterator[str]:
    """A fresh directory under ``parent`` that is removed at the end unless it was renamed away."""
    ensure_dir(parent)
    # Nobody else has that name; tempfile would bring random, shutil and three ways to compress.
    path = os.path.join(parent, STAGING_PREFIX + os.urandom(8).hex())
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        remove_tree(path)


def remove_tree(path: str) -> None:
    """Remove ``path`` and everything in it; a missing one is fine. Never follows symbolic links."""
    if not os.path.lexists(path):
        return
    import shutil

    try:
        shutil.rmtree(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RecursionError:
        # Containers can nest directories deeper than Python can follow.
        from hako import proc

        proc.run(["rm", "-rf", "--one-file-system", "--", path])


def check_free_space(path: str, needed: int, what: str) -> None:
    """Raise HostError unless the file system of ``path`` has ``needed`` bytes free for ``what``."""
    stat = os.statvfs(path)
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise HostError(
            f"Not enough disk space for {what}: {path} has {free >> 20} MiB free, {needed >> 20} MiB are needed."
        )
