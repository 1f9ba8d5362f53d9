"""The entry point of ``containerd-shim-hako-v2``: the command line that containerd and CRI-O start.

containerd reads what ``start`` prints on both of its streams, so nothing but the answer, or one sentence of what is
wrong, may be written. Facts: containerd's docs/runtime-v2.md and pkg/shim.
"""

from __future__ import annotations

import gc
import os
import sys

from hako import streams
from hako.errors import ConfigError, sentence
from hako.runtime import flags
from hako.runtime.flags import Flag
from hako.shim.call import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_FLAGS = (
    Flag("namespace"),
    Flag("id"),
    Flag("address"),
    Flag("publish-binary"),
    Flag("bundle"),
    Flag("socket"),
    Flag("debug", "bool"),
    Flag("info", "bool"),
    Flag("v", "bool"),
    Flag("version", "bool"),
)
#: One of containerd's ids, as long as file names can be.
_MAX_ID = 255


def command() -> NoReturn:
    """The program ``containerd-shim-hako-v2``. The interpreter's own tidying up would only take time."""
    gc.disable()  # so would looking for garbage while modules are loaded
    status = main()
    try:
        sys.stderr.flush()
    finally:
        os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run it with the words ``argv`` (by default those of the command line); returns the exit code."""
    streams.open_missing()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except Exception as error:
        sys.stderr.write(f"containerd-shim-hako-v2: {sentence(error)}\n")
        return 1


def _run(words: list[str]) -> int:
    options, verbs = flags.parse(_FLAGS, words)
    if options["v"] or options["version"]:
        from hako.shim import info

        return info.print_version()
    if options["info"]:
        from hako.shim import info

        return info.main()
    if verbs not in (["start"], ["delete"]):
        raise ConfigError(
            "containerd runs this program as `containerd-shim-hako-v2 -namespace NS -id ID -address SOCKET start` or "
            "`… delete`; to run containers by hand use hako, or `ctr run --runtime io.containerd.hako.v2`."
        )
    call = Call.from_options(options)
    _check_name("-namespace", call.namespace)
    _check_name("-id", call.id)
    if verbs == ["start"]:
        from hako.cgroup.hurry import hurry

        hurry()
        from hako.shim import start

        return start.main(call)
    from hako.shim import delete

    return delete.main(call)


def _check_name(flag: str, value: str) -> None:
    """Refuse what could lead to another directory when it becomes part of a path. Raises ConfigError."""
    if not value or len(value) > _MAX_ID or "/" in value or not value.isprintable() or value in (".", ".."):
        raise ConfigError(f"{flag} {value!r} is not a name; containerd gives one.")
