"""What the agent is asked to prepare for a container: only what is well formed gets as far as the kernel."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from hako.agent import ephemeral
from hako.agent.loop import Future, Loop
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


def answer(loop: Loop, names: object) -> None:
    """Have modules requested, to the end."""
    done = Future()

    async def ask() -> None:
        try:
            await ephemeral.request(loop, names)
            done.set(None)
        except calls.CallError as error:
            done.set(error)

    loop.spawn(ask())
    loop.run(done)
    if done.value is not None:
        raise done.value


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    loop.start()
    yield loop
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    loop.close()


@pytest.mark.parametrize(
    "names", ["ip_tables", [1], [""], ["-r"], ["a b"], ["../x"], ["a/b"], ["a.ko"], ["x"] * 17, {"x": True}]
)
def test_only_names_are_requested(loop: Loop, names: object) -> None:
    with pytest.raises(calls.CallError, match=r"prepare.request: not a ") as caught:
        answer(loop, names)
    assert caught.value.code == calls.INVALID_ARGUMENT


def test_a_module_is_requested_once(loop: Loop, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, told = tmp_path / "modprobe", tmp_path / "told"
    program.write_text(f'#!/bin/sh\necho "$@" >>{told}\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(ephemeral, "_MODPROBE", str(program))
    monkeypatch.setattr(ephemeral, "_requested", set())
    answer(loop, ["one", "two-2"])
    answer(loop, [])
    answer(loop, ["two-2", "three", "one"])
    assert told.read_text() == "-q -a one two-2\n-q -a three\n"


def test_an_image_need_not_have_modules(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ephemeral, "_MODPROBE", "/nowhere/modprobe")
    monkeypatch.setattr(ephemeral, "_requested", set())
    answer(loop, ["one"])
