"""Making a process's standard streams: pipes, or a terminal that crun hands over, joined to channel streams."""

from __future__ import annotations

import _socket
import fcntl
import os
import struct
import termios

from hako.agent.channel import Channel
from hako.agent.loop import Loop
from hako.agent.streams import Input, Output
from hako.wire import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_SCM_RIGHTS = 1


def _stream_number(streams: dict[str, Any], name: str) -> int | None:
    number = streams.get(name)
    if number is None:
        return None
    if type(number) is not int or not 0 < number < 1 << 32:
        raise calls.CallError(calls.INVALID_ARGUMENT, f"{name}: not a stream number")
    return number


class Stdio:
    """The standard streams of one process: made before crun runs, joined to the channel's streams after.

    With a terminal there is one output; stderr's stream is not used. Raises CallError for stream numbers that
    are none, or in use.
    """

    def __init__(
        self,
        loop: Loop,
        channel: Channel,
        streams: dict[str, Any],
        *,
        terminal: bool,
        made: dict[int, tuple[int, int]] | None = None,
    ) -> None:
        """``made`` are pipes that there are already, by the number of the process's descriptor; they are owned now."""
        self._loop = loop
        self._channel = channel
        self._numbers = [_stream_number(streams, name) for name in _NAMES]
        self.terminal = terminal
        self._child: list[int] = []
        self._listener: _socket.socket | None = None
        self._tty = -1
        self._input: Input | None = None
        self._outputs: list[Output] = []
        self._made: dict[int, tuple[int, int]] = {} if made is None else dict(made)
        if not terminal:
            try:
                self._make_pipes()
            except BaseException:
                self.close()
                raise

    def _make_pipes(self) -> None:
        for index, number in enumerate(self._numbers):
            if number is None:
                self._child.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
                continue
            read, write = self._made.pop(index) if index in self._made else os.pipe2(os.O_CLOEXEC)
            if index == 0:
                self._child.append(read)
                self._input = Input(self._loop, self._channel, number, write)
            else:
                self._child.append(write)
                self._outputs.append(Output(self._loop, self._channel, number, read))

    def child_fds(self) -> tuple[int, int, int] | None:
        """Descriptors for crun, or None when the process gets a terminal."""
        return None if self.terminal else (self._child[0], self._child[1], self._child[2])

    def listen(self, path: str) -> None:
        """Wait at ``path`` for crun to send the terminal's master side."""
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._listener.bind(path)
        self._listener.listen(1)

    def accept(self) -> None:
        """Take the terminal that crun has sent; call it after crun ended well."""
        assert self._listener is not None
        self._listener.setblocking(False)
        fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        connection = _socket.socket(fileno=fd)
        try:
            _, ancillary, _, _ = connection.recvmsg(4096, _socket.CMSG_SPACE(4))
        finally:
            connection.close()
        for level, kind, data in ancillary:
            if level == _socket.SOL_SOCKET and kind == _SCM_RIGHTS and len(data) >= 4:
                (self._tty,) = struct.unpack_from("i", data)
        if self._tty < 0:
            raise calls.CallError(calls.INTERNAL, "crun sent no terminal")
        os.set_inheritable(self._tty, False)
        # Two descriptors of their own, so that input and output can end apart.
        if self._numbers[0] is not None:
            self._input = Input(self._loop, self._channel, self._numbers[0], os.dup(self._tty))
        if self._numbers[1] is not None:
            output = Output(self._loop, self._channel, self._numbers[1], os.dup(self._tty), self.on_exit)
            self._outputs.append(output)

    def start(self) -> None:
        """The process runs: pass on what it writes."""
        for output in self._outputs:
            output.start()

    def after_spawn(self) -> None:
        """Close what only crun needed."""
        for fd in self._child:
            os.close(fd)
        self._child = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in columns and rows; nothing happens once the process has ended."""
        if self._tty >= 0:
            fcntl.ioctl(self._tty, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def on_exit(self) -> None:
        """The process has ended: nobody reads its input any more.

        Its outputs go on until the last of their data has been taken, or the host says that it wants no more.
        Of a terminal whose output the host has let go this is the hang-up: the processes on it get SIGHUP.
        """
        if self._input is not None:
            self._input.close()
        if self._tty >= 0:
            os.close(self._tty)
            self._tty = -1

    def close(self) -> None:
        """Give everything back, data under way included."""
        self.after_spawn()
        self.on_exit()
        for output in self._outputs:
            output.close()
        for pair in self._made.values():
            os.close(pair[0])
            os.close(pair[1])
        self._made.clear()
