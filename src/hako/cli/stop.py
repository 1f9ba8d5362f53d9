"""``hako stop``: the container's stop signal, some time to heed it, then SIGKILL."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from typing import Any

from hako.cli import containers, options
from hako.cli.run import STOP_SIGNAL
from hako.errors import HakoError
from hako.sandbox import client, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    about = "Ask containers to end (SIGTERM, or what their image says), and kill those that do not."
    parser = options.Parser("stop", about, "[-t SECONDS] CONTAINER...")
    parser.add_argument("-t", "--time", type=options.positive_seconds, default=10.0, metavar="SECONDS",
        help="how long to wait before killing (default: 10)")  # fmt: skip
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")
    return parser


def main(args: list[str]) -> int:
    """Stop the containers one after the other."""
    asked = parser().parse_args(args)
    return containers.for_each(asked.containers, lambda ref: stop(containers.find(ref), asked.time))


def stop(target: containers.Target, seconds: float) -> None:
    """Stop ``target`` and wait until it has ended; a sandbox of its own has gone then, too. A stopped one is fine."""
    if not target.is_live:
        return
    with contextlib.suppress(client.GoneError):
        if target.status in ("running", "paused", "created") and target.record:
            _end_container(target, seconds)
        if target.is_whole or not target.record:
            stop_sandbox(target.sandbox_id)


def stop_sandbox(sandbox_id: str) -> None:
    """End the VM with everything in it, and wait until it is gone."""
    with contextlib.suppress(client.GoneError), client.connect(sandbox_id) as sock:
        client.exchange(sock, "Stop", {})
        client.wait_end(sock)


def _end_container(target: containers.Target, seconds: float) -> None:
    name = target.state["spec"].get("labels", {}).get(STOP_SIGNAL) if target.is_whole else None
    number = options.parse_signal(name) if name else int(signal.SIGTERM)
    with client.connect(target.sandbox_id) as sock:
        call = client.PendingCall(sock, "Wait", requests.target(target.container_id))
        _signal(target, number)
        if target.status == "paused":
            # Frozen processes take signals when they go on.
            _call(target, "Resume")
        if not _ended(sock, call, seconds):
            _signal(target, int(signal.SIGKILL))
            _ended(sock, call, 30)


def _ended(sock: socket.socket, call: client.PendingCall, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            if call.advance() is not None:
                return True
        except client.GoneError as error:
            if not isinstance(error.__cause__, TimeoutError):
                return True
    return False


def _signal(target: containers.Target, number: int) -> None:
    _call(target, "Kill", signal=number)


def _call(target: containers.Target, method: str, **params: Any) -> None:
    # It may have ended by itself just now.
    with contextlib.suppress(HakoError):
        client.call(target.sandbox_id, method, requests.target(target.container_id, **params))
