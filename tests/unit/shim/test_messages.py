"""containerd's messages: each against Google's library, some against bytes that are known."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hako.shim
from hako.shim import bootstrap_messages, cri_messages, event_messages, messages, metrics_v1_messages, task_messages
from hako.shim.messages import Any, Mount, Timestamp
from hako.wire.protobuf import Message, ProtobufError
from support import protos

MODULES = [
    importlib.import_module(f"hako.shim.{module.name}")
    for module in pkgutil.iter_modules(hako.shim.__path__)
    if module.name.endswith("messages")
]
CLASSES = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind.__module__ == module.__name__ and kind.FULL_NAME
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.FULL_NAME)
def test_each_message_is_what_its_oracle_makes_of_it(kind: type[Message]) -> None:
    reference = protos.oracle(kind)

    @settings(max_examples=15, deadline=None)
    @given(protos.instances(kind))
    def check(message: Message) -> None:
        data = message.encode()
        theirs = reference.FromString(data)
        assert protos.plain(message) == protos.plain_of_oracle(kind, theirs)
        assert theirs.SerializeToString(deterministic=True) == data
        assert protos.plain(kind.decode(data)) == protos.plain(message)

    check()


def test_all_messages_have_been_seen() -> None:
    assert len(MODULES) >= 8
    assert {"containerd.task.v3.CreateTaskRequest", "runtime.v1.PodSandboxConfig"} <= {one.FULL_NAME for one in CLASSES}


def test_names_and_numbers_are_used_once() -> None:
    assert len({kind.FULL_NAME for kind in CLASSES}) == len(CLASSES)
    for kind in CLASSES:
        assert len({field.number for field in kind.FIELDS}) == len(kind.FIELDS), kind
        assert all(field.number > 0 for field in kind.FIELDS), kind


def test_events_have_a_topic_each() -> None:
    events = [kind for kind in CLASSES if issubclass(kind, event_messages.Event)]
    assert len({kind.TOPIC for kind in events} - {""}) == len(events) == 10


def test_an_any_names_what_it_holds() -> None:
    mount = Mount(type="bind", source="/a", options=["ro"])
    packed = Any.pack(mount)
    assert packed.type_url == "containerd.types.Mount"
    assert packed.unpack(Mount) == mount
    assert packed.unpack(Timestamp) is None
    assert Any(type_url="type.googleapis.com/containerd.types.Mount", value=packed.value).unpack(Mount) == mount
    assert not Any(type_url="containerd.types.Mounts").holds(Mount)
    with pytest.raises(ProtobufError):
        Any(type_url="containerd.types.Mount", value=b"\xff").unpack(Mount)


@given(st.integers(-(10**18), 10**19))
def test_timestamps_of_nanoseconds(nanoseconds: int) -> None:
    moment = Timestamp.of_ns(nanoseconds)
    assert moment.seconds * 10**9 + moment.nanos == nanoseconds
    assert 0 <= moment.nanos < 10**9


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, (0, 0)), (1.5, (1, 500_000_000)), (-0.25, (-1, 750_000_000)), (1.9999999999, (2, 0))],
)
def test_timestamps_of_seconds(seconds: float, expected: tuple[int, int]) -> None:
    moment = Timestamp.of(seconds)
    assert (moment.seconds, moment.nanos) == expected


def test_known_bytes() -> None:
    """Written down by hand from the .proto files."""
    state = task_messages.StateResponse(
        id="a", bundle="b", pid=300, status=task_messages.TaskStatus.STOPPED, exit_status=137, exec_id="x",
        exited_at=Timestamp(seconds=1),
    )  # fmt: skip
    assert state.encode().hex(" ") == "0a 01 61 12 01 62 18 ac 02 20 03 48 89 01 52 02 08 01 5a 01 78"
    trace = bootstrap_messages.BootstrapParams(log_level=bootstrap_messages.LogLevel.TRACE, socket_dir="/s")
    assert trace.encode().hex(" ") == "18 f8 ff ff ff ff ff ff ff ff 01 4a 02 2f 73"
    processor = metrics_v1_messages.CPUStat(usage=metrics_v1_messages.CPUUsage(total=1, per_cpu=[0, 1]))
    assert processor.encode().hex(" ") == "0a 06 08 01 22 02 00 01"
    failure = messages.Response(status=messages.Status(code=5, message="no"))
    assert failure.encode().hex(" ") == "0a 06 08 05 12 02 6e 6f"


def test_a_pod_from_a_newer_kubernetes() -> None:
    """Its fields for Windows, and those that nobody knows yet, are skipped."""
    pod = cri_messages.PodSandboxConfig(hostname="h", labels={"a": "b"})
    assert cri_messages.PodSandboxConfig.decode(b"\x4a\x02\x0a\x00" + pod.encode() + b"\xfa\x3f\x01x") == pod
