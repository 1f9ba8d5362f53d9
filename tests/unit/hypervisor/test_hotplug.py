"""Sizes and states of a running VM, asked of a pretended monitor: what a QEMU may answer, the odd things among it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from hako.errors import HypervisorError, TimedOutError
from hako.hypervisor import hotplug, migration
from hako.hypervisor.base import FreezeError

_MIB = 1 << 20


class Monitor:
    """Answers commands from a table: a value each time, or the values of a list one after the other."""

    def __init__(self, **answers: object) -> None:
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.files: dict[str, int] = {}

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = 0) -> object:
        self.calls.append((command, arguments or {}))
        answer = self.answers.get(command, {})
        if isinstance(answer, list) and command != "query-hotpluggable-cpus":
            return answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pass_file(self, fd: int, name: str) -> None:
        self.files[name] = fd

    def of(self, command: str) -> list[Mapping[str, Any]]:
        """The arguments of each call of ``command``."""
        return [arguments for name, arguments in self.calls if name == command]


def run(work: Any) -> Any:
    return asyncio.run(work)


@pytest.mark.parametrize(("wish", "asked"), [(0, 0), (1, 2 * _MIB), (2 * _MIB, 2 * _MIB), (128 * _MIB + 1, 130 * _MIB)])
def test_memory_is_asked_for_in_whole_blocks(wish: int, asked: int) -> None:
    qmp = Monitor(qom_get=asked)
    assert run(hotplug.resize_memory(qmp, wish, 5)) == asked  # type: ignore[arg-type]
    assert [call["value"] for call in qmp.of("qom-set")] == [asked]


def test_memory_is_waited_for() -> None:
    qmp = Monitor(qom_get=[0, 0, 64 * _MIB, 128 * _MIB])
    assert run(hotplug.resize_memory(qmp, 128 * _MIB, 5)) == 128 * _MIB  # type: ignore[arg-type]
    assert len(qmp.of("qom-get")) == 4


def test_memory_that_a_guest_does_not_give_up_is_not_waited_for_for_ever() -> None:
    qmp = Monitor(qom_get=96 * _MIB)
    assert run(hotplug.resize_memory(qmp, 0, 0.02)) == 96 * _MIB  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [None, {}, "128", [None]])
def test_no_size_is_an_error(answer: object) -> None:
    with pytest.raises(HypervisorError, match="did not say how much memory"):
        run(hotplug.resize_memory(Monitor(qom_get=answer), 0, 1))  # type: ignore[arg-type]


def slots(count: int, present: int) -> list[dict[str, Any]]:
    """What QEMU says of its places for processors: the last one first."""
    found = []
    for number in reversed(range(count)):
        slot: dict[str, Any] = {"type": "max-x86_64-cpu", "props": {"core-id": number, "node-id": 0, "socket-id": 0}}
        found.append(slot | ({"qom-path": f"/machine/{number}"} if number < present else {}))
    return found


@pytest.mark.parametrize(
    ("present", "count", "added"), [(1, 1, []), (1, 2, [1]), (1, 4, [1, 2, 3]), (3, 2, []), (2, 3, [2]), (4, 9, [])]
)
def test_processors_are_added_from_the_first_place_on(present: int, count: int, added: list[int]) -> None:
    qmp = Monitor(query_hotpluggable_cpus=slots(4, present))
    assert run(hotplug.add_vcpus(qmp, count)) == present + len(added)  # type: ignore[arg-type]
    calls = qmp.of("device_add")
    assert [call["core-id"] for call in calls] == added
    assert len({call["id"] for call in calls}) == len(calls)
    assert all(call["driver"] == "max-x86_64-cpu" and "node-id" not in call for call in calls)


@pytest.mark.parametrize("answer", [None, {}, "x"])
def test_no_places_are_an_error(answer: object) -> None:
    with pytest.raises(HypervisorError, match="did not say which vCPUs"):
        run(hotplug.add_vcpus(Monitor(query_hotpluggable_cpus=answer), 2))  # type: ignore[arg-type]


def test_the_balloon_is_asked_and_set() -> None:
    qmp = Monitor(query_balloon={"actual": 5})
    assert run(hotplug.balloon(qmp, None)) == 5  # type: ignore[arg-type]
    assert qmp.of("balloon") == []
    assert run(hotplug.balloon(qmp, 7)) == 5  # type: ignore[arg-type]
    assert qmp.of("balloon") == [{"value": 7}]


@pytest.mark.parametrize("answer", [None, {}, {"actual": "5"}, [{}]])
def test_a_balloon_of_no_size_is_an_error(answer: object) -> None:
    with pytest.raises(HypervisorError, match="how large the balloon is"):
        run(hotplug.balloon(Monitor(query_balloon=answer), None))  # type: ignore[arg-type]


def states(*names: str) -> list[dict[str, str]]:
    return [{"status": name} for name in names]


def test_a_state_is_written_without_memory() -> None:
    qmp = Monitor(query_migrate=states("none", "setup", "active", "device", "completed"))
    run(migration.save(qmp, 7))  # type: ignore[arg-type]
    (name,) = qmp.files
    assert qmp.files[name] == 7
    assert [call["uri"] for call in qmp.of("migrate")] == [f"fd:{name}"]
    (capabilities,) = qmp.of("migrate-set-capabilities")
    assert capabilities == {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
    order = [command for command, _ in qmp.calls]
    assert order.index("migrate-set-capabilities") < order.index("migrate")


def test_a_clone_stands_still_when_its_state_is_read() -> None:
    qmp = Monitor(query_status=states("inmigrate", "inmigrate", "paused"))
    run(migration.load(qmp, 9))  # type: ignore[arg-type]
    assert [command for command, _ in qmp.calls] == [
        "migrate-set-capabilities", "migrate-incoming", "query-status", "query-status", "query-status",
    ]  # fmt: skip
    assert qmp.of("migrate-incoming") == [{"uri": "fd:9"}]


@pytest.mark.parametrize("answer", [{"status": "failed", "error-desc": "no room"}, {"status": ["x"]}, {}, None, "x"])
def test_a_state_that_cannot_be_written_is_an_error(answer: object) -> None:
    qmp = Monitor(query_migrate=answer)
    with pytest.raises(HypervisorError, match="could not move a VM's state") as caught:
        run(migration.save(qmp, 7))  # type: ignore[arg-type]
    assert ("no room" in str(caught.value)) == ("no room" in str(answer))


@pytest.mark.parametrize("status", ["internal-error", "shutdown", "guest-panicked"])
def test_a_state_that_cannot_be_read_is_an_error_and_nothing_goes_on(status: str) -> None:
    qmp = Monitor(query_status=states("inmigrate", status))
    with pytest.raises(HypervisorError, match=status):
        run(migration.load(qmp, 9))  # type: ignore[arg-type]
    assert qmp.of("cont") == []


def test_waiting_for_a_state_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "_TIMEOUT", 0.02)
    qmp = Monitor(query_status=states("inmigrate"))
    with pytest.raises(TimedOutError):
        run(migration.load(qmp, 9))  # type: ignore[arg-type]


def bus(*names: str) -> list[Any]:
    """An answer to query-pci: devices in slots 1, 2 and so on."""
    devices = [{"slot": slot, "qdev_id": name} for slot, name in enumerate(names, 1)]
    return [{"bus": 0, "devices": devices}]


def test_a_device_is_taken_away_by_its_slot() -> None:
    qmp = Monitor(query_pci=[bus("", "serial", "share"), bus("", "serial")], human_monitor_command="")
    run(hotplug.take_away(qmp, "share"))  # type: ignore[arg-type]
    lines = [call["command-line"] for call in qmp.of("human-monitor-command")]
    assert lines == ["o /w 0xae10 0x0", "o /w 0xae08 0x8"]


@pytest.mark.parametrize(("there", "tries"), [(bus("share"), 2), (bus("serial"), 0), ([], 0), ([{}], 0), ({}, 0)])
def test_a_device_that_stays_or_is_not_there(there: Any, tries: int) -> None:
    qmp = Monitor(query_pci=[there, there], human_monitor_command="unknown command")
    with pytest.raises(FreezeError, match="does not take a share's device away"):
        run(hotplug.take_away(qmp, "share"))  # type: ignore[arg-type]
    assert len(qmp.of("human-monitor-command")) == tries
