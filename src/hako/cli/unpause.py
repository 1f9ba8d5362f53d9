"""``hako unpause``: lets frozen containers go on."""

from __future__ import annotations

from hako.cli import containers, options
from hako.errors import StateError
from hako.sandbox import client, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("unpause", "Let frozen containers go on.", "CONTAINER...")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")
    return parser


def main(args: list[str]) -> int:
    """Thaw the containers."""

    def unpause(ref: str) -> None:
        target = containers.find_running(ref, paused=True)
        if target.status != "paused":
            raise StateError(f"The container {ref} is not paused.")
        client.call(target.sandbox_id, "Resume", requests.target(target.container_id))

    return containers.for_each(parser().parse_args(args).containers, unpause)
