"""``hako trace``: what a container's start took its time for."""

from __future__ import annotations

import os
import sys
from typing import Any

from hako.cli import containers, options, timeline
from hako.errors import ConfigError, HakoError, NotFoundError

_EPILOG = (
    "Lanes say who was at work: the command, the sandbox process, the VM, or what was done for the container. A "
    "container that was run with --rm leaves no trace when it has ended: hako run --trace FILE writes it down."
)


def parser() -> options.Parser:
    """The command line of this verb."""
    about = "Show what the start of a container took its time for."
    parser = options.Parser("trace", about, "[OPTIONS] CONTAINER", _EPILOG)
    add = parser.add_argument
    add("--json", default="", metavar="FILE", help="write Chrome trace JSON instead, for Perfetto; - is the output")
    add("--html", default="", metavar="FILE", help="write a page with a picture instead; - is the output")
    add("container", metavar="CONTAINER")
    return parser


def main(args: list[str]) -> int:
    """Print the waterfall, or write what is asked for."""
    asked = parser().parse_args(args)
    if asked.json and asked.json == asked.html:
        raise ConfigError("--json and --html cannot go to the same place; name two files.")
    found = find(asked.container)
    if asked.json:
        write(asked.json, chrome_text(found))
    if asked.html:
        from hako.cli import picture

        write(asked.html, picture.render(found))
    if not asked.json and not asked.html:
        _print(found)
    return 0


def find(ref: str) -> timeline.Timeline:
    """The start of the container ``ref``. Raises NotFoundError, ConfigError, StateError when it is damaged."""
    try:
        target = containers.find(ref)
    except NotFoundError as error:
        raise NotFoundError(
            f"{error} A container that was run with --rm leaves no trace; hako run --trace FILE writes it down."
        ) from error
    state, record = _latest(target)
    # A sandbox that has begun but not saved anything yet has none.
    sandbox = timeline.parse(state.get("trace", []), target.id)
    own = timeline.parse(record.get("trace", []), target.id)
    return timeline.build(title(target), timeline.of_container(sandbox, own, whole=target.is_whole))


def title(target: containers.Target) -> str:
    """What the container is called on top of a trace."""
    return f"{target.name} ({target.short_id})" if target.name else target.short_id


def _latest(target: containers.Target) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and record: from the sandbox process, which writes down some phases later, or else from disk."""
    from hako.sandbox import client

    if target.is_live:
        try:
            state = client.call(target.sandbox_id, "State", {}).get("state")
        except HakoError:  # it has ended just now
            return target.state, target.record
        known = state.get("containers") if isinstance(state, dict) else None
        record = known.get(target.container_id, {}) if isinstance(known, dict) else None
        if isinstance(state, dict) and isinstance(record, dict):
            return state, record
    return target.state, target.record


def chrome_text(found: timeline.Timeline) -> str:
    """Chrome trace JSON."""
    import json

    return json.dumps(timeline.chrome(found)) + "\n"


def _print(found: timeline.Timeline) -> None:
    import shutil

    from hako.cli import waterfall

    tty = sys.stdout.isatty()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    fancy = tty and encoding == "utf8" and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    print(waterfall.render(found, shutil.get_terminal_size((100, 24)).columns, fancy=fancy))


def check_writable(path: str, option: str) -> None:
    """Refuse a file that could not be written later. Raises ConfigError."""
    directory = os.path.dirname(os.path.abspath(path))
    there = os.path.exists(path)
    if os.path.isdir(path) or not os.path.isdir(directory) or not os.access(path if there else directory, os.W_OK):
        raise ConfigError(f"{option} {path}: a file cannot be written there; name one in a directory that exists.")


def write(path: str, text: str) -> None:
    """Write ``text`` to the file ``path``, which may be a device or a pipe; ``-`` is the standard output."""
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)


def write_answer(path: str, spans: object, name: str) -> None:
    """For ``hako run --trace``: write the phases that the sandbox process has answered with.

    Fails with a line on standard error alone, for the container has done its work.
    """
    from hako.cli.main import complain

    try:
        write(path, chrome_text(timeline.build(name, timeline.parse(spans, name))))
    except HakoError as error:
        complain(str(error))
    except OSError as error:
        complain(f"Cannot write the trace to {path}: {error.strerror}.")
