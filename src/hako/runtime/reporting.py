"""What went wrong, said where container engines read it: in the file of ``--log``, in logrus's formats.

Without ``--log`` the entry goes to standard error; with it, the bare sentence does as well, as runc's does.
"""

from __future__ import annotations

import os

from hako import streams
from hako.errors import ConfigError, HakoError
from hako.runtime.texts import local_time, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.runtime.verbs import Call

#: What logrus writes without quotes.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/@^+")
_FORMATS = ("text", "json")


class Report:
    """Where errors go. Before configure() that is standard error, as text."""

    def __init__(self) -> None:
        self._path = ""
        self._format = "text"

    def configure(self, path: str, format: str) -> None:
        """Write to the file ``path``, which is created, unless it is empty. Raises ConfigError."""
        if format not in _FORMATS:
            raise ConfigError(f"invalid log-format: {format}")
        if path:
            # Opened again when there is something to say: what is forked meanwhile must not hold it.
            path = os.path.abspath(path)
            try:
                os.close(_open(path))
            except OSError as error:
                raise ConfigError(f"Cannot open the log {path}: {error.strerror}.") from error
        self._path = path
        self._format = format

    def error(self, message: str) -> None:
        """Report ``message`` at level error. Nothing is raised when nobody can be told."""
        self._say("error", message)

    def warning(self, message: str) -> None:
        """Report ``message`` at level warning. Nothing is raised when nobody can be told."""
        self._say("warning", message)

    def _say(self, level: str, message: str) -> None:
        line = _json(level, message) if self._format == "json" else _text(level, message)
        if not self._path:
            streams.complain(line)
            return
        try:
            fd = _open(self._path)
            try:
                os.write(fd, f"{line}\n".encode(errors="replace"))
            finally:
                os.close(fd)
        except OSError:
            pass
        streams.complain(streams.one_line(message))


def of(call: Call) -> Report:
    """The report that the command line ``call`` asks for. Raises ConfigError."""
    report = Report()
    report.configure(call.globals["log"], call.globals["log-format"])
    return report


def sentence(error: BaseException) -> str:
    """What ``error`` tells the user."""
    if isinstance(error, HakoError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}."
    return f"This is a defect of hako: {type(error).__name__}: {error}; hako-runtime --debug shows where."


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _text(level: str, message: str) -> str:
    shown = message if _PLAIN.issuperset(message) else quote(message)
    return f'time="{local_time()}" level={level} msg={shown}'


def _json(level: str, message: str) -> str:
    from hako.wire import jsontext

    # What is not UTF-8 becomes what Go's decoder would make of it.
    clean = message.encode(errors="surrogateescape").decode(errors="replace")
    return jsontext.dumps({"level": level, "msg": clean, "time": local_time()}).decode()
