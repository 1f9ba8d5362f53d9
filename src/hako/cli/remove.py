"""``hako rm``: forgets stopped containers with their layers and logs."""

from __future__ import annotations

import contextlib

from hako.cli import containers, options
from hako.cli.stop import stop_sandbox
from hako.errors import NotFoundError, StateError
from hako.sandbox import client, records, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("rm", "Remove containers with everything they left.", "[-f] CONTAINER...")
    parser.add_argument("-f", "--force", action="store_true", help="also running ones, which are killed")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")
    return parser


def main(args: list[str]) -> int:
    """Remove the containers one after the other."""
    asked = parser().parse_args(args)
    return containers.for_each(asked.containers, lambda ref: remove(ref, force=asked.force))


def remove(ref: str, *, force: bool) -> None:
    """Remove the container that ``ref`` means. Raises StateError for a running one without ``force``."""
    if "/" not in ref:
        state = records.find(ref)
        if state["status"] == "stopped":
            records.remove(state)  # with all the containers that it had
            return
    target = containers.find(ref)
    if target.is_live and target.status != "stopped" and not force:
        raise StateError(f"The container {ref} is {target.status}: stop it first, or remove it with -f.")
    if target.record and not target.is_whole:
        _remove_one(target)
        return
    stop_sandbox(target.sandbox_id)
    with contextlib.suppress(NotFoundError):
        records.remove(records.read(target.sandbox_id))


def _remove_one(target: containers.Target) -> None:
    """One container of a sandbox that stays."""
    if not target.is_live:
        raise StateError(
            f"{target.id} is part of a stopped sandbox: remove the whole with hako rm {target.sandbox_id}."
        )
    client.call(target.sandbox_id, "Delete", requests.target(target.container_id, force=True))
