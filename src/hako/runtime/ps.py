"""``hako-runtime ps``: the processes of a container.

As JSON these are the processes of the host that stand for the container's: engines look for them in the host's own
list. The table shows what runs in the VM, numbered as the container sees it, in the columns of ``ps -ef``.
"""

from __future__ import annotations

import sys

from hako.errors import ConfigError
from hako.runtime import containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.runtime.verbs import Call

#: Ticks in a second, in the guest.
_TICKS = 100
#: Options of ps that ask for what is shown anyway.
_SHOWN_ANYWAY = {"-e", "-A", "-f", "-ef", "-fe", "-Af", "-fA", "ef"}
_LINE = "{:<8} {:>7} {:>7} {:>2} {:<5} {:<8} {:>8} {}\n"
_HEADER = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")


def main(call: Call) -> int:
    """Print them."""
    container = containers.find(call.root, call.args[0])
    if call.options["format"] == "json":
        from hako.wire import jsontext

        pids = containers.call(container, "Holders", {})["pids"] if _lives(container) else None
        text = jsontext.dumps(pids).decode() + "\n"
    elif call.options["format"] == "table":
        _check_options(call.args[1:])
        text = table(containers.call(container, "Ps", {})["processes"] if _lives(container) else [])
    else:
        raise ConfigError("invalid format option")
    sys.stdout.write(text)
    return 0


def table(processes: list[dict[str, Any]]) -> str:
    """``ps -ef`` of the processes that the sandbox reported. What the guest does not tell is shown as ``-``."""
    inside = {process["pid"]: process["container_pid"] for process in processes}
    lines = [_LINE.format(*_HEADER)]
    for process in processes:
        command = "".join(char if char.isprintable() else "?" for char in process["command"])
        # A parent outside the container is 0, as the container sees it.
        parent = inside.get(process["ppid"], 0)
        row = (process["uid"], process["container_pid"], parent, "-", "-", "?", _time(process["ticks"]), command)
        lines.append(_LINE.format(*row))
    return "".join(lines)


def _lives(container: containers.Container) -> bool:
    return containers.status(container) != "stopped"


def _time(ticks: int) -> str:
    minutes, seconds = divmod(max(ticks, 0) // _TICKS, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}"


def _check_options(words: list[str]) -> None:
    for word in words:
        if word not in _SHOWN_ANYWAY:
            raise ConfigError(
                f"hako-runtime ps cannot honour the option {word} of ps: the processes are in a VM; "
                "leave it out for the columns of `ps -ef`."
            )
