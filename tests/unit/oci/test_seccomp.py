"""The default seccomp profile, and its compilation on the host. What it does to a process is in tests/system."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hako import arch
from hako.oci import capabilities, seccomp, seccomp_bpf, seccomp_table

ARCHITECTURES = arch.X86_64.seccomp


def _profile(*add: str) -> dict[str, Any]:
    made = seccomp.profile(capabilities.wanted(add), ARCHITECTURES)
    copied: dict[str, Any] = json.loads(json.dumps(made))
    return copied


def _outcome(profile: dict[str, Any], name: str) -> str:
    rules = [rule for rule in profile["syscalls"] if name in rule["names"]]
    if not rules:
        return "unknown"
    if any("args" in rule for rule in rules):
        return "conditional"
    assert len(rules) == 1, f"{name} is in two rules"
    return "allowed" if rules[0]["action"] == "SCMP_ACT_ALLOW" else f"errno {rules[0]['errnoRet']}"


@pytest.mark.parametrize(
    ("name", "by_default", "capability", "with_it"),
    [
        ("read", "allowed", "SYS_ADMIN", "allowed"),
        ("chroot", "allowed", "SYS_ADMIN", "allowed"),
        ("keyctl", "errno 1", "ALL", "errno 1"),
        ("io_uring_setup", "errno 1", "ALL", "errno 1"),
        ("mount", "errno 1", "SYS_ADMIN", "allowed"),
        ("unshare", "errno 1", "SYS_ADMIN", "allowed"),
        ("clone", "conditional", "SYS_ADMIN", "allowed"),
        ("clone3", "errno 38", "SYS_ADMIN", "allowed"),
        ("reboot", "errno 1", "SYS_BOOT", "allowed"),
        ("bpf", "errno 1", "BPF", "allowed"),
        ("syslog", "errno 1", "SYSLOG", "allowed"),
        ("clock_settime", "errno 1", "SYS_TIME", "allowed"),
        ("personality", "conditional", "ALL", "conditional"),
        ("socket", "conditional", "ALL", "conditional"),
        ("not_yet_invented", "unknown", "ALL", "unknown"),
    ],
)
def test_outcomes(name: str, by_default: str, capability: str, with_it: str) -> None:
    assert _outcome(_profile(), name) == by_default
    assert _outcome(_profile(capability), name) == with_it


def test_what_is_newer_than_the_table_is_not_implemented() -> None:
    profile = _profile()
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_no_name_is_in_two_groups() -> None:
    groups = [*seccomp_table.ALWAYS.values(), seccomp_table.NEVER]
    names = sorted(name for group in groups for name in group.split())
    assert [one for one, next_one in pairwise(names) if one == next_one] == []
    guarded = {name for group in seccomp_table.WITH_CAPABILITY.values() for name in group.split()}
    assert not guarded & set(names)


def test_every_capability_of_the_table_exists() -> None:
    assert set(seccomp_table.WITH_CAPABILITY) <= set(capabilities.ALL)


def _program(spec: dict[str, Any]) -> bytes:
    return base64.b64decode(spec["annotations"][seccomp_bpf.ANNOTATION])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path))
    return tmp_path / "cache" / "seccomp"


def test_the_compiled_filter_is_whole_instructions_and_is_kept(cache: Path) -> None:
    spec = {"linux": {"seccomp": _profile()}, "annotations": {"a": "b"}}
    made = seccomp_bpf.precompile(spec)
    assert made["annotations"]["a"] == "b"
    program = _program(made)
    assert len(program) % 8 == 0
    assert 0 < len(program) // 8 <= 4096  # the kernel's limit
    [kept] = cache.iterdir()
    kept.write_bytes(b"from the cache")
    assert _program(seccomp_bpf.precompile(spec)) == b"from the cache"
    other = seccomp_bpf.precompile({"linux": {"seccomp": _profile("SYS_ADMIN")}})
    assert _program(other) not in (program, b"from the cache")


@pytest.mark.parametrize(
    "change",
    [
        {"listenerPath": "/x"},
        {"flags": ["SECCOMP_FILTER_FLAG_LOG"]},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": "x"},
        {"architectures": ["SCMP_ARCH_ABACUS"]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_TRACE"}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "?"}]}]},
    ],
)
def test_an_unusual_profile_is_left_to_crun(change: dict[str, Any], cache: Path) -> None:
    spec = {"linux": {"seccomp": {**_profile(), **change}}}
    assert seccomp_bpf.precompile(spec) == spec
    assert not cache.exists()


@pytest.mark.parametrize(
    "spec",
    [{}, {"linux": {}}, {"linux": {"seccomp": {}}, "annotations": {seccomp_bpf.ANNOTATION: "the user's own"}}],
)
def test_nothing_to_compile(spec: dict[str, Any], cache: Path) -> None:
    assert seccomp_bpf.precompile(spec) == spec
