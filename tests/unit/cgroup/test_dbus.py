"""The call to systemd, byte by byte, against a socket that answers as systemd does."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hako.cgroup import dbus, systemd
from hako.errors import HostError

# A call of StopUnit("a.scope", "replace"), laid out by hand from the D-Bus specification.
STOP_UNIT = b"".join(
    (
        b"l\1\0\1" + struct.pack("<III", 24, 1, 120),
        b"\1\1o\0" + struct.pack("<I", 25) + b"/org/freedesktop/systemd1\0" + bytes(6),
        b"\2\1s\0" + struct.pack("<I", 32) + b"org.freedesktop.systemd1.Manager\0" + bytes(7),
        b"\3\1s\0" + struct.pack("<I", 8) + b"StopUnit\0" + bytes(7),
        b"\x08\1g\0\2ss\0",
        struct.pack("<I", 7) + b"a.scope\0",
        struct.pack("<I", 7) + b"replace\0",
    )
)
SIGNAL = b"l\4\1\1" + struct.pack("<III", 4, 7, 0) + bytes(4)
SUCCESS = b"l\2\1\1" + struct.pack("<III", 0, 8, 8) + b"\5\1u\0\1\0\0\0"
REFUSAL = b"l\3\1\1" + struct.pack("<III", 10, 8, 8) + b"\5\1u\0\1\0\0\0" + struct.pack("<I", 5) + b"Nope.\0"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, bytes], list[bytes]]]:
    """Answer one client with these bytes; what it sent is in the list when the call has returned."""
    path = str(tmp_path / "systemd")
    monkeypatch.setattr(dbus, "SOCKET", path)
    threads = []

    def start(welcome: bytes, answer: bytes) -> list[bytes]:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        received: list[bytes] = []

        def body() -> None:
            with server:
                client, _ = server.accept()
            with client, client.makefile("rb") as lines:
                received.append(lines.readline() + lines.readline())
                client.sendall(welcome)
                if welcome.startswith(b"OK"):
                    head = lines.read(16)
                    length, _, fields = struct.unpack_from("<III", head, 4)
                    received.append(head + lines.read(fields + -fields % 8 + length))
                    client.sendall(answer)

        threads.append(threading.Thread(target=body))
        threads[-1].start()
        return received

    yield start
    for thread in threads:
        thread.join(10)


def stop_unit() -> None:
    body = dbus.Writer()
    body.text("a.scope")
    body.text("replace")
    dbus.call("StopUnit", "ss", body, seconds=10)


def test_a_call(serve: Callable[[bytes, bytes], list[bytes]]) -> None:
    received = serve(b"OK 1234\r\n", SIGNAL + SUCCESS)
    stop_unit()
    assert received == [b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n", STOP_UNIT]


@pytest.mark.parametrize(
    ("welcome", "answer", "reason"),
    [
        (b"OK 1234\r\n", REFUSAL, r"systemd refused StopUnit: Nope\.$"),
        (b"OK 1234\r\n", SUCCESS[:20], "closed the connection"),
        (b"OK 1234\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", "not D-Bus"),
        (b"OK 1234\r\n", b"l\2\1\1" + b"\xff" * 12, "not D-Bus"),
        (b"REJECTED EXTERNAL\r\n", b"", "does not let this user in: REJECTED"),
        (b"", b"", "does not let this user in"),
    ],
)
def test_calls_that_fail(
    serve: Callable[[bytes, bytes], list[bytes]], welcome: bytes, answer: bytes, reason: str
) -> None:
    serve(welcome, answer)
    with pytest.raises(HostError, match=reason):
        stop_unit()


def test_without_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus, "SOCKET", str(tmp_path / "nothing"))
    with pytest.raises(HostError, match="Cannot talk to systemd"):
        stop_unit()
    systemd.stop_scope("a.scope")  # nothing to forget


def test_properties_are_aligned() -> None:
    writer = dbus.Writer()
    writer.properties([("A", "t", 7), ("B", "au", [5, 6]), ("C", "b", True), ("D", "s", "x")])
    entries = b"".join(
        (
            struct.pack("<I", 1) + b"A\0" + b"\1t\0" + bytes(7) + struct.pack("<Q", 7),
            struct.pack("<I", 1) + b"B\0" + b"\2au\0" + bytes(2) + struct.pack("<III", 8, 5, 6),
            struct.pack("<I", 1) + b"C\0" + b"\1b\0" + bytes(3) + struct.pack("<I", 1),
            struct.pack("<I", 1) + b"D\0" + b"\1s\0" + bytes(3) + struct.pack("<I", 1) + b"x\0",
        )
    )
    assert writer.data[8:].startswith(entries[:24])
    assert struct.unpack_from("<II", writer.data) == (len(writer.data) - 8, 0)
    empty = dbus.Writer()
    empty.properties([])
    assert empty.data == bytes(8)


def test_systemd_is_told_what_the_files_say(tmp_path: Path) -> None:
    def told(files: dict[str, str], *controllers: str) -> dict[str, object]:
        for name, text in files.items():
            (tmp_path / name).write_text(text + "\n")
        found = systemd.properties(dict.fromkeys(controllers, str(tmp_path)))
        assert all(kind == "t" for _, kind, _ in found)
        return {name: value for name, _, value in found}

    none = (1 << 64) - 1
    assert told({"memory.max": "4096", "memory.low": "0", "pids.max": "max", "cpu.weight": "39"}, "") == {
        "MemoryMax": 4096,
        "MemoryLow": 0,
        "TasksMax": none,
        "CPUWeight": 39,
    }
    found = told({"cpu.max": "33333 100000", "io.weight": "default 50\n8:0 10"}, "")
    assert (found["CPUQuotaPerSecUSec"], found["CPUQuotaPeriodUSec"], found["IOWeight"]) == (340_000, 100_000, 50)
    assert told({"cpu.max": "max 50000"}, "")["CPUQuotaPerSecUSec"] == none
    files = {
        "memory.limit_in_bytes": "8192",
        "cpu.shares": "2",
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_period_us": "100000",
    }
    assert told(files, "memory", "cpu", "name=systemd", "") == {
        "MemoryLimit": 8192,
        "CPUShares": 2,
        "CPUQuotaPerSecUSec": none,
        "CPUQuotaPeriodUSec": 100_000,
    }
    assert told({}, "cpuset") == {}
