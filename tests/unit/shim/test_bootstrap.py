"""What containerd sends to ``start``, old and new, and what it is answered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ConfigError, HostError
from hako.shim import bootstrap, caller
from hako.shim.bootstrap_messages import BootstrapParams, BootstrapResult, Extension, LogLevel, Options
from hako.shim.call import Call
from hako.shim.messages import Any

_ADDRESS = "unix:///run/containerd/s/abc"


@pytest.fixture(params=["1.6", "2.2"])
def before_2_3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which containerd runs ``start``, of those that send no parameters."""
    monkeypatch.setattr(caller, "knows_task_v3", lambda _: request.param == "2.2")
    version: str = request.param
    return version


def check_answer(version: str, answer: bytes) -> None:
    if version == "1.6":
        assert answer == _ADDRESS.encode()
    else:
        assert json.loads(answer) == {"version": 3, "address": _ADDRESS, "protocol": "ttrpc"}


def call(container_id: str = "c1", namespace: str = "k8s.io") -> Call:
    return Call(namespace=namespace, id=container_id, address="", publish_binary="", bundle="/", debug=False, events="")


def read(data: bytes, whose: Call | None = None) -> bootstrap.Input:
    fd = os.memfd_create("input")
    with open(fd, "wb") as file:
        file.write(data)
        file.seek(0)
        return bootstrap.read(whose or call(), fd)


def options(**fields: object) -> Any:
    return Any.pack(Options(**fields))


def test_nothing_is_answered(before_2_3: str) -> None:
    found = read(b"")
    assert found.params is None
    check_answer(before_2_3, found.answer(_ADDRESS))
    assert found.config_file() is None


def test_old_options_are_read_and_answered(before_2_3: str) -> None:
    found = read(options(config_path="/etc/hako/other.toml").encode())
    check_answer(before_2_3, found.answer(_ADDRESS))
    assert found.config_file() == "/etc/hako/other.toml"


def test_options_that_are_no_text_are_read() -> None:
    """Their bytes stand where the parameters' namespace would be."""
    found = read(options(config_path="/etc/" + "x" * 300).encode())
    assert found.config_file() == "/etc/" + "x" * 300


def test_parameters_are_read_and_answered_with_a_message(before_2_3: str) -> None:
    params = BootstrapParams(
        instance_id="c1",
        namespace="k8s.io",
        socket_dir="/run/x",
        extensions=[Extension(value=options(config_path="/a"))],
    )
    found = read(params.encode() + b"\xfa\x01\x03new")  # and a field that nobody knows yet
    assert found.socket_dir == "/run/x"
    assert found.config_file() == "/a"
    answer = BootstrapResult.decode(found.answer(_ADDRESS))
    assert (answer.version, answer.address, answer.protocol) == (3, _ADDRESS, "ttrpc")


@pytest.mark.parametrize(
    ("level", "debug"), [(LogLevel.TRACE, True), (LogLevel.DEBUG, True), (LogLevel.INFO, False), (LogLevel.WARN, False)]
)
def test_what_only_the_parameters_say(level: int, *, debug: bool) -> None:
    whose = call()
    events = "/run/containerd/containerd.sock.ttrpc"
    params = BootstrapParams(instance_id="c1", namespace="k8s.io", log_level=level, containerd_ttrpc_address=events)
    read(params.encode(), whose)
    assert (whose.debug, whose.events) == (debug, events)


def test_parameters_may_be_options_of_an_odd_type() -> None:
    """Both are two texts, if there is no more in the parameters, which containerd always has."""
    found = read(BootstrapParams(instance_id="other", namespace="k8s.io").encode())
    assert found.params is None


@pytest.mark.parametrize("whose", [("other", "k8s.io"), ("c1", "moby"), ("", "")])
def test_parameters_of_another_container_are_refused(whose: tuple[str, str]) -> None:
    params = BootstrapParams(instance_id=whose[0], namespace=whose[1], containerd_version="2.3.0")
    with pytest.raises(ConfigError, match=f"container {whose[0]!r} of the namespace {whose[1]!r}, not for 'c1'"):
        read(params.encode())


def test_a_directory_for_the_socket_that_depends_on_where_one_is_is_refused() -> None:
    params = BootstrapParams(instance_id="c1", namespace="k8s.io", socket_dir="s")
    with pytest.raises(ConfigError, match="'s' for the shim's socket is not an absolute path"):
        read(params.encode())


@pytest.mark.parametrize("data", [b"garbage", b"\xff", b"{}", b"\n\x05four"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="no message of containerd's"):
        read(data)


def test_what_is_too_long_is_refused() -> None:
    value = Any(type_url="a.b", value=bytes(4 << 20))
    with pytest.raises(ConfigError, match="more than 4194304 bytes"):
        read(value.encode())


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(HostError, match="standard input cannot be read: Is a directory"):
            bootstrap.read(call(), fd)
    finally:
        os.close(fd)


def test_options_of_another_runtime_are_not_ours() -> None:
    assert read(Any(type_url="containerd.runc.v1.Options", value=b"\x08\x01").encode()).config_file() is None


def test_a_configuration_in_the_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="ConfigPath"):
        read(options(config_body=b"[sandbox]").encode()).config_file()


def test_damaged_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="damaged"):
        read(Any(type_url="runtimeoptions.v1.Options", value=b"\xff").encode()).config_file()


@given(st.binary(max_size=300))
def test_any_input_is_answered_or_refused(data: bytes) -> None:
    try:
        found = read(data)
    except ConfigError:
        return
    assert found.answer(_ADDRESS)
