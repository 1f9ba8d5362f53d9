"""What containerd sends to ``start``, old and new, and what it is answered."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ConfigError
from hako.shim import bootstrap
from hako.shim.bootstrap_messages import BootstrapParams, BootstrapResult, Extension, Options
from hako.shim.call import Call
from hako.shim.messages import Any

_ADDRESS = "unix:///run/containerd/s/abc"


def call(container_id: str = "c1", namespace: str = "k8s.io") -> Call:
    return Call(namespace=namespace, id=container_id, address="", publish_binary="", bundle="/", debug=False, events="")


def read(data: bytes) -> bootstrap.Input:
    ours, theirs = os.pipe()
    with open(theirs, "wb") as file:
        file.write(data)
    with open(ours, "rb") as file:
        return bootstrap.read(call(), file.fileno())


def options(**fields: object) -> Any:
    return Any.pack(Options(**fields))


def test_nothing_is_answered_with_the_plain_address() -> None:
    found = read(b"")
    assert found.params is None
    assert found.answer(_ADDRESS) == _ADDRESS.encode()
    assert found.config_file() is None


def test_old_options_are_read_and_answered_with_the_plain_address() -> None:
    found = read(options(config_path="/etc/hako/other.toml").encode())
    assert found.answer(_ADDRESS) == _ADDRESS.encode()
    assert found.config_file() == "/etc/hako/other.toml"


def test_options_that_are_no_text_are_read() -> None:
    """Their bytes stand where the parameters' namespace would be."""
    found = read(options(config_path="/etc/" + "x" * 300).encode())
    assert found.config_file() == "/etc/" + "x" * 300


def test_parameters_are_read_and_answered_with_a_message() -> None:
    params = BootstrapParams(
        instance_id="c1",
        namespace="k8s.io",
        socket_dir="/run/x",
        extensions=[Extension(value=options(config_path="/a"))],
    )
    found = read(params.encode())
    assert found.socket_dir == "/run/x"
    assert found.config_file() == "/a"
    answer = BootstrapResult.decode(found.answer(_ADDRESS))
    assert (answer.version, answer.address, answer.protocol) == (3, _ADDRESS, "ttrpc")


def test_parameters_of_another_container_are_no_parameters() -> None:
    found = read(BootstrapParams(instance_id="other", namespace="k8s.io").encode())
    assert found.params is None


def test_options_of_another_runtime_are_not_ours() -> None:
    assert read(Any(type_url="containerd.runc.v1.Options", value=b"\x08\x01").encode()).config_file() is None


def test_a_configuration_in_the_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="ConfigPath"):
        read(options(config_body=b"[sandbox]").encode()).config_file()


def test_damaged_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="damaged"):
        read(Any(type_url="runtimeoptions.v1.Options", value=b"\xff").encode()).config_file()


@given(st.binary(max_size=300))
def test_any_input_is_answered(data: bytes) -> None:
    assert read(data).answer(_ADDRESS)
