"""``hako template``: frozen VMs that others are cloned from."""

from __future__ import annotations

import argparse
import sys

from hako import units
from hako.cli import options, tables
from hako.config.load import load
from hako.sandbox import zygotes
from hako.template import api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from hako.template.files import Template

_ABOUT = "Templates: frozen virtual machines that others are cloned from. They are made when they are first needed."
_REF = "a template's key or its start"


def parser() -> options.Parser:
    """The command line of this verb; ``parse_args().action`` says which of its own verbs."""
    whole = options.Parser("template", _ABOUT, "build|list|inspect|verify|remove [OPTIONS]")
    verbs = whole.add_subparsers(
        dest="action", metavar="", parser_class=options.SubParser, prog="hako template", title="verbs"
    )
    build = verbs.add_parser("build", help="make the one that the configuration asks for, if there is none yet")
    build.add_argument("--anew", action="store_true", help="make it even if there is one")
    listing = verbs.add_parser("list", help="list them, the last used first")
    listing.add_argument("-q", "--quiet", action="store_true", help="keys only")
    for name, about in (("inspect", "show all that is known of one, as JSON"), ("verify", "compare its checksums")):
        verbs.add_parser(name, help=about).add_argument("template", metavar="TEMPLATE", help=_REF)
    remove = verbs.add_parser("remove", help="remove templates; running VMs go on")
    remove.add_argument("-a", "--all", action="store_true", help="all of them")
    remove.add_argument("templates", metavar="TEMPLATE", nargs="*", help=_REF)
    return whole


def main(args: list[str]) -> int:
    """Do what the second word says."""
    whole = parser()
    asked = whole.parse_args(args)
    if asked.action is None:
        whole.error("template needs a verb: build, list, inspect, verify or remove")
    if asked.action == "remove" and bool(asked.templates) == asked.all:
        whole.error("name the templates to remove, or --all")
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "build": _build,
        "list": _list,
        "inspect": _inspect,
        "verify": _verify,
        "remove": _remove,
    }
    return actions[asked.action](asked)


def _build(asked: argparse.Namespace) -> int:
    import asyncio

    from hako.sandbox.machine import make_template

    print("Booting a virtual machine to make a template of it, if there is none ...", file=sys.stderr, flush=True)
    print(asyncio.run(make_template(load(), anew=asked.anew)).key)
    return 0


def _list(asked: argparse.Namespace) -> int:
    found = sorted(api.list_templates(load().template), key=lambda entry: entry[1].used_ns() if entry[1] else 0)
    if asked.quiet:
        for key, _ in reversed(found):
            print(key)
        return 0
    print(tables.table(_HEADER, [_row(key, template) for key, template in reversed(found)]))
    return 0


_HEADER = ("KEY", "IMAGE", "ACCELERATOR", "SHARE", "VM", "SIZE", "MADE", "USED", "HELD BY")


def _row(key: str, template: Template | None) -> tuple[str, ...]:
    if template is None:
        return (key[:12], "damaged", *[""] * (len(_HEADER) - 2))
    what = template.identity
    pid = api.holder(key)
    return (
        key[:12],
        str(what.get("image", ""))[:12],
        str(what.get("accelerator", "")),
        "virtiofs" if what.get("sharing") == "shared" else "9p",
        units.format_size(template.memory.size),
        units.format_size(template.size),
        f"{tables.since(template.created_ns)} ago",
        f"{tables.since(template.used_ns())} ago",
        str(pid or ""),
    )


def _inspect(asked: argparse.Namespace) -> int:
    import json

    template = api.get(load().template, asked.template)
    print(json.dumps(template.describe() | {"holder": api.holder(template.key) or 0}, indent=2))
    return 0


def _verify(asked: argparse.Namespace) -> int:
    print(api.verify(load().template, asked.template).key)
    return 0


def _remove(asked: argparse.Namespace) -> int:
    settings = load().template
    names = [key for key, _ in api.list_templates(settings)] if asked.all else asked.templates
    for name in names:
        print(api.remove(settings, name), flush=True)
    if asked.all:
        # Nothing of what stays for the next start is left then.
        api.release_all()
        zygotes.stop_all()
    return 0
