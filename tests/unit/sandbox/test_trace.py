"""Writing down the phases of a start."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from hako.sandbox.trace import MAX_SPANS, Trace, of_process, start_time


def names(trace: Trace) -> list[str]:
    """The phases, in the order of their entries."""
    return [span[0] for span in trace.spans]


def test_marks_follow_each_other_without_a_gap() -> None:
    before = time.monotonic_ns()
    trace = Trace()
    trace.mark("one")
    trace.mark("two", "VM")
    one, two = trace.spans
    assert (one[:2], two[:2]) == (["one", "sandbox"], ["two", "VM"])
    assert before <= one[2] <= one[3] == two[2] <= two[3] <= time.monotonic_ns()


def test_what_overlaps_disturbs_no_mark() -> None:
    trace = Trace()
    trace.begin("copy")
    with trace.span("mount", "container"):
        trace.mark("QEMU")
    trace.mark("agent ready")
    assert trace.spans[0][3] is None
    trace.end("copy")
    copy, mount, qemu, agent = trace.spans
    assert copy[2] <= mount[2] <= qemu[3] <= mount[3]
    assert qemu[3] == agent[2]
    assert agent[3] <= copy[3]


def test_an_error_ends_its_span() -> None:
    trace = Trace()
    with pytest.raises(ValueError, match="oops"), trace.span("create"):
        raise ValueError("oops")
    assert trace.spans[0][3] is not None


def test_spans_of_the_same_name_end_each_by_itself() -> None:
    trace = Trace()
    outer, inner = trace.span("share"), trace.span("share")
    with outer:
        with inner:
            pass
        assert [span[3] is None for span in trace.spans] == [True, False]
    trace.end("share")  # nothing is open, and nothing changes
    trace.end("never begun")
    assert trace.spans[1][3] <= trace.spans[0][3]


def test_a_moment_has_no_length() -> None:
    trace = Trace()
    trace.moment("first output", "container")
    name, lane, start, end = trace.spans[0]
    assert (name, lane, start) == ("first output", "container", end)


def test_what_another_process_wrote_goes_before_and_stays_its_own() -> None:
    theirs = Trace()
    theirs.mark("imports", "command")
    theirs.begin("fork", "command")
    theirs.end("fork")
    ours = Trace(theirs)
    ours.mark("sandbox process")
    theirs.mark("later")
    assert names(ours) == ["imports", "fork", "sandbox process"]
    assert ours.spans[1][3] <= ours.spans[2][2]
    theirs.spans[0][0] = "changed"
    assert ours.spans[0][0] == "imports"


def test_it_does_not_grow_without_end() -> None:
    trace = Trace()
    for _ in range(MAX_SPANS + 10):
        with trace.span("again"):
            trace.mark("and again")
    assert len(trace.spans) == MAX_SPANS


def test_spans_are_json_as_they_are() -> None:
    trace = Trace()
    trace.mark("one")
    trace.begin("two")
    assert json.loads(json.dumps(trace.spans)) == trace.spans


@pytest.mark.parametrize("comm", ["python3", "a b", "evil) R 1 (", ")))"])
def test_the_start_time_is_found_behind_any_name(comm: str) -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    assert start_time(f"17 ({comm}) S {fields}\n".encode(), 100) == 22 * 10_000_000


@pytest.mark.parametrize("stat", [b"", b"17 (x) S 1 2", b"17 (x) S " + b"x " * 49])
def test_a_stat_that_is_none_is_an_error(stat: bytes) -> None:
    with pytest.raises(ValueError, match=r"too short|invalid literal"):
        start_time(stat, 100)


def test_the_start_of_a_process_lies_between_its_fork_and_its_code() -> None:
    code = f"import sys; sys.path += {sys.path!r}\nfrom hako.sandbox.trace import process_start; print(process_start())"
    before = time.monotonic_ns()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert before - 10_000_000 <= int(done.stdout) <= time.monotonic_ns()  # the kernel counts in steps of 10 ms


def test_a_process_begins_with_its_start() -> None:
    running_since = time.monotonic_ns()
    trace = of_process("command", running_since)
    trace.mark("imports", "command")
    (first, imports) = trace.spans
    assert (first[:2], first[3]) == (["process start", "command"], running_since)
    assert 0 < first[2] < running_since
    assert imports[2] == running_since
    assert of_process("sandbox").spans[0][3] >= running_since


def test_a_process_whose_start_is_after_its_code_has_no_negative_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hako.sandbox.trace.process_start", lambda: 500)
    assert of_process("command", 400).spans == [["process start", "command", 400, 400]]
