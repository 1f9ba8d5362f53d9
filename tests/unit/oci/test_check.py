"""config.json is checked as far as hako relies on it: every mistake is named with its place, nothing else raises."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ConfigError
from hako.oci import check, spec

GOOD: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "additionalGids": [5]},
        "args": ["sh"],
        "env": ["A=b"],
        "cwd": "/",
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 18446744073709551615}],
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "box",
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
    "annotations": {"a": "b"},
    "linux": {
        "namespaces": [{"type": "pid"}],
        "resources": {"memory": {"limit": -1}, "devices": [{"allow": False, "access": "rwm"}]},
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO"}]},
        "sysctl": {"net.core.somaxconn": "1"},
    },
}

# Where a value is put, the value, and the start of the sentence.
MISTAKES: list[tuple[str, object, str]] = [
    ("process", "x", "$.process: must be an object, not a text"),
    ("process", None, "$.process: is missing"),
    ("root", None, "$.root: is missing"),
    ("root.path", "", "$.root.path: must not be empty"),
    ("root.path", 7, "$.root.path: must be a text, not a number"),
    ("root.readonly", 1, "$.root.readonly: must be a boolean, not a number"),
    ("process.args", [], "$.process.args: must not be empty"),
    ("process.args", "sh", "$.process.args: must be a list, not a text"),
    ("process.args", [7], "$.process.args[0]: must be a text, not a number"),
    ("process.args", ["sh", "a\0b"], "$.process.args[1]: must not contain a NUL"),
    ("process.args", ["\ud800"], "$.process.args[0]: must be text that UTF-8"),
    ("process.args", None, "$.process.args: is missing"),
    ("process.cwd", "tmp", "$.process.cwd: must be an absolute path"),
    ("process.env", [None], "$.process.env[0]: must be a text, not null"),
    ("process.terminal", "yes", "$.process.terminal: must be a boolean"),
    ("process.user", [], "$.process.user: must be an object, not a list"),
    ("process.user.uid", -1, "$.process.user.uid: must be between 0 and 4294967295, not -1"),
    ("process.user.uid", True, "$.process.user.uid: must be a whole number, not a boolean"),
    ("process.user.gid", 1.5, "$.process.user.gid: must be a whole number"),
    ("process.user.additionalGids", [0, "a"], "$.process.user.additionalGids[1]: must be a whole number"),
    ("process.rlimits", [{"soft": 1}], "$.process.rlimits[0].type: is missing"),
    ("process.oomScoreAdj", 2000, "$.process.oomScoreAdj: must be between -1000 and 1000"),
    ("process.capabilities", {"bounding": "CAP_KILL"}, "$.process.capabilities.bounding: must be a list"),
    ("mounts", {}, "$.mounts: must be a list"),
    ("mounts", [{}], "$.mounts[0].destination: is missing"),
    ("mounts", [{"destination": "/a", "type": "bind"}], "$.mounts[0].source: is missing, and a bind"),
    ("mounts", [{"destination": "/a", "options": ["rbind"]}], "$.mounts[0].source: is missing, and a bind"),
    ("mounts", [{"destination": "/a", "options": "ro"}], "$.mounts[0].options: must be a list"),
    ("annotations", {"a": 1}, "$.annotations['a']: must be a text"),
    ("hooks", {"poststop": [{"path": "x"}]}, "$.hooks.poststop[0].path: must be an absolute path"),
    ("linux", 1, "$.linux: must be an object"),
    ("linux.namespaces", [{}], "$.linux.namespaces[0].type: is missing"),
    ("linux.resources.memory.limit", "1g", "$.linux.resources.memory.limit: must be a whole number"),
    ("linux.resources.cpu", {"quota": "x"}, "$.linux.resources.cpu.quota: must be a whole number"),
    ("linux.devices", [{"path": "/dev/x"}], "$.linux.devices[0].type: is missing"),
    ("linux.seccomp", {}, "$.linux.seccomp.defaultAction: is missing"),
    ("linux.seccomp.syscalls", [{"names": [], "action": 1}], "$.linux.seccomp.syscalls[0].action: must be a text"),
    ("linux.sysctl", {"a": 1}, "$.linux.sysctl['a']: must be a text"),
    ("linux.uidMappings", [{"hostID": 1}], "$.linux.uidMappings[0].containerID: is missing"),
    ("mounts", [{"destination": "/a", "uidMappings": [{}]}], "$.mounts[0].uidMappings[0].containerID: is missing"),
    ("process.rlimits", [{"type": "A"}, {"type": "A"}], "$.process.rlimits[1].type: A is given a second time"),
    ("process.scheduler", "fast", "$.process.scheduler: must be an object"),
    ("hooks", {"prestart": [{"path": "/x", "timeout": 0}]}, "$.hooks.prestart[0].timeout: must be between 1 and"),
    ("linux.personality", {"flags": []}, "$.linux.personality.domain: is missing"),
    ("linux.timeOffsets", {"boottime": 5}, "$.linux.timeOffsets['boottime']: must be an object"),
    ("linux.resources.rdma", [], "$.linux.resources.rdma: must be an object"),
    ("linux.resources.hugepageLimits", [{"limit": 1}], "$.linux.resources.hugepageLimits[0].pageSize: is missing"),
    ("linux.seccomp.flags", "x", "$.linux.seccomp.flags: must be a list"),
    (
        "linux.seccomp.syscalls",
        [{"names": ["a"], "action": "b", "args": [{"index": 9}]}],
        "$.linux.seccomp.syscalls[0].args[0].value: is missing",
    ),
    ("vm", [], "$.vm: must be an object"),
]


def _put(document: dict[str, Any], place: str, value: object) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    document[last] = value


def test_a_good_document_passes_unchanged() -> None:
    document = copy.deepcopy(GOOD)
    assert check.check(document) == GOOD


@pytest.mark.parametrize(("place", "value", "sentence"), MISTAKES)
def test_a_mistake_is_named_with_its_place(place: str, value: object, sentence: str) -> None:
    document = copy.deepcopy(GOOD)
    _put(document, place, value)
    with pytest.raises(ConfigError) as caught:
        check.check(document)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("place", ["mounts", "hooks", "linux", "linux.resources", "process.env", "process.user"])
def test_null_is_the_same_as_absent(place: str) -> None:
    document = copy.deepcopy(GOOD)
    _put(document, place, None)
    check.check(document)
    *parents, last = place.split(".")
    found = document
    for parent in parents:
        found = found[parent]
    assert last not in found


def test_unknown_fields_are_kept() -> None:
    document = copy.deepcopy(GOOD) | {"windows": {"a": None}}
    document["linux"]["future"] = [1]
    assert check.check(document)["windows"] == {"a": None}
    assert document["linux"]["future"] == [1]


def test_a_process_is_checked_alone() -> None:
    assert check.check_process({"args": ["a"], "cwd": "/"})["args"] == ["a"]
    with pytest.raises(ConfigError, match=r"\$\.process: must be an object"):
        check.check_process([])
    with pytest.raises(ConfigError, match=r"\$\.process\.args\[0\]"):
        check.check_process({"args": [1], "cwd": "/"})


def test_what_hako_makes_itself_passes() -> None:
    made = spec.build({"Cmd": ["sh"]}, spec.RunOptions(memory=1 << 30, cpus=1.5, tmpfs=["/tmp"]), rootfs="")
    assert check.check(json.loads(json.dumps(made))) == made


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_PLACES = sorted({place for place, _, _ in MISTAKES})


@given(_ANY)
def test_any_json_is_valid_or_a_config_error(document: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check.check(document)
    assert str(caught.value).startswith("$")


@given(st.dictionaries(st.sampled_from(_PLACES), _ANY, min_size=1, max_size=4))
def test_any_value_in_a_known_place_is_valid_or_a_config_error(values: dict[str, object]) -> None:
    document = copy.deepcopy(GOOD)
    for place, value in values.items():
        try:
            _put(document, place, value)
        except (TypeError, AttributeError):  # an outer place has just become something without fields
            continue
    problem = ""
    try:
        check.check(document)
    except ConfigError as error:
        problem = str(error)
    if problem:
        assert problem.startswith("$.")
    else:
        assert all(isinstance(word, str) for word in document["process"]["args"])
