"""Descriptors that others handed over: read and written without waiting, and left as they were for their owners."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import termios
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hako.sandbox.fdio import FdReader, FdWriter
from support.agentside import open_fds


def is_blocking(fd: int) -> bool:
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def run(body: Callable[[], Awaitable[None]]) -> None:
    before = open_fds()
    asyncio.run(asyncio.wait_for(body(), 20))  # type: ignore[arg-type]
    assert open_fds() == before


def make(kind: str) -> tuple[int, int]:
    """The reading and the writing end of a ``kind``."""
    if kind == "pipe":
        return os.pipe()
    if kind == "socket":
        one, two = socket.socketpair()
        return one.detach(), two.detach()
    master, slave = pty.openpty()
    tty.setraw(slave)
    return (slave, master) if kind == "terminal" else (master, slave)


KINDS = ["pipe", "socket", "terminal"]


@pytest.mark.parametrize("kind", KINDS)
def test_reading(kind: str) -> None:
    async def body() -> None:
        read, write = make(kind)
        kept = os.dup(read)
        reader = FdReader(read)
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0.01)
        assert not reading.done()
        assert is_blocking(kept)
        os.write(write, b"hello")
        assert await reading == b"hello"
        os.close(write)
        assert await reader.read() == b""
        assert is_blocking(kept)
        reader.close()
        reader.close()
        os.close(kept)

    run(body)


@pytest.mark.parametrize("kind", [*KINDS, "master"])
def test_writing_more_than_fits(kind: str) -> None:
    """Waits for the reader without holding up the loop, and the original descriptor stays as it was."""
    text = os.urandom(1 << 20)

    async def body() -> None:
        read, write = make("terminal" if kind == "master" else kind)
        if kind == "terminal":
            read, write = write, read  # the slave is written to
        kept = os.dup(write)
        writer = FdWriter(write)
        writing = asyncio.create_task(writer.write(text))
        await asyncio.sleep(0.02)
        assert not writing.done()
        assert is_blocking(kept)
        got = bytearray()
        while len(got) < len(text):
            got += await asyncio.to_thread(os.read, read, 1 << 16)
        assert got == text
        assert await writing is True
        writer.close()
        os.close(read)
        os.close(kept)

    run(body)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_to_nobody(kind: str) -> None:
    async def body() -> None:
        read, write = make("terminal") if kind == "terminal" else make(kind)
        if kind == "terminal":
            read, write = write, read
        writer = FdWriter(write)
        os.close(read)
        assert await writer.write(b"x") is False
        assert await writer.write(b"") is True
        writer.close()

    run(body)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_goes_while_a_write_waits(kind: str) -> None:
    async def body() -> None:
        read, write = make(kind)
        if kind == "terminal":
            read, write = write, read
        writer = FdWriter(write)
        writing = asyncio.create_task(writer.write(bytes(8 << 20)))
        await asyncio.sleep(0.02)
        os.close(read)
        assert await writing is False
        writer.close()

    run(body)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_wakes_whoever_waits(kind: str) -> None:
    async def body() -> None:
        read, write = make(kind)
        reader = FdReader(read)
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0.01)
        reader.close()
        assert await reading == b""
        os.close(write)
        read, write = make(kind)
        writer = FdWriter(write)
        writing = asyncio.create_task(writer.write(bytes(8 << 20)))
        await asyncio.sleep(0.02)
        writer.close()
        assert await writing is False
        os.close(read)

    run(body)


def test_the_terminal_behind_dev_tty() -> None:
    """The sandbox process has another controlling terminal than whoever gave it the descriptor, or none."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(master)
            os.login_tty(slave)
            given = os.open("/dev/tty", os.O_RDWR)

            async def body() -> None:
                writer = FdWriter(os.dup(given))
                assert await writer.write(b"hello") is True
                reader = FdReader(given)
                assert await reader.read() == b"answer"

            # Without a controlling terminal /dev/tty cannot be opened: give it up and keep the descriptor.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            fcntl.ioctl(given, termios.TIOCNOTTY)
            asyncio.run(body())
            status = 0
        finally:
            os._exit(status)
    os.close(slave)
    assert os.read(master, 100) == b"hello"
    os.write(master, b"answer")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(master)


def test_cancelling_a_read_leaves_the_data() -> None:
    async def body() -> None:
        read, write = os.pipe()
        kept = os.dup(read)
        reader = FdReader(read)
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        reader.close()
        os.write(write, b"for the next one")
        assert os.read(kept, 100) == b"for the next one"
        os.close(write)
        os.close(kept)

    run(body)


def test_regular_files(tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def body() -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(fd, b"before ")
        kept = os.dup(fd)
        writer = FdWriter(fd)
        assert await writer.write(b"after") is True
        writer.close()
        assert path.read_bytes() == b"before after", "the position is shared with the owner, as a shell expects"
        os.lseek(kept, 7, os.SEEK_SET)
        reader = FdReader(kept)
        assert await reader.read() == b"after"
        assert await reader.read() == b""
        reader.close()

    run(body)


def test_a_full_device(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        writer = FdWriter(os.open("/dev/full", os.O_WRONLY))
        assert await writer.write(b"x") is False
        writer.close()
        reader = FdReader(os.open("/dev/null", os.O_RDONLY))
        assert await reader.read() == b""
        reader.close()

    run(body)
    assert caplog.messages == ["The output of a process cannot be written any more: No space left on device."]


def test_ends_that_are_dead_already() -> None:
    async def body() -> None:
        read, write = os.pipe()
        os.close(read)
        writer = FdWriter(write)
        assert await writer.write(b"x") is False
        writer.close()
        master, slave = pty.openpty()
        os.close(master)
        reader = FdReader(slave)
        assert await reader.read() == b""
        reader.close()

    run(body)


def test_a_descriptor_for_the_wrong_direction() -> None:
    async def body() -> None:
        reader = FdReader(os.open("/dev/null", os.O_WRONLY))
        assert await reader.read() == b""
        reader.close()

    run(body)
