"""The installer's calls of the Kubernetes API, to a server that answers them over TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import kubeapi, source
from support.kubeapi import KubeApi

PROGRAM = os.path.join(source.CLONE, "deploy", "installer", "kube.py")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with KubeApi(tmp_path) as made:
        yield made


def kube(api: KubeApi, *args: str, **environment: str) -> tuple[int, str]:
    """Exit code and errors of kube.py."""
    done = subprocess.run(
        [sys.executable, "-I", PROGRAM, *args], env={**api.environment, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_the_node_is_marked_and_unmarked(api: KubeApi) -> None:
    before = dict(api.labels)
    assert kube(api, "label", "ready") == (0, "")
    assert api.labels == {**before, "dev.hako/runtime": "ready"}
    assert kube(api, "unlabel") == (0, "")
    assert api.labels == before
    assert kube(api, "unlabel") == (0, "")


def test_a_node_that_is_not_there_cannot_be_marked(api: KubeApi) -> None:
    assert kube(api, "label", "ready", NODE_NAME="other/../x") == (1, "Error: There is no node other/../x.\n")
    assert api.calls == ["PATCH /api/v1/nodes/other%2F..%2Fx"]
    assert kube(api, "unlabel", NODE_NAME="other")[0] == 0


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"daemonset": False}, 3),
        ({"deleting": True}, 3),
        ({"labels": {}}, 3),
        ({"labels": {"dev.hako/install": "false"}}, 3),
        ({"labels": {"dev.hako/install": "true", "other": "x"}}, 0),
        ({"broken": 403}, 1),
        ({"broken": 500}, 1),
    ],
)
def test_whether_the_node_is_to_have_hako(api: KubeApi, change: dict[str, object], status: int) -> None:
    for name, value in change.items():
        setattr(api, name, value)
    assert kube(api, "wanted")[0] == status


def test_a_node_that_has_gone_is_left_alone(api: KubeApi) -> None:
    assert kube(api, "wanted", NODE_NAME="gone")[0] == 0


def test_the_daemonset_is_removed_with_its_pods(api: KubeApi) -> None:
    assert kube(api, "remove-daemonset") == (0, "")
    assert not api.daemonset
    assert [call.split()[0] for call in api.calls] == ["DELETE", "GET", "GET", "GET"]
    assert kube(api, "remove-daemonset") == (0, "")


def test_a_refusal_is_told(api: KubeApi) -> None:
    api.broken = 403
    status, said = kube(api, "label", "ready")
    assert status == 1
    assert f"PATCH /api/v1/nodes/{kubeapi.NODE} was answered with 403: " in said
    assert "not today" in said


def test_a_server_with_another_certificate_is_not_believed(api: KubeApi, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with KubeApi(other) as second:
        account = second.environment["HAKO_KUBE_ACCOUNT"]
        status, said = kube(api, "label", "ready", HAKO_KUBE_ACCOUNT=account)
    assert status == 1
    assert "certificate verify failed" in said
    assert api.calls == []


def test_without_a_service_account_it_says_so(api: KubeApi, tmp_path: Path) -> None:
    status, said = kube(api, "wanted", HAKO_KUBE_ACCOUNT=str(tmp_path / "none"))
    assert status == 1
    assert said.startswith("Error: The pod has no service account: ")


def test_a_wrong_command_line_is_refused(api: KubeApi) -> None:
    assert kube(api, "label")[0] == 2
    assert api.calls == []
