"""Which descriptions of VMs are refused, and how a VM's end reads."""

from __future__ import annotations

from typing import Any

import pytest

from hako.errors import ConfigError
from hako.hypervisor.base import MIN_MEMORY, AgentChannel, Rng, Share9p, VmExit, VmSpec

GOOD = VmSpec("pod1", "/k", "/i", "quiet", MIN_MEMORY)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"vcpus": 255},
        {"accelerator": "kvm"},
        {"devices": ()},
        {"devices": (Share9p("a", "/x"), Share9p("b", "/x"))},
        {"devices": (Share9p("t" * 31, "/x"),)},
        {"cmdline": ""},
    ],
)
def test_accepted(change: dict[str, Any]) -> None:
    spec = GOOD._replace(**change)
    assert spec.checked() == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "../x"}, "VM id '../x'"),
        ({"id": "a,b"}, "VM id"),
        ({"memory": MIN_MEMORY - 1}, "too little"),
        ({"memory": -1}, "too little"),
        ({"vcpus": 0}, "0 vCPUs"),
        ({"vcpus": 256}, "256 vCPUs"),
        ({"accelerator": "hax"}, "'hax'"),
        ({"cmdline": "a\0b"}, "NUL"),
        ({"kernel": "/k\0"}, "NUL"),
        ({"devices": (Share9p("", "/x"),)}, "Mount tag ''"),
        ({"devices": (Share9p("t" * 32, "/x"),)}, "Mount tag"),
        ({"devices": (Share9p("é" * 16, "/x"),)}, "Mount tag"),
        ({"devices": (Share9p("a\nb", "/x"),)}, "Mount tag"),
        ({"devices": (Share9p("a", "/x\0"),)}, "NUL"),
        ({"devices": (Share9p("a", "/x"), Share9p("a", "/y"))}, "each tag once"),
        ({"devices": (AgentChannel(), AgentChannel("b"))}, "more than one AgentChannel"),
        ({"devices": (Rng(), Rng())}, "more than one Rng"),
    ],
)
def test_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GOOD._replace(**change).checked()
    assert says in str(caught.value)


def test_the_sentence_of_an_end_has_the_last_lines() -> None:
    lines = [f"line {number}" for number in range(9)]
    text = VmExit(None, 9, "QEMU was ended by signal SIGKILL", lines, False).sentence("pod1")
    assert text == (
        "The VM of pod1 ended: QEMU was ended by signal SIGKILL. "
        "Last console lines: line 4 | line 5 | line 6 | line 7 | line 8"
    )
    assert VmExit(0, None, "it was stopped", [], True).sentence("pod1") == "The VM of pod1 ended: it was stopped."
