"""What the agent is asked to prepare for a container: only what is well formed gets as far as the kernel."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hako.agent import ephemeral
from hako.wire import calls


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"modules": ["tun"]}, "prepare.modules: not an object"),
        ({"modules": {"tun": "yes"}}, "prepare.modules: not an object"),
        ({"memory": {"a": 1}}, "prepare.memory: not an object"),
        ({"memory": {"../a": ""}}, "prepare.memory: not a name"),
        ({"memory": {"": ""}}, "prepare.memory: not a name"),
        ({"sysctls": {"net/../kernel/hostname": "x"}}, "is not a path below /proc/sys"),
        ({"sysctls": {"/etc/passwd": "x"}}, "is not a path below /proc/sys"),
        ({"sysctls": {"net//x": "x"}}, "is not a path below /proc/sys"),
        ({"sysctls": {"net/nonsense": "1"}}, "parameter net.nonsense set to '1': No such file or directory"),
        ({"sysctls": {"net/a\0b": "1"}}, "embedded null byte"),
        ({"sysctls": {str(number): "" for number in range(300)}}, "not an object of at most 256 str values"),
    ],
)
def test_what_makes_no_sense_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(calls.CallError, match=message) as caught:
        ephemeral.prepare(wanted)
    assert caught.value.code == calls.INVALID_ARGUMENT
    assert not os.path.exists("/run/hako/memory")


def test_nothing_is_nothing_to_do() -> None:
    ephemeral.prepare({})
