"""Where images are put together, the locks that keep two makers apart, and how what a killed one left goes away.

Everything is below paths.images_dir():

    <digest>/        one finished image; appears by a rename, so it is always whole
    .new-*/          one being made, or a dead maker's leftovers: alive exactly while its maker holds its flock
    .del-*/          one being removed
    .pull-NN.lock    held while one source is being fetched; sources are spread over a fixed set of lock files
    .index.lock      held for the short moments in which names and directories change
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator

from hako import paths, store
from hako.errors import HostError

_LOCKS = 32


def images_dir() -> str:
    """The directory of all images, made when missing.

    Only root may enter it: images bring set-user-id programs and device nodes, which no user of the host may
    come near.
    """
    path = store.ensure_dir(paths.images_dir(), 0o700)
    with contextlib.suppress(OSError):
        if os.stat(path).st_mode & 0o077:
            os.chmod(path, 0o700)
    return path


@contextlib.contextmanager
def index_lock() -> Iterator[None]:
    """Hold the lock on names and directories; only for moments."""
    with _take(os.path.join(images_dir(), ".index.lock")):
        yield


@contextlib.contextmanager
def pull_lock(key: str) -> Iterator[None]:
    """Hold the lock on the source ``key``: a second puller of the same waits here for the first."""
    number = zlib.crc32(key.encode()) % _LOCKS
    with _take(os.path.join(images_dir(), f".pull-{number:02}.lock")):
        yield


@contextlib.contextmanager
def _take(path: str) -> Iterator[None]:
    try:
        fd = store.lock(path)
    except OSError as error:
        raise HostError(f"Cannot lock {path}: {error.strerror}.") from error
    assert fd is not None
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def staging() -> Iterator[str]:
    """A fresh directory beside the images, removed at the end; a maker that is killed leaves it for clean()."""
    import tempfile

    parent = images_dir()
    with index_lock():
        clean()
        try:
            path = tempfile.mkdtemp(prefix=".new-", dir=parent)
        except OSError as error:
            raise HostError(f"Cannot create a directory in {parent}: {error.strerror}.") from error
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        remove_tree(path)
        os.close(fd)


def clean() -> None:
    """Remove what dead makers and removers left. The caller holds the index lock."""
    parent = images_dir()
    with os.scandir(parent) as entries:
        left = [entry.path for entry in entries if entry.name.startswith((".new-", ".del-"))]
    for path in left:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            remove_tree(path)
        finally:
            os.close(fd)


def remove_tree(path: str) -> None:
    """Remove ``path`` and everything in it, as deep as an image may nest directories."""
    try:
        store.remove_tree(path)
    except RecursionError:
        from hako import proc

        proc.run(["rm", "-rf", "--one-file-system", "--", path])
    except OSError as error:
        raise HostError(f"Cannot remove {path}: {error.strerror}.") from error
