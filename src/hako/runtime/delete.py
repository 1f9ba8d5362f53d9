"""``hako-runtime delete``: give back everything a container has."""

from __future__ import annotations

import contextlib
import os

from hako.errors import HakoError, HostError, NotFoundError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.runtime.containers import Container
    from hako.runtime.verbs import Call

#: Seconds that a sandbox whose last container has gone needs to end, at most.
_END_SECONDS = 30.0
_SIGKILL = 9


def main(call: Call) -> int:
    """Delete it. Raises HakoError."""
    container_id, force = call.args[0], call.options.get("force") is True
    if "/" not in container_id and not os.path.lexists(os.path.join(call.root, container_id)):
        # Engines make sure in this way that nothing is left, and wait for it.
        if force:
            return 0
        raise NotFoundError("container does not exist")
    from hako.runtime import containers

    try:
        container = containers.find(call.root, container_id)
    except NotFoundError:
        # Whoever made it was killed before it could be known.
        containers.forget(call.root, container_id)
        if force:
            return 0
        raise
    except HostError:
        if not force:
            raise
        containers.forget(call.root, container_id)
        return 0
    status = containers.status(container)
    if status in ("running", "paused") and not force:
        raise StateError(f"cannot delete container {container_id} that is not stopped: {status}")
    delete(call, container)
    return 0


def delete(call: Call, container: Container) -> None:
    """End what runs of ``container`` and give everything back. Can be repeated after a failure. Raises HakoError.

    Hooks that fail are reported as ``call`` asks for it.
    """
    from hako.runtime import containers

    last = _leave_sandbox(container)
    if last and not containers.wait_gone(container, _END_SECONDS):
        raise HostError(f"The sandbox {container.sandbox} of container {container.id} does not end; kill its process.")
    if containers.is_its(container):
        with contextlib.suppress(ProcessLookupError):
            os.kill(container.pid, _SIGKILL)
    _remove_cgroups(container, last=last)
    if container.hooks.get("poststop"):
        from hako.runtime import lifecycle, reporting

        lifecycle.run_kept(container, "poststop", reporting.of(call).warning)
    containers.forget(container.root, container.id)


def _remove_cgroups(container: Container, *, last: bool) -> None:
    """Remove the container's cgroup; the VM's, which is that of the sandbox's first container, when that has ended."""
    # Loaded while the sandbox was ending.
    from hako.runtime import hostcgroup
    from hako.sandbox import records

    try:
        state = records.read(container.sandbox)
    except NotFoundError:
        if last:
            records.forget(container.sandbox)
        hostcgroup.delete(container.cgroup)
        return
    of_vm = state["spec"].get("cgroup") or {}
    if last:
        records.forget(container.sandbox)
        hostcgroup.delete(of_vm)
    if container.cgroup != of_vm:
        hostcgroup.delete(container.cgroup)


def _leave_sandbox(container: Container) -> bool:
    """Have the container deleted in its sandbox; whether that ends with it."""
    from hako.runtime import containers
    from hako.sandbox import client

    others = [
        other
        for other in containers.all_of(container.root)
        if other.sandbox == container.sandbox and other.id != container.id
    ]
    try:
        answer = containers.call(container, "Delete", {"force": True})
    except client.GoneError:
        return not others
    except HakoError:
        # It is on its way out, or was never there.
        if others:
            return False
        with contextlib.suppress(HakoError):
            client.call(container.sandbox, "Stop", {})
        return True
    return answer.get("last") is True and not others
