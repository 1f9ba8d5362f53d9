"""Finding the containers that a command line names: by name, id, start of an id, or SANDBOX/CONTAINER."""

from __future__ import annotations

from typing import Any

from hako.errors import ConfigError, HakoError, NotFoundError, StateError
from hako.named import NamedTuple
from hako.sandbox import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHORT = 12


class Target(NamedTuple):
    """One container, as its sandbox's state knows it. ``record`` is empty for a sandbox without containers."""

    state: dict[str, Any]
    container_id: str
    record: dict[str, Any]

    @property
    def sandbox_id(self) -> str:
        """The sandbox's id."""
        return str(self.state["spec"]["id"])

    @property
    def is_whole(self) -> bool:
        """Whether the sandbox is this container's own, as ``hako run`` makes them: both begin and end together."""
        return self.container_id == self.sandbox_id

    @property
    def id(self) -> str:
        """What the container is called on a command line."""
        return self.sandbox_id if self.is_whole or not self.container_id else f"{self.sandbox_id}/{self.container_id}"

    @property
    def short_id(self) -> str:
        """The same, shorter."""
        return self.id[:SHORT] + self.id[len(self.sandbox_id) :]

    @property
    def name(self) -> str:
        """The name the user gave; a container of a shared sandbox has the sandbox's before its own."""
        given = str(self.state["spec"]["name"])
        return (
            given if self.is_whole or not self.container_id else f"{given or self.short_id[:SHORT]}/{self.container_id}"
        )

    @property
    def status(self) -> str:
        """created, running, paused or stopped; a sandbox without containers is starting, running or stopped."""
        return str(self.record["status"] if self.record else self.state["status"])

    @property
    def is_live(self) -> bool:
        """Whether its sandbox has a VM."""
        return str(self.state["status"]) != "stopped"


def find(ref: str) -> Target:
    """The container that ``ref`` means. Raises NotFoundError, ConfigError when it is not the only one."""
    sandbox_ref, slash, container_ref = ref.partition("/")
    state = records.find(sandbox_ref)
    containers = state["containers"]
    sandbox_id = state["spec"]["id"]
    if slash:
        matches = [name for name in containers if name == container_ref]
        matches = matches or [name for name in containers if container_ref and name.startswith(container_ref)]
        if len(matches) > 1:
            raise ConfigError(f"{ref} could be any of {len(matches)} containers; write more of the id.")
        if not matches:
            raise NotFoundError(f"There is no container {container_ref} in {sandbox_ref}; `hako ps -a` lists all.")
        return Target(state, matches[0], containers[matches[0]])
    if sandbox_id in containers:
        return Target(state, sandbox_id, containers[sandbox_id])
    if len(containers) == 1:
        name, record = next(iter(containers.items()))
        return Target(state, name, record)
    if containers:
        names = ", ".join(f"{sandbox_ref}/{name}" for name in sorted(containers)[:5])
        raise ConfigError(f"{ref} has {len(containers)} containers; name one of them: {names}.")
    return Target(state, "", {})


def find_container(ref: str) -> Target:
    """As find(), but refuses a sandbox that has no container (StateError)."""
    target = find(ref)
    if not target.record:
        raise StateError(f"{ref} has no container; its sandbox is {target.status}.")
    return target


def find_running(ref: str, *, paused: bool = False) -> Target:
    """As find_container(), but refuses one that does not run; a paused one too unless ``paused``. Raises StateError."""
    target = find_container(ref)
    if target.status == "paused" and not paused:
        raise StateError(f"The container {ref} is paused; hako unpause {ref} lets it go on.")
    if target.status not in ("running", "paused"):
        raise StateError(f"The container {ref} is not running.")
    return target


def all_targets() -> Iterator[Target]:
    """Every container, oldest sandbox first; a live sandbox without containers counts as one."""
    for state in records.list_states():
        for container_id, record in state["containers"].items():
            yield Target(state, container_id, record)
        if not state["containers"]:
            yield Target(state, "", {})


def for_each(refs: list[str], work: Callable[[str], None]) -> int:
    """Do ``work`` for each of ``refs`` and print its name; an error of one does not keep the others from it.

    Returns the exit code: that of the last error, or 0.
    """
    from hako.cli.main import complain

    status = 0
    for ref in refs:
        try:
            work(ref)
        except HakoError as error:
            complain(str(error))
            status = error.exit_code
        else:
            print(ref, flush=True)
    return status
