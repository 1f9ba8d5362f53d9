"""Where shims are found: names that follow from what containerd says, and sockets that are left behind."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest

from hako import ids
from hako.errors import HostError
from hako.shim import places
from hako.shim.call import Call


def call(address: str = "/run/containerd/containerd.sock", namespace: str = "default") -> Call:
    return Call(namespace=namespace, id="c1", address=address, publish_binary="", bundle="/", debug=False, events="")


def test_names_follow_from_engine_namespace_and_container() -> None:
    names = {
        places.sandbox_id(call(), "c1"),
        places.sandbox_id(call(), "c2"),
        places.sandbox_id(call(namespace="other"), "c1"),
        places.sandbox_id(call(address="/elsewhere"), "c1"),
    }
    assert len(names) == 4
    assert all(ids.is_valid(name) for name in names)
    assert places.sandbox_id(call(), "c1") in names
    assert places.address(call(), "c1").startswith("unix:///run/containerd/s/")


def test_a_socket_directory_of_containerds_choice(tmp_path: pathlib.Path) -> None:
    assert places.address(call(), "c1", "/run/x").startswith("unix:///run/x/")
    with pytest.raises(HostError, match="too long a name"):
        places.address(call(), "c1", "/" + "x" * 60)


@pytest.fixture
def address(tmp_path: pathlib.Path) -> str:
    return f"unix://{tmp_path}/s/socket"


def test_a_shims_socket_is_for_our_user_alone(address: str) -> None:
    with places.listen(address):
        assert places.answers(address)
        assert stat.S_IMODE(os.stat(address.removeprefix("unix://")).st_mode) == 0o600
    places.forget(address)
    places.forget(address)
    assert not places.answers(address)


def test_a_socket_that_nobody_listens_at_is_replaced(address: str) -> None:
    places.listen(address).close()
    with places.listen(address):
        assert places.answers(address)


def test_a_socket_that_is_in_use_is_left_alone(address: str) -> None:
    with places.listen(address):
        with pytest.raises(HostError, match="Cannot listen"):
            places.listen(address)
        assert places.answers(address)


def test_the_address_is_written_into_the_bundle(tmp_path: pathlib.Path) -> None:
    assert places.read_address(str(tmp_path)) == ""
    places.write_address(str(tmp_path), "unix:///a")
    assert places.read_address(str(tmp_path)) == "unix:///a"
