"""The trace of real starts, through the real command."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hako
from conftest import RunHako
from hako.sandbox import records

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

#: The kernel tells the start of a process in these steps.
_TICK = 10_000_000
_COMMAND = ("process start", "imports", "options", "image", "fork")
_SANDBOX = ("sandbox process", "agent ready", "share")
_OWN = ("root file system", "create", "start")


@pytest.fixture
def box(run_hako: RunHako) -> Iterator[str]:
    """The name of a container that is removed at the end, whatever has become of it."""
    yield "traced"
    run_hako("rm", "-f", "traced", check=False)


def shown(run_hako: RunHako, ref: str) -> dict[str, dict[str, Any]]:
    """The events of ``hako trace --json``, by name; the phases of the waterfall are the same."""
    events = complete(run_hako("trace", "--json", "-", ref).stdout)
    lines = run_hako("trace", ref).stdout.splitlines()[3:]
    assert sorted(re.split(r" {2,}", line)[0] for line in lines) == sorted(events)
    return events


def complete(text: str) -> dict[str, dict[str, Any]]:
    """The complete events of Chrome's JSON, by name, each of which is there once."""
    found = json.loads(text)["traceEvents"]
    threads = {(event["pid"], event["tid"]) for event in found if event["name"] == "thread_name"}
    events = [event for event in found if event["ph"] == "X"]
    assert len(events) + sum(event["ph"] == "M" for event in found) == len(found)
    assert all((event["pid"], event["tid"]) in threads for event in events)
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in events)
    by_name = {event["name"]: event for event in events}
    assert len(by_name) == len(events)
    return by_name


def test_a_start_has_all_its_phases_in_order_and_within_its_time(run_hako: RunHako, box: str, tmp_path: Path) -> None:
    before = time.monotonic_ns()
    run_hako("run", "--name", box, "busybox", "sh", "-c", "echo hello; echo again")
    after = time.monotonic_ns()
    state = records.find(box)
    record = state["containers"][state["spec"]["id"]]
    spans = {name: (start, end) for name, _, start, end in [*state["trace"], *record["trace"]]}
    assert {*_COMMAND, *_SANDBOX, *_OWN, "first output", "exit"} <= set(spans)
    assert all(before - _TICK <= start <= end <= after for start, end in spans.values())
    ordered = [spans[name] for name in (*_COMMAND, *_SANDBOX, "create", "start", "exit")]
    assert all(one[1] <= next_one[0] for one, next_one in itertools.pairwise(ordered))
    assert spans["sandbox process"][0] <= spans["root file system"][0] <= spans["create"][0]
    assert spans["create"][0] <= spans["first output"][0] <= spans["exit"][0]

    events = shown(run_hako, box)
    assert set(events) == set(spans)
    begin = min(start for start, _ in spans.values())
    for name, (start, end) in spans.items():
        assert events[name]["ts"] == pytest.approx((start - begin) / 1e3)
        assert events[name]["dur"] == pytest.approx((end - start) / 1e3)

    page = tmp_path / "page.html"
    run_hako("trace", "--html", str(page), box)
    drawing = re.search("<svg.*</svg>", page.read_text(), re.DOTALL)
    assert drawing is not None
    assert len(xml.dom.minidom.parseString(drawing[0]).getElementsByTagName("rect")) == len(spans)


def test_what_is_removed_at_its_end_can_be_written_down(run_hako: RunHako, box: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    done = run_hako(
        "run", "--rm", "--name", box, "--trace", str(file), "busybox", "sh", "-c", "echo x; exit 3", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "x\n", "")
    assert {*_COMMAND, *_SANDBOX, *_OWN, "first output", "exit"} <= set(complete(file.read_text()))
    gone = run_hako("trace", box, check=False)
    assert gone.returncode == 125
    assert "run with --rm leaves no trace; hako run --trace FILE writes it down." in gone.stderr
    assert gone.stdout == ""


def test_a_running_container(run_hako: RunHako, box: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    script = "while ! test -e /tmp/go; do sleep 0.1; done; echo gone; sleep 1000"
    run_hako("run", "-d", "--name", box, "--trace", str(file), "busybox", "sh", "-c", script)
    written = complete(file.read_text())
    assert {*_COMMAND, *_SANDBOX, *_OWN} <= set(written)
    # So far it has said nothing, and nothing was saved since: what comes now is the sandbox process's own knowledge.
    assert set(shown(run_hako, box)) == set(written)
    run_hako("exec", box, "touch", "/tmp/go")
    deadline = time.monotonic() + 60
    while "gone" not in run_hako("logs", box).stdout:
        assert time.monotonic() < deadline
    assert set(shown(run_hako, box)) == {*written, "first output"}


def test_containers_of_a_shared_sandbox_have_each_their_own(run_hako: RunHako) -> None:
    with hako.Sandbox(image="busybox") as sandbox:
        first = sandbox.create(["sleep", "1000"], name="first")
        second = sandbox.create(["echo", "hello"], name="second", start=False)
        created = shown(run_hako, f"{sandbox.id}/second")
        assert set(created) == {"root file system", "create"}
        second.start()
        second.wait()
        assert {"create", "start", "exit"} <= set(shown(run_hako, f"{sandbox.id}/second"))
        # The first one was asked for while the VM was starting, and had to wait for it.
        events = shown(run_hako, f"{sandbox.id}/{first.id}")
        assert {"process start", *_SANDBOX, *_OWN} <= set(events)
        assert events["process start"]["cat"] == "sandbox"
        assert "first output" not in events
        many = run_hako("trace", sandbox.id, check=False)
        assert "has 2 containers; name one of them" in many.stderr
    assert not os.path.exists(records.run_dir(sandbox.id))
