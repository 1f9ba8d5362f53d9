"""``hako update``: changes the limits of running containers; their VMs grow and shrink with them."""

from __future__ import annotations

from hako.cli import containers, options
from hako.sandbox import client, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    about = "Change the limits of running containers. Their virtual machines grow and shrink with them."
    parser = options.Parser("update", about, "[OPTIONS] CONTAINER...")
    parser.add_argument("-m", "--memory", default=None, metavar="SIZE", help="limit of the memory, for example 512m")
    parser.add_argument("--cpus", default=None, metavar="NUMBER", help="limit of CPU time, for example 1.5")
    parser.add_argument(
        "--pids-limit", type=int, default=None, metavar="NUMBER", help="how many processes there may be"
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")
    return parser


def main(args: list[str]) -> int:
    """Change the limits."""
    asked = parser().parse_args(args)
    cpus = None if asked.cpus is None else options.parse_cpus(asked.cpus)
    resources = requests.resources(asked.memory, cpus, asked.pids_limit)

    def update(ref: str) -> None:
        target = containers.find_running(ref)
        client.call(target.sandbox_id, "Update", requests.target(target.container_id, resources=resources))

    return containers.for_each(asked.containers, update)
