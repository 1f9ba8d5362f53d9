"""Sandboxes on disk: who is alive, what they were, and cleaning up after one whose process died.

A live sandbox is a directory below /run/hako/sandboxes whose ``lock`` its process holds; ``state.json`` in it
says what it is. What outlives the VM (layers, logs, record.json with the last state) is in a directory of the
same name below /var/lib/hako/sandboxes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from hako import ids, log, paths, store
from hako.errors import ConfigError, ExistsError, HakoError, HostError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hako.sandbox.spec import SandboxSpec

#: Version of state.json and record.json; a file of another version is not touched.
STATE_VERSION = 1
_log = log.get("records")

DIED = 137
#: In a live sandbox's directory what it has from the pool (pool.py), if it came from there.
WARM = "warm"


def run_dir(sandbox_id: str) -> str:
    """Where a live sandbox keeps its lock, state, socket, console log and share."""
    return os.path.join(paths.sandboxes_dir(), sandbox_id)


def data_dir(sandbox_id: str) -> str:
    """Where a sandbox keeps layers, logs and its last state."""
    return os.path.join(paths.records_dir(), sandbox_id)


def shared_dir(state: dict[str, Any]) -> str:
    """The directory that the VM of a live sandbox sees, in the mount namespace of its process."""
    return os.path.join(run_dir(state["spec"]["id"]), state.get("tree", "shared"))


def live_rootfs(sandbox_id: str, container_id: str) -> str:
    """The root of a running container as the sandbox process sees it, usable from outside its mount namespace."""
    state = read(sandbox_id)
    return f"/proc/{state['pid']}/root{os.path.join(shared_dir(state), container_id, 'rootfs')}"


def _lock_file(sandbox_id: str) -> str:
    return os.path.join(run_dir(sandbox_id), "lock")


def _state_file(sandbox_id: str) -> str:
    return os.path.join(run_dir(sandbox_id), "state.json")


def _record_file(sandbox_id: str) -> str:
    return os.path.join(data_dir(sandbox_id), "record.json")


def claim(spec: SandboxSpec) -> int:
    """Make the directories of a new sandbox and take its lock; return the lock's fd.

    Raises ExistsError when the id or name is taken.
    """
    store.ensure_dir(paths.sandboxes_dir(), 0o700)
    store.ensure_dir(paths.records_dir(), 0o700)
    with store.locked(os.path.join(paths.data_root(), "names.lock")):
        for state in list_states():
            taken = state["spec"]
            same_name = spec.name != "" and spec.name == taken["name"]
            if spec.id == taken["id"] or same_name:
                what = f"name {spec.name}" if same_name else f"id {spec.id}"
                raise ExistsError(f"The {what} is in use by sandbox {taken['id']}; remove it or choose another.")
        _remove_unfinished()
        return _make_dirs(spec)


def _remove_unfinished() -> None:
    """What claims that were killed have left; whoever holds the lock of names is the only one who makes any."""
    for name in os.listdir(paths.sandboxes_dir()):
        if name.startswith(store.STAGING_PREFIX):
            store.remove_tree(os.path.join(paths.sandboxes_dir(), name))


def _make_dirs(spec: SandboxSpec) -> int:
    """Make the directories of a sandbox whose names nobody else has; return the lock's fd. Raises HostError."""
    store.remove_tree(data_dir(spec.id))  # of an earlier claim that did not come to its end
    try:
        # It appears under its name with lock and state in it: without them it would look like a dead one.
        with store.staging_dir(paths.sandboxes_dir()) as staging:
            lock = store.lock(os.path.join(staging, "lock"))
            assert lock is not None
            try:
                store.write_json(os.path.join(staging, "state.json"), new_state(spec))
                os.mkdir(data_dir(spec.id), 0o700)
                os.rename(staging, run_dir(spec.id))
            except BaseException:
                os.close(lock)
                store.remove_tree(data_dir(spec.id))
                raise
    except OSError as error:
        raise HostError(f"Cannot make the directories of sandbox {spec.id}: {error.strerror}.") from error
    return lock


def new_state(spec: SandboxSpec) -> dict[str, Any]:
    """The first state of a sandbox."""
    return {
        "version": STATE_VERSION,
        "spec": spec.to_json(),
        "status": "starting",
        "created_ns": time.time_ns(),
        "pid": os.getpid(),
        "vm_pid": 0,
        "error": "",
        "info": {},
        "containers": {},
    }


def write(state: dict[str, Any]) -> None:
    """Save the state of a live sandbox."""
    store.write_json(_state_file(state["spec"]["id"]), state)


def _valid(state: dict[str, Any] | None) -> bool:
    """Whether ``state`` has everything that the rest of hako relies on."""
    if state is None or state.get("version") != STATE_VERSION:
        return False
    kinds: dict[str, type] = {"spec": dict, "containers": dict, "status": str, "error": str}
    kinds |= {"created_ns": int, "pid": int, "vm_pid": int}
    if any(type(state.get(key)) is not kind for key, kind in kinds.items()):
        return False
    if state.get("tree", "shared") not in ("shared", f"{WARM}/shared"):
        return False
    from hako.sandbox.spec import SandboxSpec

    try:
        SandboxSpec.from_json(state["spec"])
    except ConfigError:
        return False
    containers = state["containers"].values()
    return all(isinstance(record, dict) and isinstance(record.get("status"), str) for record in containers)


def _is_foreign(state: dict[str, Any] | None) -> bool:
    """Whether ``state`` was written by another version of hako, which alone may touch it."""
    return state is not None and "version" in state and state["version"] != STATE_VERSION


def is_alive(sandbox_id: str) -> bool:
    """Whether a process holds the sandbox's lock."""
    try:
        # Shared, so that those who only look do not take each other for the sandbox.
        fd = store.lock(_lock_file(sandbox_id), wait=False, shared=True, create=False)
    except FileNotFoundError:
        return False
    if fd is None:
        return True
    os.close(fd)
    return False


def _take_lock(sandbox_id: str) -> int | None:
    """The lock of a sandbox whose process is gone; None when it is held. Raises FileNotFoundError."""
    path = _lock_file(sandbox_id)
    while True:
        fd = store.lock(path, wait=False, create=False)
        if fd is not None:
            return fd
        looking = store.lock(path, wait=False, shared=True, create=False)
        if looking is None:
            return None
        os.close(looking)  # only somebody else who looked stood in the way


def read(sandbox_id: str) -> dict[str, Any]:
    """The state of a sandbox, live or kept. Raises NotFoundError; cleans up after one that died."""
    ids.check(sandbox_id, "Sandbox id")
    if os.path.isdir(run_dir(sandbox_id)) and not is_alive(sandbox_id):
        reap(sandbox_id)
    for path in (_state_file(sandbox_id), _record_file(sandbox_id)):
        state = store.read_json(path)
        if _valid(state):
            assert state is not None
            return state
        if _is_foreign(state):
            raise NotFoundError(f"Sandbox {sandbox_id} belongs to another version of hako; use that one.")
    raise NotFoundError(f"There is no sandbox {sandbox_id}; `hako ps -a` lists those there are.")


def live_state(sandbox_id: str) -> dict[str, Any] | None:
    """What the process of a sandbox has written, unchecked; None when there is no process. Quicker than read()."""
    return store.read_json(_state_file(sandbox_id)) if is_alive(sandbox_id) else None


def list_states() -> list[dict[str, Any]]:
    """The states of all sandboxes, live and kept, oldest first."""
    names = set()
    for directory in (paths.sandboxes_dir(), paths.records_dir()):
        with contextlib.suppress(FileNotFoundError):
            names |= set(os.listdir(directory))
    states = []
    for name in names:
        with contextlib.suppress(NotFoundError, ConfigError):
            states.append(read(name))
    return sorted(states, key=lambda state: int(state["created_ns"]))


def find(ref: str) -> dict[str, Any]:
    """The sandbox with the name, id or unambiguous id prefix ``ref``. Raises NotFoundError, ConfigError."""
    states = list_states()
    for state in states:
        if ref and ref in (state["spec"]["id"], state["spec"]["name"]):
            return state
    matches = [state for state in states if ref and str(state["spec"]["id"]).startswith(ref)]
    if len(matches) > 1:
        raise ConfigError(f"{ref} could be any of {len(matches)} containers; write more of the id.")
    if not matches:
        raise NotFoundError(f"There is no container {ref}; `hako ps -a` lists those there are.")
    return matches[0]


def finish(state: dict[str, Any]) -> None:
    """The sandbox's VM and process are gone, or about to be: keep what must be kept, remove the rest."""
    sandbox_id = state["spec"]["id"]
    state["status"] = "stopped"
    state["pid"] = state["vm_pid"] = 0
    try:
        if not state["spec"]["retain"]:
            store.remove_tree(data_dir(sandbox_id))
        elif os.path.isdir(data_dir(sandbox_id)):  # unless somebody has removed the sandbox meanwhile
            store.write_json(_record_file(sandbox_id), state)
    finally:
        _remove_run_dir(sandbox_id)


def _remove_run_dir(sandbox_id: str) -> None:
    """The lock goes last: as long as it is there, others see that somebody is at work here."""
    directory = run_dir(sandbox_id)
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        if os.path.isdir(path) and not os.path.islink(path):
            store.remove_tree(path)
        elif name != "lock":
            os.unlink(path)
    store.remove_tree(directory)


def reap(sandbox_id: str) -> bool:
    """Clean up after a sandbox whose process died; False when it is alive or somebody else has done it."""
    try:
        lock = _take_lock(sandbox_id)
    except FileNotFoundError:
        store.remove_tree(run_dir(sandbox_id))  # whoever cleaned up before was killed at the very end
        return False
    if lock is None:
        return False
    try:
        state: dict[str, Any] | None = store.read_json(_state_file(sandbox_id))
        if _is_foreign(state) or not _is_at(lock, _lock_file(sandbox_id)):
            return False
        if not _valid(state):
            _disconnect(sandbox_id)
            if not _valid(store.read_json(_record_file(sandbox_id))):
                store.remove_tree(data_dir(sandbox_id))
            _remove_run_dir(sandbox_id)
            return True
        assert state is not None
        _kill_leftover(state)
        if _has_network(state):
            _disconnect(sandbox_id)
        state["error"] = state["error"] or "the sandbox process was killed"
        for container in state["containers"].values():
            if container["status"] != "stopped":
                container.update(status="stopped", exit_status=DIED, exited_ns=time.time_ns())
        finish(state)
        return True
    finally:
        os.close(lock)


def _has_network(state: dict[str, Any]) -> bool:
    from hako.sandbox.spec import GIVEN_NETWORK, NO_NETWORK, SandboxSpec

    return SandboxSpec.from_json(state["spec"]).network not in (NO_NETWORK, GIVEN_NETWORK)


def _is_at(fd: int, path: str) -> bool:
    """Whether the open file ``fd`` is still the one called ``path``."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _kill_leftover(state: dict[str, Any]) -> None:
    """End a VM that outlived its sandbox process; it normally dies with it."""
    pid = state["vm_pid"]
    if pid <= 1:
        return
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                mine = str(state.get("vm_name") or state["spec"]["id"]).encode() in file.read(1 << 16)
            if mine:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _disconnect(sandbox_id: str) -> None:
    """Have the plugins take back the network that the sandbox may have; see ownnet.py."""
    from hako.network import cni

    try:
        cni.delete(sandbox_id, force=True)
    except HakoError as error:
        _log.warning("A network could not be given back.", sandbox=sandbox_id, reason=str(error))


def remove(state: dict[str, Any]) -> None:
    """Forget a stopped sandbox and everything it left."""
    forget(state["spec"]["id"])


def forget(sandbox_id: str) -> None:
    """The same of a sandbox of which no more is known than its id, and of which nothing may be left."""
    store.remove_tree(data_dir(ids.check(sandbox_id, "Sandbox id")))
