"""``hako logs``: what a container has written, standard output to standard output and errors to standard error."""

from __future__ import annotations

import select
import time
from collections import deque

from hako.cli import containers, options, tables
from hako.cli.inspect import log_path
from hako.cli.terminal import write_all
from hako.errors import ConfigError
from hako.sandbox import client, logs, requests
from hako.sandbox.logs import STDERR, STDOUT, Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Pause between looks at the log, milliseconds.
_PACE = 100
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parser() -> options.Parser:
    """The command line of this verb."""
    about = "Show what a container has written. The newest part is kept; log.max_size says how much."
    parser = options.Parser("logs", about, "[OPTIONS] CONTAINER")
    add = parser.add_argument
    add("-f", "--follow", action="store_true", help="go on with what is written from now on, until the container ends")
    add("-n", "--tail", default="all", metavar="LINES", help="only the last lines")
    add("-t", "--timestamps", action="store_true", help="begin each line with its time")
    add("--since", default="", metavar="TIME", help="only what was written since: 10m or 1h30m ago, or a date")
    add("container", metavar="CONTAINER")
    return parser


def main(args: list[str]) -> int:
    """Print the log."""
    asked = parser().parse_args(args)
    tail = parse_tail(asked.tail)
    since = parse_since(asked.since) if asked.since else 0
    target = containers.find_container(asked.container)
    path = log_path(target)
    printer = Printer(timestamps=asked.timestamps)
    follows = asked.follow and target.is_live and target.status != "stopped"
    with logs.LogReader(path) as reader:
        present = (entry for entry in reader.entries() if entry.time_ns >= since)
        if tail is None:
            printer.all(present)
        else:
            printer.tail(present, tail)
        for _ in _alive(target) if follows else ():
            printer.all(reader.entries())
        if follows:  # the last words
            printer.all(reader.entries())
    return 0


def _alive(target: containers.Target) -> Iterator[bool]:
    """True after each pause while the container runs; the iterator ends with the container."""
    try:
        with client.connect(target.sandbox_id) as sock:
            call = client.PendingCall(sock, "Wait", requests.target(target.container_id))
            poll = select.poll()
            poll.register(call, select.POLLIN)
            while not poll.poll(_PACE) or call.advance() is None:
                yield True
    except client.GoneError:
        return


class Printer:
    """Writes entries to standard output and standard error, each byte as it was, or each line with its time."""

    def __init__(self, *, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._in_line = {STDOUT: False, STDERR: False}

    def all(self, entries: Iterable[Entry]) -> None:
        """Write ``entries``."""
        for entry in entries:
            self._write(entry)

    def tail(self, entries: Iterable[Entry], lines: int) -> None:
        """Write the last ``lines`` lines of ``entries``, those of both streams counted together."""
        kept: deque[Entry] = deque(maxlen=lines)
        open_lines: dict[int, Entry] = {}
        for entry in entries:
            for piece in _split(entry.data):
                begun = open_lines.pop(entry.stream, None)
                line = entry._replace(data=piece) if begun is None else begun._replace(data=begun.data + piece)
                if piece.endswith(b"\n"):
                    kept.append(line)
                else:
                    open_lines[entry.stream] = line
        kept.extend(sorted(open_lines.values()))
        self.all(kept)

    def _write(self, entry: Entry) -> None:
        data = self._with_times(entry) if self._timestamps else entry.data
        write_all(1 if entry.stream == STDOUT else 2, data)

    def _with_times(self, entry: Entry) -> bytes:
        stamp = tables.timestamp(entry.time_ns).encode() + b" "
        parts = []
        for piece in _split(entry.data):
            if not self._in_line[entry.stream]:
                parts.append(stamp)
            parts.append(piece)
            self._in_line[entry.stream] = not piece.endswith(b"\n")
        return b"".join(parts)


def _split(data: bytes) -> list[bytes]:
    """Lines with their line feeds; unlike splitlines() nothing but a line feed ends one."""
    pieces = [piece + b"\n" for piece in data.split(b"\n")]
    last = pieces.pop()[:-1]
    return [*pieces, last] if last else pieces


def parse_tail(text: str) -> int | None:
    """A number of lines, None for all. Raises ConfigError."""
    if text in ("all", "-1"):
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    raise ConfigError(f"--tail {text!r} is not a number of lines.")


def parse_since(text: str) -> int:
    """Nanoseconds since 1970 for a duration before now, a date or seconds since 1970. Raises ConfigError."""
    import re
    from datetime import UTC, datetime

    if re.fullmatch(r"(\d+[smhd])+", text):
        seconds = sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))
        return time.time_ns() - seconds * 10**9
    if re.fullmatch(r"\d{1,11}(\.\d+)?", text):
        return int(float(text) * 1e9)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--since {text!r} is not a time: write a duration such as 10m or 1h30m, a date such as "
            "2026-01-31T12:00:00Z, or seconds since 1970."
        ) from None
    if when.tzinfo is None:
        when = when.astimezone()
    return int(when.astimezone(UTC).timestamp() * 1e9)
