"""With which rights QEMU is started."""

from __future__ import annotations

import logging
import os

import pytest

from hako.errors import HostError
from hako.hypervisor import confine
from hako.hypervisor.base import AgentChannel, Rng, Share9p, VmSpec
from hako.hypervisor.confine import Account, capabilities, device_groups, find_account, launch_prefix

SPEC = VmSpec("pod1", "/k", None, "", 64 << 20)
_ALWAYS = ["--no-new-privs", "--pdeathsig", "KILL"]
_NONE = ["--inh-caps", "-all", "--ambient-caps", "-all", "--bounding-set", "-all"]


@pytest.mark.parametrize(
    ("account", "caps", "root", "expected"),
    [
        (None, (), False, _ALWAYS),
        (None, ("chown",), False, _ALWAYS),
        (None, (), True, [*_ALWAYS, *_NONE]),
        (Account(5, 6), (), True, [*_ALWAYS, "--reuid", "5", "--regid", "6", "--clear-groups", *_NONE]),
        (Account(5, 6, (7, 8)), (), True, [*_ALWAYS, "--reuid", "5", "--regid", "6", "--groups", "7,8", *_NONE]),
        (
            None,
            ("chown", "fowner"),
            True,
            [*_ALWAYS, *(x.replace("-all", "-all,+chown,+fowner") for x in _NONE)],
        ),
    ],
)
def test_prefix(account: Account | None, caps: tuple[str, ...], root: bool, expected: list[str]) -> None:
    setpriv, *options = launch_prefix(account, caps, root=root)
    assert os.path.basename(setpriv) == "setpriv"
    assert options == expected


def test_a_missing_setpriv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.proc, "find", lambda _name: None)
    with pytest.raises(HostError, match="Install the package util-linux"):
        launch_prefix(None, (), root=True)


def test_only_shares_need_capabilities() -> None:
    assert capabilities(SPEC._replace(devices=(AgentChannel(), Rng()))) == ()
    granted = capabilities(SPEC._replace(devices=(AgentChannel(), Share9p("a", "/a"))))
    assert set(granted) == {"chown", "dac_override", "fowner", "fsetid"}


def _stat(mode: int, gid: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, 0, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "gid", "uid", "groups"),
    [
        (0o20660, 104, 999, (104,)),
        (0o20666, 104, 999, (104,)),
        (0o20640, 104, 999, None),
        (0o20600, 104, 999, None),
        (0o20660, 0, 999, None),
        (0o20660, 104, 0, None),
    ],
)
def test_groups_of_a_device(
    monkeypatch: pytest.MonkeyPatch, mode: int, gid: int, uid: int, groups: tuple[int, ...] | None
) -> None:
    monkeypatch.setattr(confine.os, "stat", lambda path: _stat(mode, gid))
    assert device_groups("/dev/kvm", uid) == groups


def test_groups_of_no_device() -> None:
    assert device_groups("/nonexistent", 999) is None


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(confine, "_reported", set())


def test_account_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.os, "geteuid", lambda: 1000)
    assert find_account("nobody", "tcg") is None


def test_account_for_tcg(as_root: None) -> None:
    account = find_account("nobody", "tcg")
    assert account is not None
    assert account.uid != 0
    assert account.groups == ()


def test_a_missing_user_is_said_once(as_root: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert find_account("no-such-user-here", "tcg") is None
        assert find_account("no-such-user-here", "tcg") is None
    (record,) = caplog.records
    assert "no-such-user-here" in record.getMessage()


@pytest.mark.parametrize(
    ("mode", "gid", "confined", "groups"),
    [(0o20660, 104, True, (104,)), (0o20666, 0, True, ()), (0o20600, 0, False, ()), (0o20660, 0, False, ())],
)
def test_account_for_kvm(
    as_root: None, monkeypatch: pytest.MonkeyPatch, mode: int, gid: int, confined: bool, groups: tuple[int, ...]
) -> None:
    monkeypatch.setattr(confine.os, "stat", lambda path: _stat(mode, gid))
    account = find_account("nobody", "kvm")
    assert (account is not None) is confined
    assert account is None or account.groups == groups
