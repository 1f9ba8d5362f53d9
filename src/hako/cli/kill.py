"""``hako kill``: a signal for containers."""

from __future__ import annotations

from hako.cli import containers, options
from hako.sandbox import client, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("kill", "Send a signal to the first process of containers.", "[-s SIGNAL] CONTAINER...")
    parser.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="name or number (default: KILL)")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")
    return parser


def main(args: list[str]) -> int:
    """Signal the containers."""
    asked = parser().parse_args(args)
    number = options.parse_signal(asked.signal)

    def kill(ref: str) -> None:
        target = containers.find_running(ref, paused=True)
        client.call(target.sandbox_id, "Kill", requests.target(target.container_id, signal=number))

    return containers.for_each(asked.containers, kill)
