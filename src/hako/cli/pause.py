"""``hako pause``: freezes all processes of containers."""

from __future__ import annotations

from hako.cli import containers, options
from hako.sandbox import client, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("pause", "Freeze all processes of running containers.", "CONTAINER...")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")
    return parser


def main(args: list[str]) -> int:
    """Freeze the containers."""

    def pause(ref: str) -> None:
        target = containers.find_running(ref)
        client.call(target.sandbox_id, "Pause", requests.target(target.container_id))

    return containers.for_each(parser().parse_args(args).containers, pause)
