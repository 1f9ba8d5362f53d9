"""``hako trace``: checking what was kept, and showing it as text, as Chrome's JSON and as a page."""

from __future__ import annotations

import json
import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako import store
from hako.cli import picture, timeline, trace, waterfall
from hako.cli.main import main
from hako.cli.timeline import Phase
from hako.errors import ConfigError, HakoError, NotFoundError, StateError
from hako.sandbox import records
from hako.sandbox.spec import SandboxSpec

MS = 1_000_000
BEGIN = 7_000 * MS
ONE, POD = "aaaa000000000001", "bbbb000000000002"


def span(name: str, lane: str, start: float, end: float | None) -> list[Any]:
    """An entry of a trace; times in ms since the beginning."""
    return [name, lane, BEGIN + int(start * MS), None if end is None else BEGIN + int(end * MS)]


SANDBOX = [
    span("process start", "command", 0, 20),
    span("sandbox process", "sandbox", 20, 60),
    span("QEMU", "sandbox", 60, 100),
    span("agent ready", "VM", 100, 300),
]
OWN = [
    span("root file system", "container", 50, 80),
    span("create", "container", 300, 400),
    span("start", "container", 400, 400),
    span("first output", "container", 400, 400),
    span("exit", "container", 5000, 5000),
]


def whole(*more: list[Any]) -> timeline.Timeline:
    """The start of a container with a sandbox of its own."""
    return timeline.build("box", timeline.parse([*SANDBOX, *OWN, *more], "box"))


# --- what was kept ---


@pytest.mark.parametrize(
    ("spans", "wanted"),
    [
        (None, "not a list"),
        ({}, "not a list"),
        ([["a", "b", 1, 2]] * 513, "at most 512"),
        ([["a", "b", 1, 2], "x"], "phase 2 is not a list of four"),
        ([["a", "b", 1]], "phase 1 is not a list of four"),
        ([[1, "b", 1, 2]], "no valid name"),
        ([["", "b", 1, 2]], "no valid name"),
        ([["a" * 65, "b", 1, 2]], "no valid name"),
        ([["\x1b[2J", "b", 1, 2]], "no valid name"),
        ([["a", "b\n", 1, 2]], "no valid lane"),
        ([["a", None, 1, 2]], "no valid lane"),
        ([["a", "b", -1, 2]], "no valid times"),
        ([["a", "b", 3, 2]], "no valid times"),
        ([["a", "b", 1.5, 2]], "no valid times"),
        ([["a", "b", True, 2]], "no valid times"),
        ([["a", "b", 1, 1 << 63]], "no valid times"),
        ([["a", "b", None, None]], "no valid times"),
        ([["a", "b", "1", 2]], "no valid times"),
    ],
)
def test_what_is_no_trace_gets_a_sentence(spans: object, wanted: str) -> None:
    with pytest.raises(StateError, match=f"The trace of web is damaged: .*{wanted}"):
        timeline.parse(spans, "web")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)
ENTRY = st.tuples(
    st.text(max_size=4), st.text(max_size=4), st.integers(-1, 1 << 63), st.none() | st.integers(0, 1 << 63)
)


@given(spans=JSON | st.lists(ENTRY.map(list), max_size=8), width=st.integers(1, 200), fancy=st.booleans())
def test_whatever_was_kept_is_shown_or_refused(spans: object, width: int, fancy: bool) -> None:
    try:
        found = timeline.build("box", timeline.parse(spans, "box"))
    except HakoError:
        return
    text = re.sub(r"\x1b\[\d+m", "", waterfall.render(found, width, fancy=fancy))
    assert all(len(line) <= width for line in text.split("\n"))
    json.dumps(timeline.chrome(found), allow_nan=False)
    drawing(picture.render(found))


def test_times_count_from_the_beginning() -> None:
    found = whole()
    assert found.phases[0] == Phase("process start", "command", 0, 20 * MS)
    assert [phase.start for phase in found.phases] == sorted(phase.start for phase in found.phases)
    assert found.lanes == ["command", "sandbox", "VM", "container"]
    assert found.when("first output") == 400 * MS


def test_what_comes_long_after_the_start_does_not_squeeze_it() -> None:
    assert whole().length == 400 * MS
    assert whole(span("late output", "container", 700, 700)).length == 700 * MS
    only_moments = timeline.build("box", [Phase("a", "b", 5, 5), Phase("c", "b", 9, 9)])
    assert only_moments.length == 4


@pytest.mark.parametrize(
    ("asked", "own_alone", "expected"),
    [
        (50, False, ["QEMU", "create"]),  # while the VM was starting: it had to wait for it
        (300, False, ["create"]),  # when it ran already
        (300, True, ["QEMU", "create"]),  # but it is what the VM was started for
    ],
)
def test_a_container_that_came_later_has_a_start_of_its_own(asked: int, own_alone: bool, expected: list[str]) -> None:
    sandbox = [Phase("QEMU", "sandbox", 10, 200)]
    own = [Phase("create", "container", asked, asked + 50)]
    assert [phase.name for phase in timeline.of_container(sandbox, own, whole=own_alone)] == expected


def test_a_start_that_is_not_over_belongs_to_whoever_waits_for_it() -> None:
    sandbox = [Phase("QEMU", "sandbox", 10, None)]
    assert timeline.of_container(sandbox, [Phase("create", "container", 99, None)], whole=False)[0] == sandbox[0]


def test_nothing_at_all_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="There is no trace of box"):
        timeline.build("box", [])


# --- as text ---

WATERFALL = """\
box: started after 400 ms, first output after 400 ms

PHASE             LANE        START     MS
process start     command       0.0   20.0  #
sandbox process   sandbox      20.0   40.0   ##
root file system  container    50.0   30.0    ##
QEMU              sandbox      60.0   40.0     ##
agent ready       VM          100.0  200.0       ##########
create            container   300.0  100.0                 #####
start             container   400.0                            |
first output      container   400.0                            |
exit              container  5000.0                            >"""


def test_the_waterfall() -> None:
    assert waterfall.render(whole(), 64, fancy=False) == WATERFALL


def test_the_waterfall_on_a_terminal_differs_in_its_bars_alone() -> None:
    text = waterfall.render(whole(), 64, fancy=True)
    assert "\x1b[35m██████████\x1b[0m" in text
    plain = re.sub(r"\x1b\[\d+m", "", text)
    assert plain.translate(str.maketrans("█▏→", "#|>")) == WATERFALL


@pytest.mark.parametrize("width", [1, 5, 20, 40, 50, 64, 80, 300])
def test_the_waterfall_fits(width: int) -> None:
    lines = waterfall.render(whole(), width, fancy=False).split("\n")
    assert all(len(line) <= width for line in lines)
    assert len(lines) == len(whole().phases) + 3
    assert ("LANE" in lines[2]) == (width >= 60)


def test_a_phase_that_is_not_over_reaches_the_edge() -> None:
    found = timeline.build("box", timeline.parse([*SANDBOX, span("share", "VM", 150, None)], "box"))
    text = waterfall.render(found, 64, fancy=False)
    assert text.startswith("box: not started yet\n")
    line = next(line for line in text.split("\n") if line.startswith("share"))
    assert "..." in line
    assert len(line) == 64


# --- for Chrome ---


def test_chromes_events() -> None:
    found = timeline.chrome(whole())
    events = [event for event in found["traceEvents"] if event["ph"] == "X"]
    threads = {event["tid"]: event["args"]["name"] for event in found["traceEvents"] if event["name"] == "thread_name"}
    assert [event["args"]["name"] for event in found["traceEvents"] if event["name"] == "process_name"] == ["hako box"]
    assert {event["name"] for event in events} == {entry[0] for entry in (*SANDBOX, *OWN)}
    assert all(threads[event["tid"]] == event["cat"] for event in events)
    agent = next(event for event in events if event["name"] == "agent ready")
    assert (agent["ts"], agent["dur"], agent["cat"]) == (100_000.0, 200_000.0, "VM")
    assert sorted(threads.values()) == sorted(["command", "sandbox", "VM", "container"])


def test_events_of_a_thread_nest() -> None:
    more = [span("memory copy", "sandbox", 30, 90), span("inside", "sandbox", 70, 80), span("open", "VM", 200, None)]
    events = [event for event in timeline.chrome(whole(*more))["traceEvents"] if event["ph"] == "X"]
    rows: dict[int, list[tuple[float, float]]] = {}
    for event in events:
        rows.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for row in rows.values():
        for start, end in row:
            assert all(start >= b or end <= a or (a <= start and end <= b) or (start <= a and b <= end) for a, b in row)
    assert len(rows) > 4
    assert next(event for event in events if event["name"] == "open")["args"] == {"unfinished": True}


# --- as a page ---


class Page(HTMLParser):
    """Collects the tags of a page and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def drawing(page: str) -> str:
    """The picture in ``page``, which must be well-formed XML."""
    found = re.search(r"<svg.*</svg>", page, re.DOTALL)
    assert found is not None
    xml.dom.minidom.parseString(found[0])
    return found[0]


def test_the_page_needs_nothing_else() -> None:
    text = picture.render(whole())
    page = Page(text)
    assert {"svg", "rect", "title"} <= set(page.tags)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "onload", "xlink:href"} & set(page.attributes)
    assert "url(" not in text
    assert "//" not in text.replace("<!DOCTYPE", "")


def test_the_picture_has_every_phase_in_its_place() -> None:
    text = drawing(picture.render(whole()))
    assert text.count("<rect") == len(whole().phases)
    assert "<title>agent ready (VM), at 100.0 ms, 200.0 ms</title>" in text
    rows = re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', text)
    x, width = (float(number) for number in rows[4])
    assert (x, width) == (190 + 760 / 4, 760 / 2)
    assert "at 5000.0 ms →" in text


def test_names_are_only_text() -> None:
    name = "</text><script>alert(1)</script>&\"'"
    found = timeline.build('<b>"box"', timeline.parse([span(name, "<i>", 0, 1)], "box"))
    text = picture.render(found)
    assert not {"script", "b", "i"} & set(Page(text).tags)
    assert "&lt;script&gt;" in drawing(text)


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0.001), (0.004, 0.001), (8, 1), (400, 50), (2700, 500), (80_001, 20_000)]
)
def test_an_axis_has_few_round_numbers(length: float, expected: float) -> None:
    assert picture.step(length) == pytest.approx(expected)


# --- the verb ---


def keep(sandbox_id: str, name: str, made: dict[str, Any], spans: object) -> None:
    """A stopped sandbox whose state was kept."""
    state = records.new_state(SandboxSpec(sandbox_id, name, 1 << 29, 1, retain=True))
    state.update(status="stopped", containers=made, trace=spans)
    store.write_json(f"{store.ensure_dir(records.data_dir(sandbox_id))}/record.json", state)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of its own, and a sandbox with two of which one came later."""
    monkeypatch.setenv("HAKO_STATE_ROOT", f"{tmp_path}/run")
    monkeypatch.setenv("HAKO_DATA_ROOT", f"{tmp_path}/data")
    monkeypatch.setenv("COLUMNS", "64")
    keep(ONE, "web", {ONE: {"status": "stopped", "trace": OWN}}, SANDBOX)
    later = [span("create", "container", 9000, 9100)]
    pod = {"app": {"status": "stopped", "trace": OWN}, "late": {"status": "stopped", "trace": later}}
    keep(POD, "pod", pod, SANDBOX)


@pytest.mark.parametrize("ref", ["web", ONE, "aaaa"])
def test_a_container_by_each_of_its_names(ref: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", ref]) == 0
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert first.startswith("web (aaaa00000000): started after 400 ms")
    assert rest == WATERFALL.partition("\n")[2] + "\n"


def test_one_of_several_containers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "pod/app"]) == 0
    assert "agent ready" in capsys.readouterr().out
    assert main(["trace", "pod/late"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pod/late (bbbb00000000/late): not started yet"
    assert [line.split()[:3] for line in lines[3:]] == [["create", "container", "0.0"]]


def test_files_and_the_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--json", f"{tmp_path}/a.json", "--html", f"{tmp_path}/a.html", "web"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    drawing((tmp_path / "a.html").read_text())
    assert main(["trace", "--json", "-", "web"]) == 0
    assert capsys.readouterr().out == (tmp_path / "a.json").read_text()
    assert main(["trace", "--html", "-", "web"]) == 0
    assert capsys.readouterr().out == (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["nobody"], "There is no container nobody; .* run with --rm leaves no trace; hako run --trace FILE"),
        (["pod"], "pod has 2 containers; name one of them"),
        (["web", "--json", "-", "--html", "-"], "cannot go to the same place"),
        (["web", "--json", "/no/such/file"], "No such file or directory: /no/such/file"),
    ],
)
def test_mistakes_get_a_sentence(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", *words]) == 125
    text = capsys.readouterr().err
    assert re.search(wanted, text)
    assert text.count("\n") == 1


@pytest.mark.parametrize("spans", [7, [["\x1b[2J", "x", 1, 2]], [[]]])
def test_a_damaged_record_gets_a_sentence(spans: object, capsys: pytest.CaptureFixture[str]) -> None:
    keep(ONE, "web", {ONE: {"status": "stopped", "trace": OWN}}, spans)
    assert main(["trace", "web"]) == 125
    assert capsys.readouterr().err.startswith(f"hako: The trace of {ONE} is damaged: ")
    keep(ONE, "web", {ONE: {"status": "stopped", "trace": spans}}, SANDBOX)
    assert main(["trace", "web"]) == 125
    assert "is damaged" in capsys.readouterr().err


def test_a_sandbox_that_ended_before_it_wrote_anything(capsys: pytest.CaptureFixture[str]) -> None:
    keep(ONE, "web", {}, [])
    assert main(["trace", "web"]) == 125
    assert "There is no trace of web" in capsys.readouterr().err


# --- hako run --trace ---


def test_a_file_that_cannot_be_written_is_refused_before_the_start(tmp_path: Path) -> None:
    trace.check_writable(f"{tmp_path}/new", "--trace")
    trace.check_writable("/dev/null", "--trace")
    for path in (str(tmp_path), f"{tmp_path}/no/such"):
        with pytest.raises(ConfigError, match=f"--trace {path}: a file cannot be written there"):
            trace.check_writable(path, "--trace")
    assert main(["run", "--trace", str(tmp_path), "busybox"]) == 125


def test_an_answer_is_written(tmp_path: Path) -> None:
    trace.write_answer(f"{tmp_path}/file", [*SANDBOX, *OWN], "web")
    events = json.loads((tmp_path / "file").read_text())["traceEvents"]
    assert {"QEMU", "first output"} <= {event["name"] for event in events}


def test_an_answer_that_is_none_costs_a_line_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace.write_answer(f"{tmp_path}/file", None, "web")
    trace.write_answer(f"{tmp_path}/no/such", SANDBOX, "web")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("hako: The trace of web is damaged")
    assert lines[1] == f"hako: Cannot write the trace to {tmp_path}/no/such: No such file or directory."
