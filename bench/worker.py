"""Runs in a container, under the host's Python: does what each line of standard input says, and answers "ok".

Works on files in the directory that is its first argument. Standard library only, and little of that.
"""

from __future__ import annotations

import os
import sys

MIB = 1 << 20
BLOCK = 4096
#: Prime, so that its multiples reach all blocks of a file in an order that looks random.
STEP = 999_983


def write(name: str, mib: str) -> None:
    """Write a new file in pieces of 1 MiB, and wait until it is written out."""
    data = b"bench---" * (MIB // 8)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for _ in range(int(mib)):
        os.write(fd, data)
    os.fsync(fd)
    os.close(fd)


def read(name: str) -> None:
    """Read a file in pieces of 1 MiB."""
    buffer = [bytearray(MIB)]
    fd = os.open(name, os.O_RDONLY)
    while os.readv(fd, buffer):
        pass
    os.close(fd)


def randread(name: str, count: str) -> None:
    """Read blocks all over a file."""
    buffer = [bytearray(BLOCK)]
    fd = os.open(name, os.O_RDONLY)
    blocks = os.fstat(fd).st_size // BLOCK
    for number in range(int(count)):
        os.preadv(fd, buffer, number * STEP % blocks * BLOCK)
    os.close(fd)


def randwrite(name: str, count: str) -> None:
    """Write blocks all over a file, and wait until they are written out."""
    data = b"x" * BLOCK
    fd = os.open(name, os.O_WRONLY)
    blocks = os.fstat(fd).st_size // BLOCK
    for number in range(int(count)):
        os.pwrite(fd, data, number * STEP % blocks * BLOCK)
    os.fsync(fd)
    os.close(fd)


def create(name: str, count: str) -> None:
    """Make a directory with empty files."""
    os.mkdir(name)
    for number in range(int(count)):
        os.close(os.open(f"{name}/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def stat(name: str, count: str) -> None:
    """Look at each of the files."""
    for number in range(int(count)):
        os.stat(f"{name}/{number}")


def scan(name: str, count: str) -> None:
    """List the directory with the type of each entry."""
    found = sum(entry.is_file(follow_symlinks=False) for entry in os.scandir(name))
    if found != int(count):
        raise OSError(f"{found} of {count} files are listed")


def unlink(name: str, count: str) -> None:
    """Remove the files and the directory."""
    for number in range(int(count)):
        os.unlink(f"{name}/{number}")
    os.rmdir(name)


def clean() -> None:
    """Remove all files."""
    for name in os.listdir():
        os.unlink(name)


def hello() -> None:
    """Answer."""


WORK = {work.__name__: work for work in (write, read, randread, randwrite, create, stat, scan, unlink, clean, hello)}


def main() -> None:
    """Answer each line."""
    os.makedirs(sys.argv[1], exist_ok=True)
    os.chdir(sys.argv[1])
    for line in iter(sys.stdin.readline, ""):
        name, *words = line.split()
        try:
            WORK[name](*words)
            answer = "ok"
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, flush=True)


main()
