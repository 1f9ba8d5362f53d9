"""What a clone must have in common with its template, and what not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hako.errors import HostError
from hako.hypervisor.base import AgentChannel, Balloon, MemoryDevice, Nic, Rng, Share9p, VmSpec
from hako.template import identity

_DEVICES = (AgentChannel(), Rng(), Balloon(), MemoryDevice(1 << 30), Nic("02:00:00:00:00:09"), Share9p("tag", "/a"))
_SPEC = VmSpec("pod1", "/images/vmlinux", "/images/initrd", "quiet", 256 << 20, 1, 4, "private", devices=_DEVICES)


@pytest.fixture
def key(tmp_path: Path) -> Callable[..., str]:
    """The key of a VM, from the changes to the usual one."""
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\n")
    qemu.chmod(0o755)

    def make(image: str = "a" * 64, **changes: Any) -> str:
        return identity.key(identity.describe(_SPEC._replace(**changes), image, str(qemu)))

    return make


def _without(kind: type) -> tuple[Any, ...]:
    return tuple(device for device in _DEVICES if not isinstance(device, kind))


def _with(kind: type, **changes: Any) -> tuple[Any, ...]:
    return tuple(device._replace(**changes) if isinstance(device, kind) else device for device in _DEVICES)


@pytest.mark.parametrize(
    "changes",
    [
        {"cmdline": "quiet debug"},
        {"memory": 512 << 20},
        {"vcpus": 2},
        {"max_vcpus": 8},
        {"sharing": "shared"},
        {"accelerator": "kvm"},
        {"cpu": "Nehalem"},
        {"machine": "q35"},
        {"initrd": None},
        *({"devices": _without(type(device))} for device in _DEVICES),
        {"devices": tuple(reversed(_DEVICES))},
        {"devices": _with(MemoryDevice, size=2 << 30)},
        {"devices": _with(AgentChannel, name="other")},
        {"devices": _with(Share9p, tag="other")},
        {"devices": _with(Share9p, readonly=True)},
        {"image": "b" * 64},
    ],
    ids=str,
)
def test_what_must_match_changes_the_key(key: Callable[..., str], changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "pod2"},
        {"devices": _with(Share9p, path="/run/hako/sandboxes/pod2/shared")},
        {"devices": _with(Nic, mac="02:aa:bb:cc:dd:ee")},
        # The image's digest says what is in these.
        {"kernel": "/elsewhere/vmlinux"},
        {"initrd": "/elsewhere/initrd"},
    ],
    ids=str,
)
def test_what_is_a_clones_own_does_not(key: Callable[..., str], changes: dict[str, Any]) -> None:
    assert key(**changes) == key()


@pytest.mark.parametrize("name", ["FORMAT", "__version__", "PROTOCOL_VERSION"])
def test_another_hako_has_other_templates(key: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = key()
    monkeypatch.setattr(identity, name, "another")
    assert key() != before


def test_a_qemu_that_was_replaced_is_another_one(key: Callable[..., str], tmp_path: Path) -> None:
    qemu, before = tmp_path / "qemu", key()
    assert key() == before
    os.utime(qemu, ns=(0, 1))
    changed = key()
    assert changed != before
    (tmp_path / "new").write_text("#!/bin/sh\n\n")
    (tmp_path / "new").chmod(0o755)
    os.utime(tmp_path / "new", ns=(0, 1))
    os.rename(tmp_path / "new", qemu)
    assert key() not in (before, changed)


def test_another_processor_counts_under_kvm_alone(key: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    tcg, kvm = key(), key(accelerator="kvm")
    monkeypatch.setattr(identity, "_processor", lambda: "another")
    assert key() == tcg
    assert key(accelerator="kvm") != kvm


def test_what_is_known_of_the_processor_is_short_and_stays() -> None:
    assert identity._processor() == identity._processor()
    assert len(identity._processor()) == 16


def test_a_missing_qemu_is_a_sentence() -> None:
    with pytest.raises(HostError, match="no program no-such-qemu"):
        identity.describe(_SPEC, "a" * 64, "no-such-qemu")


def test_a_key_is_a_file_name_and_survives_json(key: Callable[..., str], tmp_path: Path) -> None:
    what = identity.describe(_SPEC, "a" * 64, str(tmp_path / "qemu"))
    assert identity.key(json.loads(json.dumps(what))) == identity.key(what) == key()
    assert len(key()) == identity.KEY_LENGTH
    assert key().isalnum()


def test_the_templates_own_vm_has_nothing_of_a_clones() -> None:
    made = identity.as_template(_SPEC, "/empty")
    text = repr(made)
    assert made.sharing == "shared"
    assert "/empty" in text
    for own in ("pod1", "'/a'", "02:00:00:00:00:09"):
        assert own not in text
    assert identity.as_template(made, "/empty") == made


@pytest.mark.parametrize(
    ("khz", "same"), [("2596140", True), ("2596139", True), ("2596190", False), ("2597140", False), ("fast", False)]
)
def test_a_frequency_may_differ_by_what_measuring_does(key: Callable[..., str], khz: str, same: bool) -> None:
    one = key(cmdline="quiet tsc_early_khz=2596140 panic=-1")
    assert (key(cmdline=f"quiet tsc_early_khz={khz} panic=-1") == one) is same
