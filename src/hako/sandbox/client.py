"""Calling a sandbox process: blocking, without asyncio, for command lines and scripts.

Each call has a connection of its own, so calls from several threads never wait for each other.
"""

from __future__ import annotations

import contextlib
import os
import socket

from hako import paths
from hako.errors import NotFoundError, ProtocolError, from_wire
from hako.wire import calls, frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_READ_SIZE = 256 << 10
#: The number of a PendingCall on its connection.
_STREAM = 1


class GoneError(NotFoundError):
    """There is no process that serves the sandbox, or it ended before it answered."""


def socket_path(sandbox_id: str) -> str:
    """The control socket of a sandbox."""
    return os.path.join(paths.sandboxes_dir(), sandbox_id, "control.sock")


def listen(path: str) -> socket.socket:
    """A socket that listens at ``path``, for our own user only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # Through a descriptor, because a socket's address is limited to 107 bytes.
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        os.chmod(path, 0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def connect(sandbox_id: str) -> socket.socket:
    """A connection to the sandbox process. Raises GoneError when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = -1
    try:
        # Through a descriptor, because a socket's address is limited to 107 bytes.
        directory = os.open(os.path.dirname(socket_path(sandbox_id)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock.connect(f"/proc/self/fd/{directory}/control.sock")
    except OSError as error:
        sock.close()
        raise GoneError(f"Sandbox {sandbox_id} is not running.") from error
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


class PendingCall:
    """One call that has been sent over ``sock`` and not been answered yet, for callers with more to wait for.

    ``fds`` stay the caller's. Raises GoneError when the sandbox has ended.
    """

    def __init__(self, sock: socket.socket, method: str, params: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self._sock = sock
        self._decoder = frames.Decoder(calls.MAX_CALL)
        data = frames.encode(_STREAM, frames.REQUEST, calls.encode_request(method, {**params, "fds": len(fds)}))
        try:
            sent = socket.send_fds(sock, [data], fds) if fds else sock.send(data)
            if sent < len(data):
                sock.sendall(data[sent:])
        except OSError as error:
            raise GoneError("The sandbox has ended.") from error

    def fileno(self) -> int:
        """What becomes readable when there is something for advance()."""
        return self._sock.fileno()

    def advance(self) -> dict[str, Any] | None:
        """Receive once; the result when it is complete. Raises what the sandbox process reported."""
        try:
            received = self._sock.recv(_READ_SIZE)
            if not received:
                raise GoneError("The sandbox has ended.")
            for frame in self._decoder.feed(received):
                # Answers to what else was sent over this connection are somebody else's, or nobody's.
                if frame.kind == frames.RESPONSE and frame.stream == _STREAM:
                    return calls.decode_response(frame.data)
        except OSError as error:
            raise GoneError("The sandbox has ended.") from error
        except calls.CallError as error:
            raise from_wire(error.code, error.message, error.exit_code) from None
        except (frames.FrameError, calls.MalformedError) as error:
            raise ProtocolError(f"The sandbox process broke the protocol: {error}.") from error
        return None


def exchange(
    sock: socket.socket, method: str, params: dict[str, Any], fds: Sequence[int] | None = None
) -> dict[str, Any]:
    """Send one call over ``sock`` and wait for its answer. ``fds`` stay the caller's.

    Raises what the sandbox process reported, or GoneError when it ends meanwhile.
    """
    pending = PendingCall(sock, method, params, fds or ())
    while True:
        result = pending.advance()
        if result is not None:
            return result


def call(sandbox_id: str, method: str, params: dict[str, Any], fds: Sequence[int] | None = None) -> dict[str, Any]:
    """One call to the sandbox process of ``sandbox_id``."""
    with connect(sandbox_id) as sock:
        return exchange(sock, method, params, fds)


def wait_end(sock: socket.socket, timeout: float = 30.0) -> None:
    """Wait until the sandbox process has ended, which closes ``sock``; at most ``timeout`` seconds."""
    sock.settimeout(timeout)
    with contextlib.suppress(OSError):
        while sock.recv(_READ_SIZE):
            pass
