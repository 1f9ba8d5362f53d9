"""The containers of ``hako-runtime``: what is kept of each below its --root, and how its sandbox is asked about it.

    <root>/<id>/state.json

An engine has a root of its own, in which its containers' names are unique.
"""

from __future__ import annotations

import contextlib
import os
import time

from hako import digests, ids, store
from hako.errors import ConfigError, ExistsError, HakoError, HostError, NotFoundError
from hako.sandbox import client, records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: As runc, which engines know: letters, digits and these.
_ID_EXTRA = frozenset("_+-.")
_MAX_ID = 1024


class Container:
    """One container. Keyword arguments are its attributes."""

    # Not a NamedTuple: loading typing takes as long as most of what ``state`` does.
    __slots__ = (
        "annotations", "bundle", "cgroup", "created_ns", "guest_id", "guest_pid", "hooks", "id", "netns", "oci_version",
        "owner", "pid", "root", "rootfs", "sandbox", "started",
    )  # fmt: skip

    def __init__(
        self,
        *,
        root: str,
        id: str,
        bundle: str,
        rootfs: str,
        sandbox: str,
        guest_id: str,
        created_ns: int,
        owner: str,
        oci_version: str,
        annotations: dict[str, str],
        hooks: dict[str, Any],
        pid: int = 0,
        started: int = 0,
        guest_pid: int = 0,
        netns: tuple[int, int] = (0, 0),
        cgroup: dict[str, Any] | None = None,
    ) -> None:
        self.root = root
        self.id = id
        self.bundle = bundle
        self.rootfs = rootfs
        self.sandbox = sandbox  #: id of the sandbox it is in
        self.guest_id = guest_id  #: its name there
        self.created_ns = created_ns
        self.owner = owner  #: name of the user who made it
        self.oci_version = oci_version
        self.annotations = annotations
        self.hooks = hooks
        self.pid = pid  #: the process that stands for it on the host, 0 until there is one
        self.started = started  #: when ``pid`` started, in clock ticks since boot: another may get the number
        self.guest_pid = guest_pid
        self.netns = (int(netns[0]), int(netns[1]))  #: device and inode of the network namespace of ``pid``
        self.cgroup = cgroup or {}  #: for hako.cgroup.api.Cgroup.open()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Container) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.root, self.id))

    def to_json(self) -> dict[str, Any]:
        """As an object for JSON, and as keyword arguments."""
        return {name: getattr(self, name) for name in self.__slots__}

    def change(self, **changes: Any) -> Container:
        """The same with ``changes``."""
        return Container(**{**self.to_json(), **changes})

    @property
    def directory(self) -> str:
        """What is kept of it."""
        return os.path.join(self.root, self.id)

    def save(self) -> None:
        """Write it down. Raises HostError."""
        store.write_json(os.path.join(self.directory, "state.json"), self.to_json())


def check_id(container_id: str) -> str:
    """Return a valid id. Raises ConfigError."""
    valid = container_id and all(char.isascii() and (char.isalnum() or char in _ID_EXTRA) for char in container_id)
    if not valid or container_id in (".", "..") or len(container_id) > _MAX_ID:
        raise ConfigError(f"invalid container ID format: {container_id!r}: use letters, digits, '_', '+', '-' and '.'.")
    return container_id


def guest_id(container_id: str) -> str:
    """What a container is called in its sandbox."""
    if ids.is_valid(container_id):
        return container_id
    return digests.of(container_id.encode())[:32]


def claim(root: str, container_id: str) -> None:
    """Make the directory of a new container. Raises ExistsError, HostError."""
    check_id(container_id)
    store.ensure_dir(root, 0o711)
    try:
        os.mkdir(os.path.join(root, container_id), 0o711)
    except FileExistsError:
        raise ExistsError(f"container with id {container_id} already exists") from None
    except OSError as error:
        raise HostError(f"Cannot create {os.path.join(root, container_id)}: {error.strerror}.") from error


def forget(root: str, container_id: str) -> None:
    """Remove what is kept of a container."""
    store.remove_tree(os.path.join(root, check_id(container_id)))


def find(root: str, container_id: str) -> Container:
    """The container ``container_id``. Raises NotFoundError."""
    check_id(container_id)
    record: dict[str, Any] | None = store.read_json(os.path.join(root, container_id, "state.json"))
    if record is None:
        raise NotFoundError("container does not exist")
    try:
        return Container(**record | {"root": root})
    except (TypeError, ValueError, IndexError) as error:
        raise HostError(f"The state of container {container_id} in {root} is damaged; delete it by force.") from error


def all_of(root: str) -> list[Container]:
    """All containers, by id."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(root)):
            with contextlib.suppress(HakoError):
                found.append(find(root, name))
    return found


def record_of(container: Container) -> dict[str, Any]:
    """What its sandbox knows of it: status, process, resources, end; empty when that is nothing."""
    try:
        state = records.live_state(container.sandbox) or records.read(container.sandbox)
    except NotFoundError:
        return {}
    known = state.get("containers")
    found = known.get(container.guest_id) if isinstance(known, dict) else None
    return found if isinstance(found, dict) else {}


def status(container: Container) -> str:
    """creating, created, running, paused or stopped."""
    found = record_of(container).get("status")
    if container.pid and not is_its(container):
        # Who stands for it ends with it. What else is known may be a moment behind, as after a killed sandbox process.
        return "stopped"
    if isinstance(found, str):
        # Nobody stands for a container that is still being made.
        return "creating" if found == "created" and not container.pid else found
    return "stopped" if container.pid or not _is_young(container) else "creating"


def _is_young(container: Container) -> bool:
    """Whether somebody may be making it at this moment."""
    return records.is_alive(container.sandbox)


def call(
    container: Container, method: str, params: dict[str, Any] | None = None, timeout: float | None = None
) -> dict[str, Any]:
    """Ask the sandbox of ``container`` about it, for at most ``timeout`` seconds. Raises what it reports."""
    with client.connect(container.sandbox) as sock:
        sock.settimeout(timeout)
        return client.exchange(sock, method, {"container": container.guest_id, **(params or {})})


def update(container: Container, resources: dict[str, Any]) -> None:
    """Change the limits of ``container`` to the OCI object ``resources``, in the guest and on the host."""
    from hako.runtime import hostcgroup

    call(container, "Update", {"resources": resources})
    hostcgroup.update(container.cgroup, resources)


def is_its(container: Container) -> bool:
    """Whether the process that stands for it is alive."""
    return container.pid > 0 and start_time(container.pid) == container.started


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def wait_gone(container: Container, seconds: float) -> bool:
    """Wait until the sandbox has ended and has been cleaned up after, at most ``seconds``; whether it has."""
    deadline = time.monotonic() + seconds
    while os.path.isdir(records.run_dir(container.sandbox)):
        if time.monotonic() > deadline:
            return False
        if not records.is_alive(container.sandbox):
            # It was killed. Its guardian, who may be about to do the same, finds nothing to do.
            records.reap(container.sandbox)
        time.sleep(0.003)
    return True
