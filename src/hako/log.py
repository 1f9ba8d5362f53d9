"""hako's log: who may say what at which level, and a front that costs nothing until something is said.

The levels, and what belongs there:

- ``error``: what the user asked for did not happen. Said once, by whoever gives up, never on the way there.
- ``warning``: odd but harmless, or a loss the user may want to know of (a clean-up that failed).
- ``info``: a rare change that an operator follows: a sandbox started, a VM died, a template was made.
- ``debug``: everything that repeats: calls, frames, decisions. Tracebacks too.

``log = hako.log.get("qmp")`` then ``log.info("Started.", sandbox=id)``. Values go into the keyword arguments, so
that the JSON format keeps them apart. The standard library's logging (13 ms to import) is loaded when the first
message that passes the level is written, or when the program has loaded it anyway.
"""

from __future__ import annotations

import sys

# The numbers of the standard library's levels.
DEBUG = 10
INFO = 20
WARNING = 30
ERROR = 40

LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
FORMATS = ("text", "json")


class _State:
    """What setup() was told; until then hako is a library and its host program decides what is heard."""

    configured = False
    installed = False
    level = WARNING
    format = "text"
    path: str | None = None
    max_size = 10 << 20


class Log:
    """A named source of messages. Each call is a comparison of two numbers when nobody listens."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, message: str, /, **fields: object) -> None:
        """Say what repeats."""
        self._say(DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        """Say a rare change that an operator follows."""
        self._say(INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        """Say what is odd but harmless."""
        self._say(WARNING, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        """Say that what the user asked for did not happen."""
        self._say(ERROR, message, fields)

    def failure(self, message: str, error: BaseException, /, **fields: object) -> None:
        """Say at ``error`` level that ``error`` ended something; its traceback follows at ``debug``."""
        self._say(ERROR, f"{message} {error}".strip(), fields)
        if enabled(DEBUG):
            import traceback

            self._say(DEBUG, "".join(traceback.format_exception(error)).rstrip(), fields)

    def _say(self, level: int, message: str, fields: dict[str, object]) -> None:
        if not enabled(level):
            return
        install()
        import logging

        logging.getLogger(self.name).log(level, "%s", message, extra={"fields": fields})


def get(name: str = "") -> Log:
    """The source of messages called ``hako.<name>``."""
    return Log(f"hako.{name}" if name else "hako")


def enabled(level: int) -> bool:
    """Whether a message of ``level`` would reach anybody."""
    if _State.configured:
        return level >= _State.level
    return "logging" in sys.modules


def setup(level: str = "info", *, format: str = "text", path: str | None = None, max_size: int = 10 << 20) -> None:
    """Decide for the whole process what is written and where. Called once, by programs only.

    ``path`` is the log file, appended to and turned over at ``max_size`` bytes; None is standard error.
    """
    _State.configured = True
    _State.installed = False
    _State.level = LEVELS[level]
    _State.format = format
    _State.path = path
    _State.max_size = max_size
    if "logging" in sys.modules:
        install()


def install() -> None:
    """Put hako's handler into the standard library's logging, so that libraries' messages go there as well.

    Nothing happens before setup(). Programs that use libraries which log call it after setup().
    """
    if _State.configured and not _State.installed:
        from hako import log_output

        _State.installed = True
        log_output.install(_State.level, _State.format, _State.path, _State.max_size)
