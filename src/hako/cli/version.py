"""``hako version``."""

from __future__ import annotations

from hako.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.cli.options import Parser


def parser() -> Parser:
    """The command line of this verb."""
    from hako.cli.options import Parser

    parser = Parser("version", "Show hako's version.", "[--json]")
    parser.add_argument("--json", action="store_true", help="also what hako uses, as JSON")
    return parser


def main(args: list[str]) -> int:
    """Print the version."""
    # Asked for by programs, often: without options it needs no parser.
    if args and parser().parse_args(args).json:
        _print_json()
    else:
        print(f"hako {__version__}")
    return 0


def _print_json() -> None:
    import json
    import os
    import sys

    from hako.guestimage import api as guestimage
    from hako.wire.calls import PROTOCOL_VERSION

    python = ".".join(map(str, sys.version_info[:3]))
    facts = {
        "version": __version__,
        "python": python,
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "agent_protocol": PROTOCOL_VERSION,
        "guest_image": guestimage.default_digest(),
    }
    print(json.dumps(facts, indent=2))
