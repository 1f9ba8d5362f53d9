"""How log messages are written: text or JSON lines, to standard error or to a file that is turned over by size.

Only hako.log imports this, when something is to be written: it loads the standard library's logging.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
import time

_installed: list[logging.Handler] = []


class _Text(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO  hako.qmp: Message. key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_plain(value)}" for key, value in _fields(record).items())
        return f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}{fields}"


class _Json(logging.Formatter):
    """One object a line with ``level``, ``msg`` and ``time``, the names that container engines look for."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
            "time": _time(record),
            "source": record.name,
        }
        return json.dumps({**_fields(record), **line}, default=str, ensure_ascii=False)


class _File(logging.Handler):
    """Appends whole lines to a file that several processes may share, and turns it over at a size."""

    def __init__(self, path: str, max_size: int) -> None:
        super().__init__()
        self._path = path
        self._max_size = max_size
        self._fd = _open(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
            os.write(self._fd, line)  # one write with O_APPEND: lines of several processes do not mix
            if os.fstat(self._fd).st_size >= self._max_size:
                self._turn_over()
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        super().close()

    def _turn_over(self) -> None:
        # Whoever shares the file may have turned it over already: then only the new one is opened.
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                os.replace(self._path, self._path + ".1")
        fresh = _open(self._path)
        os.close(self._fd)
        self._fd = fresh


def install(level: int, format: str, path: str | None, max_size: int) -> None:
    """Make a handler with these properties the only one of the root logger that hako has put there."""
    root = logging.getLogger()
    for old in _installed:
        root.removeHandler(old)
        old.close()
    handler = logging.StreamHandler(sys.stderr) if path is None else _File(path, max_size)
    handler.setFormatter(_Json() if format == "json" else _Text())
    _installed[:] = [handler]
    root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = False  # a full disk must not fill standard error with tracebacks


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _plain(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
