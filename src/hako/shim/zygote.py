"""The shims' zygote: makes and is the shim that ``start`` asks it for, see hako.sandbox.zygote and ask.py."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from hako.errors import HakoError, sentence
from hako.linux.title import set_title
from hako.network import tap
from hako.sandbox import daemon, zygote
from hako.sandbox.trace import Trace
from hako.shim import bootstrap, making
from hako.shim.call import Call
from hako.shim.face import Face
from hako.wire import jsontext


def main() -> None:
    """Be the zygote."""
    zygote.main(_Shims())


class _Shims:
    """What the zygote does; see hako.sandbox.zygote."""

    def load(self) -> None:
        """Load whatever a shim needs in its life, which takes less memory than if each does."""
        daemon.load_modules()
        daemon.load_engine()
        import shutil  # noqa: F401

        from hako.hypervisor import qmp  # noqa: F401
        from hako.shim import shim, shimlog  # noqa: F401

    def prepare(self) -> None:
        """Make a tap device. Without one the next shim makes its own."""
        from hako.sandbox import vm

        with contextlib.suppress(HakoError):
            tap.keep_spare(vm.network_queues())

    def forked(self) -> None:
        """The tap is another's."""
        tap.give_spare_away()

    def live(self, connection: socket.socket, request: dict[str, Any]) -> None:
        """Make the shim that ``start`` asks for at the other end of ``connection``, and be it."""
        os.environ.clear()
        os.environ.update(request["environment"])
        try:
            _be(connection, request)
        except Exception as error:
            connection.sendall(jsontext.dumps({"error": sentence(error)}))


def _be(connection: socket.socket, request: dict[str, Any]) -> None:
    call = Call(**request["call"])
    set_title(f"containerd-shim-hako-v2 -namespace {call.namespace} -id {call.id} -address {call.address} start")
    so_far = Trace()
    so_far.spans = request["spans"]
    given = bootstrap.parse(call, request["input"].encode("latin-1"))
    planned = making.plan(call, given)
    answer = given.answer(planned.address, request["caller"])

    def tell() -> None:
        connection.sendall(jsontext.dumps({"answer": answer.decode("latin-1")}))
        connection.close()

    with making.made(call, planned) as (sandbox, listener):
        face = Face(call, planned.spec, listener, planned.address)
        kept = (listener.fileno(), *tap.spare_fds())
        daemon.turn_into(sandbox, planned.config, face, kept, so_far, tell)
