"""A process's streams where containerd has them, at fifos, files and log helpers, with a real agent and processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hako.agent_client import AgentClient
from hako.errors import ConfigError, HakoError, HostError, TimedOutError
from hako.sandbox import process_io
from hako.shim import stdio
from hako.shim.stdio import Place, Stdio, parse
from support.agentside import open_fds
from support.hostside import read_now, until
from support.streams import begin, make_helper, opened, run


class Fifos:
    """Fifos as containerd makes them; a reader of each output is there from the beginning."""

    def __init__(self, directory: Path) -> None:
        self.paths = {name: str(directory / name) for name in ("stdin", "stdout", "stderr")}
        for path in self.paths.values():
            os.mkfifo(path)
        self.readers = {name: self.read(name) for name in ("stdout", "stderr")}

    def read(self, name: str) -> int:
        """A new reader that does not wait for a writer."""
        return os.open(self.paths[name], os.O_RDONLY | os.O_NONBLOCK)

    def write(self) -> int:
        """A new writer of the input."""
        return os.open(self.paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)

    async def open(self, *, stdin: bool = False, terminal: bool = False, scheme: str = "") -> Stdio:
        """Open them as a shim does."""
        return await opened(
            scheme + self.paths["stdin"] if stdin else "",
            scheme + self.paths["stdout"],
            "" if terminal else scheme + self.paths["stderr"],
            terminal=terminal,
        )

    def everything(self, name: str) -> bytes:
        """What is in the fifo up to its end, which must have come."""
        os.set_blocking(self.readers[name], True)
        return read_now(self.readers[name])


# --- names ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run/x%20y?a=b#c", Place("fifo", "/run/x%20y?a=b#c")),
        ("fifo:///run/x", Place("fifo", "/run/x")),
        ("file:///var/log/a%20b.log", Place("file", "/var/log/a b.log")),
        ("binary:///bin/log", Place("binary", "/bin/log")),
        ("binary:///bin/log?a=b&c=d+e%20f&e&a=again", Place("binary", "/bin/log", ("a", "b", "c", "d e f", "e", ""))),
        ("binary-v2:///bin/log?--id=x", Place("binary-v2", "/bin/log", ("--id", "x"))),
    ],
)  # fmt: skip
def test_names_of_places(text: str, expected: Place) -> None:
    assert parse("stdout", text) == expected


@pytest.mark.parametrize("text", ["fifo", "file://log", "npipe:////./pipe/x", "binary://", "x://[/y", "file:///a%00b"])
def test_names_of_no_place(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^stderr is "):
        parse("stderr", text)


# --- outputs ---


@pytest.mark.parametrize("scheme", ["", "fifo://"])
def test_output_and_its_end_arrive(tmp_path: Path, scheme: str) -> None:
    async def body(client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open(scheme=scheme)
        process = await begin(client, "echo hello; echo oops >&2; exit 3", streams)
        assert await process.wait() == 3
        # By now, whatever else is still to be given back.
        assert (fifos.everything("stdout"), fifos.everything("stderr")) == (b"hello\n", b"oops\n")
        await streams.close()
        await streams.close()

    run(tmp_path, body)


def test_a_terminal_has_one_output(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open(terminal=True)
        process = await begin(client, "echo hello; echo oops >&2", streams, terminal=True)
        assert await process.wait() == 0
        assert fifos.everything("stdout") == b"hello\r\noops\r\n"
        await streams.close()
        os.close(fifos.readers["stderr"])

    run(tmp_path, body)


def test_output_survives_its_readers(tmp_path: Path) -> None:
    """containerd is killed, and started again later."""

    async def body(client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open(stdin=True)
        process = await begin(client, "while read line; do echo got $line; done; head -c 300000 /dev/zero", streams)
        writer = fifos.write()
        os.write(writer, b"one\n")
        await until(lambda: _available(fifos.readers["stdout"]) == len("got one\n"))
        assert os.read(fifos.readers["stdout"], 100) == b"got one\n"
        for fd in fifos.readers.values():
            os.close(fd)
        os.write(writer, b"two\n")
        os.close(writer)
        streams.close_stdin()
        await until(lambda: process.io._handing_on)
        fifos.readers = {name: fifos.read(name) for name in fifos.readers}
        reading = asyncio.create_task(asyncio.to_thread(fifos.everything, "stdout"))
        assert await process.wait() == 0, "neither SIGPIPE nor an end of its input that was not one"
        assert await reading == b"got two\n" + bytes(300_000)
        os.close(fifos.readers["stderr"])
        await streams.close()

    run(tmp_path, body)


def _available(fd: int) -> int:
    import fcntl
    import struct
    import termios

    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


def test_output_that_nobody_takes_is_given_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_io, "_DRAIN_SECONDS", 0.02)
    monkeypatch.setattr(stdio, "_DRAIN_SECONDS", 0.2)

    async def body(client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open()
        process = await begin(client, "head -c 200000 /dev/zero", streams)
        for fd in fifos.readers.values():
            os.close(fd)
        assert await process.wait() == 0, "its end does not wait"
        assert not process.io.is_drained
        closing = asyncio.create_task(streams.close())
        await asyncio.sleep(0.1)
        assert not closing.done(), "somebody may still come"
        await asyncio.wait_for(closing, 5)
        await until(lambda: process.io.is_drained)

    run(tmp_path, body)


def test_a_reader_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        path = str(tmp_path / "late")
        os.mkfifo(path)
        opening = asyncio.create_task(opened(stdout=path))
        await asyncio.sleep(0.1)
        assert not opening.done()
        # As containerd does: it waits for a writer in turn.
        reader = await asyncio.to_thread(os.open, path, os.O_RDONLY)
        streams = await opening
        process = await begin(client, "echo hello", streams)
        assert await process.wait() == 0
        assert read_now(reader) == b"hello\n"
        await streams.close()

    run(tmp_path, body)


def test_a_reader_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "_OPEN_SECONDS", 0.1)
    os.mkfifo(tmp_path / "alone")
    before = open_fds()
    with pytest.raises(TimedOutError, match="alone"):
        asyncio.run(opened(stdout=str(tmp_path / "alone")))
    assert open_fds() == before


def test_no_streams_at_all(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        streams = await opened()
        assert streams.fds == {}
        process = await begin(client, "cat; echo nobody hears this", streams)
        assert await process.wait() == 0
        streams.close_stdin()
        await streams.close()

    run(tmp_path, body)


def test_a_terminal_that_nobody_watches_does_not_stand_still(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        streams = await opened(terminal=True)
        process = await begin(client, "head -c 200000 /dev/zero", streams, terminal=True)
        assert await process.wait() == 0
        await streams.close()

    run(tmp_path, body)


def test_streams_that_the_engine_never_got(tmp_path: Path) -> None:
    async def body(_client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open(stdin=True)
        await asyncio.wait_for(streams.close(), 1)
        for fd in fifos.readers.values():
            os.close(fd)

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("streams", "kind", "words"),
    [
        ({"stdin": "missing"}, HostError, "Cannot open .*/missing as stdin: No such file"),
        ({"stdout": "missing"}, HostError, "Cannot open .*/missing as stdout: No such file"),
        ({"stdout": "fifo", "stderr": "missing"}, HostError, "Cannot open .*/missing as stderr: No such file"),
        ({"stdin": "file"}, ConfigError, "not a fifo"),
        ({"stdin": "file://file"}, ConfigError, "only a fifo"),
        ({"stdout": "socket"}, HostError, "Cannot open"),
        ({"stdout": "directory"}, HostError, "Is a directory"),
        ({"stdout": "file://file/below"}, HostError, "directory of .*/file/below for stdout"),
        ({"stdout": "fifo", "stderr": "binary://helper"}, ConfigError, "stderr is .*/helper, but"),
        ({"stdout": "binary://missing"}, HostError, "Cannot start the log helper .*/missing: No such file"),
        ({"stdout": "binary://file"}, HostError, "Permission denied"),
    ],
)
def test_places_that_cannot_be_used(tmp_path: Path, streams: dict[str, str], kind: type[HakoError], words: str) -> None:
    import socket

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    make_helper(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        before = open_fds()
        named: dict[str, Any] = {name: _below(tmp_path, text) for name, text in streams.items()}
        with pytest.raises(kind, match=words):
            asyncio.run(asyncio.wait_for(opened(**named), 5))
        assert open_fds() == before
        os.close(reader)


def _below(directory: Path, text: str) -> str:
    scheme, mark, name = text.rpartition("://")
    return f"{scheme}{mark}{directory}/{name}"


# --- input ---


def test_input_ends_when_it_is_closed_and_nobody_writes(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open(stdin=True)
        process = await begin(client, "cat; exit 3", streams)
        waiting = asyncio.create_task(process.wait())
        for text in (b"one ", b"two "):  # each from a writer of its own
            writer = fifos.write()
            os.write(writer, text)
            os.close(writer)
        await asyncio.sleep(0.1)
        assert not waiting.done(), "nobody writes, but somebody may"
        writer = fifos.write()
        streams.close_stdin()
        process.io.close_stdin()
        streams.close_stdin()
        await asyncio.sleep(0.1)
        os.write(writer, b"three")
        assert not waiting.done(), "there is somebody who writes"
        os.close(writer)
        assert await waiting == 3
        assert fifos.everything("stdout") == b"one two three"
        os.close(fifos.readers["stderr"])
        await streams.close()

    run(tmp_path, body)


def test_whoever_writes_to_a_process_that_has_ended_learns_it(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open(stdin=True)
        process = await begin(client, "exit 0", streams)
        writer = fifos.write()
        assert await process.wait() == 0
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"too late")
        for fd in (writer, *fifos.readers.values()):
            os.close(fd)
        await streams.close()

    run(tmp_path, body)


def test_a_terminal_hangs_up_at_the_end_of_its_input(tmp_path: Path) -> None:
    async def body(client: AgentClient) -> None:
        fifos = Fifos(tmp_path)
        streams = await fifos.open(stdin=True, terminal=True)
        process = await begin(client, "trap 'exit 7' HUP; read line; read line; sleep 60", streams, terminal=True)
        waiting = asyncio.create_task(process.wait())
        writer = fifos.write()
        os.write(writer, b"hello\n")
        os.close(writer)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        streams.close_stdin()
        process.io.close_stdin()
        assert await asyncio.wait_for(waiting, 10) == 7
        for fd in fifos.readers.values():
            os.close(fd)
        await streams.close()

    run(tmp_path, body)


# --- files ---


def test_files_are_made_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "new" / "and deep" / "log"

    async def body(client: AgentClient) -> None:
        uri = f"file://{tmp_path}/new/and%20deep/log"
        for text in ("one", "two"):
            streams = await opened(stdout=uri, stderr=uri)
            process = await begin(client, f"echo {text}; sleep 0.05; echo oops >&2", streams)
            assert await process.wait() == 0
            await streams.close()
            await client.call("Delete", {"container": "c"})

    run(tmp_path, body)
    assert path.read_text() == "one\noops\ntwo\noops\n"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_plain_path_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")

    async def body(client: AgentClient) -> None:
        streams = await opened(stdout=str(tmp_path / "log"), terminal=True)
        process = await begin(client, "echo hello", streams, terminal=True)
        assert await process.wait() == 0
        await streams.close()

    run(tmp_path, body)
    assert (tmp_path / "log").read_text() == "before\nhello\n"


# --- another mount namespace ---


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_paths_and_the_helper_are_in_the_mount_namespace_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    script = f"mount -t tmpfs none {tmp_path}/there && mkfifo {tmp_path}/there/in && echo ready && read line"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"ready\n"
        namespace = os.open(f"/proc/{other.pid}/ns/mnt", os.O_RDONLY)
        inside = Path(f"/proc/{other.pid}/root{tmp_path}/there")

        async def body(client: AgentClient) -> None:
            await asyncio.to_thread(make_helper, inside)
            where = f"{tmp_path}/there"
            streams = await opened(f"{where}/in", f"binary://{where}/helper", mounts=namespace, directory=where)
            process = await begin(client, "echo hello", streams)
            assert await process.wait() == 0
            await streams.close()
            streams = await opened("", f"file://{where}/log", mounts=namespace)
            await streams.close()

        run(tmp_path, body)
        assert (inside / "out").read_bytes() == b"hello\n"
        assert (inside / "log").exists()
        assert not os.listdir(tmp_path / "there")
        os.close(namespace)
        other.stdin.close()
