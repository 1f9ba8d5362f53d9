"""A process that is forked before it is known what for."""

from __future__ import annotations

import os
import select

from hako.sandbox.early import Prepared

_SECONDS = 10


def _say(connection: int) -> None:
    os.write(connection, f"{os.getpid()} {os.readlink('/proc/self/fd/1')}".encode())


def _wait(connection: int) -> None:
    os.read(connection, 1)


def test_whoever_takes_the_connection_reads_what_the_process_says() -> None:
    prepared = Prepared(_say)
    pid = prepared.pid()
    connection = prepared.take()
    assert os.read(connection, 100) == f"{pid} /dev/null".encode()
    assert os.read(connection, 100) == b"", "it has ended"
    os.close(connection)
    prepared.close()  # nothing is left to close


def test_nobody_has_to_ask_for_its_id() -> None:
    connection = Prepared(_say).take()
    assert os.read(connection, 100).endswith(b" /dev/null")
    os.close(connection)


def test_one_that_is_not_needed_ends() -> None:
    prepared = Prepared(_wait)
    pidfd = os.pidfd_open(prepared.pid())
    assert not select.select([pidfd], [], [], 0.1)[0]
    prepared.close()
    assert select.select([pidfd], [], [], _SECONDS)[0] == [pidfd]
    os.close(pidfd)
