"""``hako check``: whether this host can run VMs."""

from __future__ import annotations

import sys

from hako.cli import options


def parser() -> options.Parser:
    """The command line of this verb."""
    about = (
        "Tell whether this host can run virtual machines, and what to do if it cannot. The exit code is 2 when it "
        "cannot, 1 for warnings."
    )
    parser = options.Parser("check", about, "[--json]")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def main(args: list[str]) -> int:
    """Print the findings."""
    asked = parser().parse_args(args)
    from hako.check.report import run_check

    return run_check(asked.json, sys.stdout)
