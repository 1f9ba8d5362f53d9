"""``hako pool``: virtual machines that are ready before they are asked for."""

from __future__ import annotations

import argparse
import sys
import time

from hako import units
from hako.cli import options, tables
from hako.config.load import load
from hako.errors import HostError, TimedOutError
from hako.sandbox import pool, refill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ABOUT = (
    "The warm pool: virtual machines that are ready before they are asked for, as many as the setting pool.size says. "
    "Each start takes one and has another one made."
)
_HEADER = ("ID", "PID", "VM PID", "STATUS", "AGE", "TEMPLATE", "SHARE", "MEMORY", "PSS")
_POLL = 0.05


def parser() -> options.Parser:
    """The command line of this verb; ``parse_args().action`` says which of its own verbs."""
    whole = options.Parser("pool", _ABOUT, "list|fill|drain [OPTIONS]")
    verbs = whole.add_subparsers(
        dest="action", metavar="", parser_class=options.SubParser, prog="hako pool", title="verbs"
    )
    listing = verbs.add_parser("list", help="list them, the oldest first")
    listing.add_argument("-q", "--quiet", action="store_true", help="ids only")
    listing.add_argument("--format", choices=("table", "json"), default="table", help="table or json")
    verbs.add_parser("fill", help="replace those that are outdated, make what is missing, and wait for them")
    verbs.add_parser("drain", help="end all of them and wait; the next start fills the pool again")
    return whole


def main(args: list[str]) -> int:
    """Do what the second word says."""
    whole = parser()
    asked = whole.parse_args(args)
    if asked.action is None:
        whole.error("pool needs a verb: list, fill or drain")
    actions: dict[str, Callable[[argparse.Namespace], int]] = {"list": _list, "fill": _fill, "drain": _drain}
    return actions[asked.action](asked)


def _list(asked: argparse.Namespace) -> int:
    found = pool.entries()
    if asked.quiet:
        for entry in found:
            print(entry.id)
    elif asked.format == "json":
        import json

        print(json.dumps([{**entry.state, "pss": _pss(entry)} for entry in found], indent=2))
    else:
        print(tables.table(_HEADER, [_row(entry) for entry in found]))
    return 0


def _row(entry: pool.Entry) -> tuple[str, ...]:
    state = entry.state
    info = state.get("info")
    info = info if isinstance(info, dict) else {}
    memory = info.get("memory")
    pss = _pss(entry)
    return (
        entry.id,
        str(entry.pid or ""),
        str(state.get("vm_pid") or ""),
        str(state.get("status", "")),
        tables.since(int(state["created_ns"])),
        str(info.get("template", ""))[:12],
        str(info.get("share", "")),
        units.format_size(memory) if type(memory) is int else "",
        units.format_size(pss) if pss else "",
    )


def _pss(entry: pool.Entry) -> int:
    """Memory of the host that process and VM take, pages that they share with others in part; in bytes."""
    from hako.cli.stats import pss

    vm_pid = entry.state.get("vm_pid")
    return sum(pss(pid) for pid in (entry.pid, vm_pid) if type(pid) is int and pid > 0)


def _fill(_asked: argparse.Namespace) -> int:
    config = load()
    if not config.pool.size:
        raise HostError("The pool is switched off; set pool.size to more than 0 in the configuration.")
    refill.check()
    print(f"Filling the pool up to {config.pool.size} ...", file=sys.stderr, flush=True)
    refill.fill(config, asked=True)
    deadline = time.monotonic() + config.sandbox.start_timeout * config.pool.size
    while True:
        found = pool.entries()
        ready = [entry for entry in found if entry.ready]
        if len(ready) >= config.pool.size:
            break
        if reason := refill.last_failure():
            raise HostError(f"A virtual machine for the pool could not be made: {reason.rstrip('.')}.")
        if len(ready) == len(found):
            refill.fill(config, asked=True)  # one has gone meanwhile, or a start has taken it
        if time.monotonic() > deadline:
            raise TimedOutError("The virtual machines of the pool do not get ready; see hako pool list.")
        time.sleep(_POLL)
    for entry in ready:
        print(entry.id)
    return 0


def _drain(_asked: argparse.Namespace) -> int:
    count = refill.drain()
    print(f"{count} virtual machine{'' if count == 1 else 's'} ended.", file=sys.stderr)
    return 0
