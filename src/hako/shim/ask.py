"""Having the shims' zygote make a shim, which takes half as long as doing that oneself; see zygote.py.

The first ``start`` finds none, does without, and leaves one for the next. What both make is the same.
Imports next to nothing, for containerd waits.
"""

from __future__ import annotations

import os

from hako.errors import StateError
from hako.sandbox import trace, zygotes
from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.config.settings import Config
    from hako.shim.call import Call

_KIND = "shim"
_PROGRAM = "from hako.shim.zygote import main; main()"
_MAX_ANSWER = 1 << 20


def ask(call: Call) -> bytes | None:
    """Have a shim made for ``call``; returns what to print, None when there is no zygote. Raises HakoError."""
    connection = zygotes.connect(_KIND)
    if connection is None:
        return None
    from hako.shim.call import read_input

    so_far = trace.of_process("shim")
    so_far.begin("fork", "command")
    request = {
        "call": call.to_json(),
        "input": read_input().decode("latin-1"),
        "environment": dict(os.environ),
        "caller": os.getppid(),
        "spans": so_far.spans,
    }
    said = b""
    try:
        connection.sendall(jsontext.dumps(request) + b"\n")
        while len(said) < _MAX_ANSWER and (piece := connection.recv(1 << 16)):
            said += piece
        answer = jsontext.loads(said)
    except (OSError, ValueError):
        raise StateError(f"The process that was to be the shim of {call.id} has ended.") from None
    finally:
        connection.close()
    if "error" in answer:
        raise StateError(answer["error"])
    return str(answer["answer"]).encode("latin-1")


def leave_zygote(config: Config) -> None:
    """Start a zygote for the next ``start``, if that is wanted. It is only for speed, so nothing is raised."""
    from hako import log
    from hako.errors import HakoError

    if not config.shim.zygote:
        return
    try:
        zygotes.start(_KIND, _PROGRAM, config.template.keep)
    except (OSError, HakoError) as error:
        log.get("shim").debug(f"No zygote can be started: {error}")
