"""Calling a sandbox process: blocking, without asyncio, for command lines and scripts.

Each call has a connection of its own, so calls from several threads never wait for each other.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from hako import paths
from hako.errors import NotFoundError, ProtocolError, from_wire
from hako.wire import calls, frames

_READ_SIZE = 256 << 10


def socket_path(sandbox_id: str) -> str:
    """The control socket of a sandbox."""
    return os.path.join(paths.sandboxes_dir(), sandbox_id, "control.sock")


def connect(sandbox_id: str) -> socket.socket:
    """A connection to the sandbox process. Raises NotFoundError when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = -1
    try:
        # Through a descriptor, because a socket's address is limited to 107 bytes.
        directory = os.open(os.path.dirname(socket_path(sandbox_id)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock.connect(f"/proc/self/fd/{directory}/control.sock")
    except OSError as error:
        sock.close()
        raise NotFoundError(f"Sandbox {sandbox_id} is not running.") from error
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


def exchange(sock: socket.socket, method: str, params: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
    """Send one call over ``sock`` and wait for its answer. ``fds`` stay the caller's.

    Raises what the sandbox process reported, or NotFoundError when it ends meanwhile.
    """
    fds = fds or []
    data = frames.encode(1, frames.REQUEST, calls.encode_request(method, {**params, "fds": len(fds)}))
    try:
        sent = socket.send_fds(sock, [data], fds) if fds else sock.send(data)
        if sent < len(data):
            sock.sendall(data[sent:])
        decoder = frames.Decoder(calls.MAX_CALL)
        while True:
            received = sock.recv(_READ_SIZE)
            if not received:
                raise NotFoundError("The sandbox has ended.")
            for frame in decoder.feed(received):
                if frame.kind == frames.RESPONSE:
                    return calls.decode_response(frame.data)
    except OSError as error:
        raise NotFoundError("The sandbox has ended.") from error
    except calls.CallError as error:
        raise from_wire(error.code, error.message, error.exit_code) from None
    except (frames.FrameError, calls.MalformedError) as error:
        raise ProtocolError(f"The sandbox process broke the protocol: {error}.") from error


def call(sandbox_id: str, method: str, params: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
    """One call to the sandbox process of ``sandbox_id``."""
    with connect(sandbox_id) as sock:
        return exchange(sock, method, params, fds)


def wait_end(sock: socket.socket, timeout: float = 30.0) -> None:
    """Wait until the sandbox process has ended, which closes ``sock``; at most ``timeout`` seconds."""
    sock.settimeout(timeout)
    with contextlib.suppress(OSError):
        while sock.recv(_READ_SIZE):
            pass
