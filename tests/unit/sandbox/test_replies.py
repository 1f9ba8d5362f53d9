"""The agent's longer answers: a hostile guest's are refused, and nothing unexpected is passed on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ProtocolError
from hako.sandbox import replies
from hako.wire.calls import MAX_DEVICES, MAX_PROCESSES

STATS: dict[str, Any] = {
    "cpu": {"usage_usec": 5, "core_sched.force_idle_usec": 0},
    "memory": {
        "usage": 1, "limit": None, "peak": 2, "swap": None, "swap_limit": 0, "swap_peak": None,
        "stat": {"anon": 3}, "events": {"oom_kill": 0},
    },
    "pids": {"current": 1, "limit": None},
    "io": {"rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4, "devices": []},
    "hugetlb": [],
    "pressure": {"cpu": {"some": {"avg10": 5, "avg60": 0, "avg300": 0, "total": 1}}, "memory": {}, "io": {}},
    "network": [],
}  # fmt: skip
DEVICE = {"major": 254, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}
HUGE_PAGES = {"page": "2MB", "current": 1, "limit": None, "failures": 0}
INTERFACE = {
    "name": "eth0", "rx_bytes": 1, "rx_packets": 2, "rx_errors": 3, "rx_dropped": 4, "tx_bytes": 5, "tx_packets": 6,
    "tx_errors": 7, "tx_dropped": 8,
}  # fmt: skip
#: Lists in STATS, and what is in them.
LISTS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("io", "devices"), DEVICE),
    (("hugetlb",), HUGE_PAGES),
    (("network",), INTERFACE),
]
PROCESS: dict[str, Any] = {
    "pid": 7,
    "container_pid": 1,
    "ppid": 1,
    "uid": 0,
    "state": "S",
    "ticks": 3,
    "rss": 4096,
    "command": "sleep 60",
}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def paths(value: dict[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, inner in value.items():
        found.append((key,))
        if isinstance(inner, dict):
            found += [(key, *rest) for rest in paths(inner)]
    return found


def changed(value: dict[str, Any], path: tuple[str, ...], new: object) -> dict[str, Any]:
    copied = copy.deepcopy(value)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return copied


def test_good_answers_pass_and_extras_do_not() -> None:
    assert replies.stats({**STATS, "extra": 1}) == STATS
    assert replies.processes({"processes": [{**PROCESS, "extra": 1}] * 2}) == {"processes": [PROCESS] * 2}


@pytest.mark.parametrize(("path", "entry"), LISTS)
def test_lists_in_stats(path: tuple[str, ...], entry: dict[str, Any]) -> None:
    def answer(entries: list[Any]) -> dict[str, Any]:
        return changed(STATS, path, entries)

    assert replies.stats(answer([{**entry, "extra": 1}] * MAX_DEVICES)) == answer([entry] * MAX_DEVICES)
    wrong: list[Any] = [[entry] * (MAX_DEVICES + 1), [1], [None], entry]
    wrong += [[{**entry, key: value}] for key in entry for value in ([], True, 1.5, -1, 1 << 64)]
    for entries in wrong:
        with pytest.raises(ProtocolError, match="no valid"):
            replies.stats(answer(entries))


@pytest.mark.parametrize("path", [path for path in paths(STATS) if path not in [path for path, _ in LISTS]])
@pytest.mark.parametrize("value", ["x", [], True, 1.5, -1, 1 << 64])
def test_wrong_types_in_stats(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(ProtocolError, match="no valid"):
        replies.stats(changed(STATS, path, value))


@pytest.mark.parametrize("key", PROCESS)
@pytest.mark.parametrize("value", [None, [], {}, True, 1.5])
def test_wrong_types_in_processes(key: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=f"no valid {key}"):
        replies.processes({"processes": [{**PROCESS, key: value}]})


@given(anything, st.sampled_from(paths(STATS)))
def test_anything_anywhere(value: object, path: tuple[str, ...]) -> None:
    for check, answer in (
        (replies.stats, changed(STATS, path, value)),
        (replies.processes, {"processes": value}),
        (replies.processes, {"processes": [value]}),
    ):
        try:
            assert isinstance(check(answer), dict)
        except ProtocolError:
            continue


def test_sizes_are_limited() -> None:
    with pytest.raises(ProtocolError):
        replies.processes({"processes": [PROCESS] * (MAX_PROCESSES + 1)})
    with pytest.raises(ProtocolError):
        replies.stats(changed(STATS, ("cpu",), {f"a{n}": 1 for n in range(300)}))
    with pytest.raises(ProtocolError):
        replies.stats(changed(STATS, ("cpu",), {"x" * 65: 1}))
    with pytest.raises(ProtocolError):
        replies.stats(changed(STATS, ("cpu",), {"\x1b[2J": 1}))


def test_text_is_made_printable() -> None:
    answer = replies.processes({"processes": [{**PROCESS, "command": "ls\x1b]0;evil\x07 -l"}]})
    assert answer["processes"][0]["command"] == "ls ]0;evil  -l"
