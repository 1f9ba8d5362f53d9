"""The Task service over a sandbox that is only played: what is asked of it, what is answered, and what is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hako.errors import (
    CommandError,
    ConfigError,
    ExistsError,
    HakoError,
    HypervisorError,
    NotFoundError,
    StateError,
    TimedOutError,
    UnsupportedError,
)
from hako.shim import event_messages as events
from hako.shim import task_messages as messages
from hako.shim.holder import Lifeline
from hako.shim.messages import Any as AnyMessage
from hako.shim.shim import Shim
from hako.shim.tasks import Tasks

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="entering a network namespace needs root")

STATUS = messages.TaskStatus


class Played:
    """A shim whose engine answers from a table; waits for ends that the test tells."""

    def __init__(self, owner: str = "pod") -> None:
        self.call = SimpleNamespace(id=owner, namespace="default")
        self.engine = SimpleNamespace(
            machine=SimpleNamespace(namespace=None, in_background=asyncio.ensure_future),
            cgroup={},
        )
        self.namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.lifeline = Lifeline()
        self.publisher = SimpleNamespace(publish=lambda event: self.told.append(event))
        self.gone = asyncio.Event()
        self.told: list[events.Event] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {}
        self.ends: dict[tuple[str, str], asyncio.Future[dict[str, Any]]] = {}
        self.vm_ended = False
        self.tasks = Tasks(cast(Shim, self))

    async def ask(
        self, method: str, params: dict[str, Any], fds: dict[str, int] | None = None, seconds: float | None = 1
    ) -> dict[str, Any]:
        for fd in (fds or {}).values():
            os.close(fd)
        self.asked.append((method, params))
        if method in self.answers:
            return await self.answers[method]()
        if method in ("Create", "Exec"):
            return {"pid": 100 + len(self.asked)}
        if method == "Wait":
            return await self.end(params["container"], params["exec"])
        return {}

    def end(self, container: str, exec_id: str = "") -> asyncio.Future[dict[str, Any]]:
        return self.ends.setdefault((container, exec_id), asyncio.get_running_loop().create_future())

    def connect_network(self) -> None:
        self.asked.append(("Network", {}))

    async def network(self) -> None: ...

    def in_cgroup(self) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def _lose(self) -> None:
        self.vm_ended = True
        self.gone.set()

    async def end_vm(self) -> None:
        self._lose()

    async def end_sandbox(self) -> None:
        self._lose()

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.told]

    async def close(self) -> None:
        await self.tasks.close()
        self.lifeline.close()
        os.close(self.namespace)


def play(scenario: Callable[[Played], Awaitable[None]], owner: str = "pod") -> None:
    async def run() -> None:
        shim = Played(owner)
        try:
            async with asyncio.timeout(20):
                await scenario(shim)
        finally:
            await shim.close()

    asyncio.run(run())


@pytest.fixture
def bundle(tmp_path: pathlib.Path) -> str:
    spec = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["/bin/true"], "cwd": "/"},
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", "network", "pid", "ipc", "uts")]},
    }
    (tmp_path / "config.json").write_text(json.dumps(spec))
    return str(tmp_path)


def created(shim: Played, bundle: str, container_id: str = "c1") -> Awaitable[messages.CreateTaskResponse]:
    return shim.tasks.create(messages.CreateTaskRequest(id=container_id, bundle=bundle))


def target(kind: Any, container_id: str = "c1", **fields: Any) -> Any:
    return kind(id=container_id, **fields)


def ended(status: int = 0, *, oom: bool = False) -> dict[str, Any]:
    return {"exit_status": status, "exited_ns": time.time_ns(), "oom": oom, "error": ""}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_life_is_told_in_order(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        pid = (await created(shim, bundle)).pid
        assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
        state = await shim.tasks.state(target(messages.StateRequest))
        assert (state.status, state.pid, state.bundle) == (STATUS.CREATED, pid, bundle)
        assert (await shim.tasks.start(target(messages.StartRequest))).pid == pid
        with pytest.raises(StateError, match="cannot delete a running process"):
            await shim.tasks.delete(target(messages.DeleteRequest))
        shim.end("c1").set_result(ended(3))
        assert (await shim.tasks.wait(target(messages.WaitRequest))).exit_status == 3
        assert (await shim.tasks.state(target(messages.StateRequest))).status == STATUS.STOPPED
        gone = await shim.tasks.delete(target(messages.DeleteRequest))
        assert (gone.pid, gone.exit_status) == (pid, 3)
        assert shim.names() == ["TaskCreate", "TaskStart", "TaskExit", "TaskDelete"]
        assert not os.path.exists(f"/proc/{pid}")
        with pytest.raises(NotFoundError):
            await shim.tasks.state(target(messages.StateRequest))
        assert not shim.vm_ended, "the pod goes on"

    play(scenario)


def test_the_end_is_not_told_before_the_start(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)

        async def ends_at_once() -> dict[str, Any]:
            shim.end("c1").set_result(ended(1, oom=True))
            await asyncio.sleep(0.05)
            return {}

        shim.answers["Start"] = ends_at_once
        await shim.tasks.start(target(messages.StartRequest))
        await until(lambda: len(shim.told) == 4)
        assert shim.names() == ["TaskCreate", "TaskStart", "TaskOOM", "TaskExit"]

    play(scenario)


def test_the_end_is_told_when_the_start_fails(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)

        async def fails() -> dict[str, Any]:
            shim.end("c1").set_result(ended(137))
            raise CommandError("no such file", exit_code=127)

        shim.answers["Start"] = fails
        with pytest.raises(CommandError, match=r'exec: "/bin/true": stat /bin/true: no such file or directory'):
            await shim.tasks.start(target(messages.StartRequest))
        await until(lambda: len(shim.told) == 2)
        assert shim.names() == ["TaskCreate", "TaskExit"]

    play(scenario)


def test_what_was_created_and_never_started_can_be_deleted(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)
        shim.answers["Delete"] = lambda: asyncio.sleep(0, shim.end("c1").set_result(ended(137)) or {})
        assert (await shim.tasks.delete(target(messages.DeleteRequest))).exit_status == 137
        assert shim.names() == ["TaskCreate", "TaskExit", "TaskDelete"]

    play(scenario)


def test_whose_the_vm_is_ends_with_it(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle, "pod")
        await created(shim, bundle, "other")
        await shim.tasks.start(target(messages.StartRequest, "pod"))
        await shim.tasks.start(target(messages.StartRequest, "other"))
        shim.end("pod").set_result(ended(0))
        await shim.tasks.wait(target(messages.WaitRequest, "pod"))
        await shim.tasks.delete(target(messages.DeleteRequest, "pod"))
        assert shim.vm_ended
        assert (await shim.tasks.wait(target(messages.WaitRequest, "other"))).exit_status == 137
        await until(lambda: shim.names().count("TaskExit") == 2)

    play(scenario)


@pytest.mark.parametrize("kind", ["", "sandbox"])
def test_a_vm_ends_with_the_only_container_before_that_is_deleted(kind: str, bundle: str) -> None:
    """A pod's does not: its other containers may outlive what stands for it."""

    async def scenario(shim: Played) -> None:
        path = pathlib.Path(bundle, "config.json")
        annotations = {"io.kubernetes.cri.container-type": kind} if kind else {}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": annotations}))
        await created(shim, bundle)
        await shim.tasks.start(target(messages.StartRequest))
        shim.end("c1").set_result(ended(4))
        await until(lambda: "TaskExit" in shim.names())
        await asyncio.sleep(0.1)
        assert shim.vm_ended is not bool(kind)
        assert (await shim.tasks.delete(target(messages.DeleteRequest))).exit_status == 4

    play(scenario, "c1")


def test_deleting_what_has_gone_with_its_vm(bundle: str) -> None:
    """The loss of the VM may show in a call before it is known as such."""

    async def scenario(shim: Played) -> None:
        await created(shim, bundle, "pod")
        await created(shim, bundle, "other")
        await shim.tasks.start(target(messages.StartRequest, "other"))

        async def lost() -> dict[str, Any]:
            asyncio.get_running_loop().call_later(0.05, shim.gone.set)
            raise HypervisorError("the VM ended")

        shim.answers["Delete"] = lost
        shim.end("other").set_result(ended(137))
        await shim.tasks.wait(target(messages.WaitRequest, "other"))
        assert (await shim.tasks.delete(target(messages.DeleteRequest, "other"))).exit_status == 137

    play(scenario)


def test_a_vm_that_is_lost_ends_each_process_once(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)
        await shim.tasks.start(target(messages.StartRequest))
        await add(shim, "e1")
        await shim.tasks.start(target(messages.StartRequest, exec_id="e1"))
        shim.gone.set()
        for exec_id in ("", "e1"):
            assert (await shim.tasks.wait(target(messages.WaitRequest, exec_id=exec_id))).exit_status == 137
        await until(lambda: shim.names().count("TaskExit") == 2)
        await shim.tasks.delete(target(messages.DeleteRequest, exec_id="e1"))
        await shim.tasks.delete(target(messages.DeleteRequest))
        exits = [event.id for event in shim.told if isinstance(event, events.TaskExit)]
        assert sorted(exits) == ["c1", "e1"]

    play(scenario)


def add(shim: Played, exec_id: str) -> Awaitable[Any]:
    process = AnyMessage(type_url="x/Process", value=json.dumps({"args": ["ls"], "cwd": "/"}).encode())
    return shim.tasks.exec(messages.ExecProcessRequest(id="c1", exec_id=exec_id, spec=process))


def test_an_added_process_has_a_life_of_its_own(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)
        await shim.tasks.start(target(messages.StartRequest))
        await add(shim, "e1")
        with pytest.raises(ExistsError):
            await add(shim, "e1")
        state = await shim.tasks.state(target(messages.StateRequest, exec_id="e1"))
        assert (state.status, state.exec_id) == (STATUS.CREATED, "e1")
        await shim.tasks.resize_pty(target(messages.ResizePtyRequest, exec_id="e1", width=91, height=17))
        pid = (await shim.tasks.start(target(messages.StartRequest, exec_id="e1"))).pid
        asked = dict(shim.asked)
        assert (asked["Exec"]["width"], asked["Exec"]["height"]) == (91, 17)
        assert "Resize" not in asked, "it had no process yet"
        with pytest.raises(StateError, match="has been started before"):
            await shim.tasks.start(target(messages.StartRequest, exec_id="e1"))
        with pytest.raises(StateError, match="cannot delete a running process"):
            await shim.tasks.delete(target(messages.DeleteRequest, exec_id="e1"))
        shim.end("c1", "e1").set_result(ended(5))
        assert (await shim.tasks.wait(target(messages.WaitRequest, exec_id="e1"))).exit_status == 5
        gone = await shim.tasks.delete(target(messages.DeleteRequest, exec_id="e1"))
        assert (gone.pid, gone.exit_status) == (pid, 5)
        exec_events = ["TaskExecAdded", "TaskExecStarted", "TaskExit", "TaskDelete"]
        assert shim.names() == ["TaskCreate", "TaskStart", *exec_events]
        with pytest.raises(NotFoundError):
            await shim.tasks.state(target(messages.StateRequest, exec_id="e1"))

    play(scenario)


def test_signals(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)
        await shim.tasks.start(target(messages.StartRequest))
        await shim.tasks.kill(target(messages.KillRequest, signal=15))
        assert shim.asked[-1] == ("Kill", {"container": "c1", "exec": "", "signal": 15, "all": False})
        with pytest.raises(ConfigError, match="99 is not a signal"):
            await shim.tasks.kill(target(messages.KillRequest, signal=99))
        shim.end("c1").set_result(ended(0))
        await shim.tasks.wait(target(messages.WaitRequest))
        with pytest.raises(NotFoundError, match="process already finished"):
            await shim.tasks.kill(target(messages.KillRequest, signal=15))

    play(scenario)


def test_a_guest_that_does_not_take_sigkill_loses_its_vm(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        async def hangs() -> dict[str, Any]:
            raise TimedOutError("The guest does not answer.")

        await created(shim, bundle)
        await shim.tasks.start(target(messages.StartRequest))
        shim.answers["Kill"] = hangs
        with pytest.raises(TimedOutError):
            await shim.tasks.kill(target(messages.KillRequest, signal=signal.SIGTERM))
        assert not shim.vm_ended
        await shim.tasks.kill(target(messages.KillRequest, signal=signal.SIGKILL))
        assert shim.vm_ended
        assert (await shim.tasks.wait(target(messages.WaitRequest))).exit_status == 137

    play(scenario)


def test_whoever_kills_the_process_that_stands_for_a_container_kills_the_container(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        pid = (await created(shim, bundle)).pid
        await shim.tasks.start(target(messages.StartRequest))
        os.kill(pid, signal.SIGTERM)
        await until(lambda: shim.asked[-1][0] == "Kill")
        assert shim.asked[-1][1]["signal"] == signal.SIGKILL

    play(scenario)


def test_nothing_stays_of_a_container_that_could_not_be_made(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        async def fails() -> dict[str, Any]:
            raise ConfigError("no")

        shim.answers["Create"] = fails
        with pytest.raises(ConfigError):
            await created(shim, bundle)
        assert shim.told == []
        assert shim.tasks.all == {}
        with contextlib.suppress(ChildProcessError):
            assert os.waitpid(-1, os.WNOHANG) == (0, 0)
        del shim.answers["Create"]
        await created(shim, bundle)
        with pytest.raises(ExistsError, match="container with id c1 already exists"):
            await created(shim, bundle)

    play(scenario)


def test_what_was_begun_is_done_although_nobody_waits_for_it(bundle: str) -> None:
    """As when containerd is killed, and asks again when it is back."""

    async def scenario(shim: Played) -> None:
        slow = asyncio.Event()

        async def answer() -> dict[str, Any]:
            await slow.wait()
            return {"pid": 7}

        shim.answers["Create"] = answer
        create = shim.tasks.services()[messages.SERVICE_V2]["Create"].handler
        call = asyncio.ensure_future(create(messages.CreateTaskRequest(id="c1", bundle=bundle)))
        await until(lambda: bool(shim.asked) and shim.asked[-1][0] == "Create")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        slow.set()
        await until(lambda: shim.names() == ["TaskCreate"])
        assert (await shim.tasks.state(target(messages.StateRequest))).status == STATUS.CREATED

    play(scenario)


def test_a_container_joins_what_its_mates_have(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        pid = (await created(shim, bundle)).pid
        path = pathlib.Path(bundle, "config.json")
        spec = json.loads(path.read_text())
        spec["linux"]["namespaces"][3] = {"type": "ipc", "path": f"/proc/{pid}/ns/ipc"}
        path.write_text(json.dumps(spec))
        await created(shim, bundle, "c2")
        assert shim.asked[-1][0] in ("Create", "Wait")
        params = [params for method, params in shim.asked if method == "Create"][-1]
        assert params["joined"] == {f"/proc/{pid}/ns/ipc": f"/proc/{shim.tasks.all['c1'].guest_pid}/ns/ipc"}

    play(scenario)


@pytest.mark.parametrize("network", ["/proc/1/ns/mnt", "/nowhere"])
def test_a_container_cannot_have_another_network_than_its_pod(network: str, bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        path = pathlib.Path(bundle, "config.json")
        spec = json.loads(path.read_text())
        spec["linux"]["namespaces"][1]["path"] = network
        path.write_text(json.dumps(spec))
        with pytest.raises(HakoError, match="network"):
            await created(shim, bundle)

    play(scenario)


def test_checkpoints_are_refused(bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)
        with pytest.raises(UnsupportedError, match="run the container with runc"):
            await shim.tasks.checkpoint(target(messages.CheckpointTaskRequest))
        with pytest.raises(UnsupportedError):
            await shim.tasks.create(messages.CreateTaskRequest(id="c2", bundle=bundle, checkpoint="/x"))

    play(scenario)


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"[" * 100_000])
def test_what_should_be_json_and_is_not(value: bytes | None, bundle: str) -> None:
    async def scenario(shim: Played) -> None:
        await created(shim, bundle)
        resources = None if value is None else AnyMessage(type_url="x", value=value)
        with pytest.raises(ConfigError, match=r"\$\.resources: not a JSON object"):
            await shim.tasks.update(messages.UpdateTaskRequest(id="c1", resources=resources))

    play(scenario)
