"""The files by which a pod's containers know names, where no container stands for the pod."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hako.network import dns
from hako.sandbox import records
from hako.shim.cri_messages import DNSConfig, PodSandboxConfig
from hako.shim.podfiles import PodFiles


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path))


def contents(mounts: list[dict[str, Any]]) -> dict[str, str]:
    return {mount["destination"]: Path(mount["source"]).read_text(encoding="utf-8") for mount in mounts}


def test_what_the_pod_says() -> None:
    config = PodSandboxConfig(
        hostname="web",
        dns_config=DNSConfig(servers=["10.0.0.1", "10.0.0.2"], searches=["a.b", "b"], options=["ndots:5"]),
    )
    made = PodFiles("pod", config)
    found = contents(made.mounts({"mounts": [{"destination": "/proc"}]}))
    assert found["/etc/hostname"] == "web\n"
    assert found["/etc/resolv.conf"] == "search a.b b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
    assert "127.0.0.1\tlocalhost\n" in found["/etc/hosts"]


@pytest.mark.parametrize("given", [None, DNSConfig()])
def test_a_pod_that_says_nothing_has_the_hosts_servers(
    given: DNSConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "host_resolv_conf", lambda: "nameserver 192.0.2.1\n")
    found = contents(PodFiles("pod", PodSandboxConfig(dns_config=given)).mounts({}))
    assert found["/etc/resolv.conf"] == "nameserver 192.0.2.1\n"
    assert "/etc/hostname" not in found


def test_what_a_container_mounts_itself_is_left_to_it() -> None:
    made = PodFiles("pod", PodSandboxConfig(hostname="web"))
    found = made.mounts({"mounts": [{"destination": "/etc/hosts/"}]})
    assert [mount["destination"] for mount in found] == ["/etc/hostname", "/etc/resolv.conf"]
    assert made.mounts({"mounts": [{"destination": "etc"}]}) == []


def test_they_are_read_only_where_the_root_is() -> None:
    made = PodFiles("pod", PodSandboxConfig(hostname="web"))
    assert all("ro" in mount["options"] for mount in made.mounts({"root": {"readonly": True}}))
    assert all("rw" in mount["options"] for mount in made.mounts({"root": {"readonly": False}}))


def test_they_go_with_the_record() -> None:
    (source, *_) = [mount["source"] for mount in PodFiles("pod", PodSandboxConfig(hostname="web")).mounts({})]
    assert os.path.exists(source)
    records.forget("pod")
    assert not os.path.exists(source)
