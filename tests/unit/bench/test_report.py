"""Text, Markdown, JSON and plots of made-up results."""

from __future__ import annotations

import json
import pathlib
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.model import Phase, PieceResult, Results, Row
from bench.report import charts, save, text
from bench.report.svg import Svg

VALUES = st.lists(st.floats(-1e3, 1e9), min_size=1, max_size=4)
_SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results() -> Results:
    """A run with every kind of thing that can be in one."""
    run = PieceResult("run")
    row = run.row("exit", "run `true` & exit <now>", "ms")
    for ours, theirs in ((500.0, 40.0), (520.0, 42.0), (510.0, 41.0)):
        row.add("hako", ours)
        row.add("runc", theirs)
    phases = PieceResult("phases")
    phases.row("agent-ready", "VM begun to agent ready", "ms").add("hako", 60.0)
    phases.phases = [Phase("QEMU", "sandbox", 50.0, 100.0), Phase("agent ready", "VM", 100.0, 160.0)]
    files = PieceResult("files")
    row = files.row("read", "read", "MB/s", better="higher")
    for name, value in (("hako 9p", 100.0), ("hako virtiofs", 200.0), ("runc", 1000.0)):
        row.add(name, value)
    files.notes.append("a note")
    starts = PieceResult("starts")
    row = starts.row("10.failed", "10 starts at once, failures", "")
    row.add("hako", 0.0)
    row.add("runc", 0.0)
    broken = PieceResult("memory")
    broken.error = "It did not work."
    noise = {
        "verdict": "noisy",
        "reasons": ["Somebody worked."],
        "load_before": 0.1,
        "load_most": 3.0,
        "load_after": 2.0,
    }
    machine = {
        "date": "2026-01-01 00:00 UTC", "cpu": "A processor", "cpus": 2, "memory_gib": 23.5, "kernel": "6.1",
        "system": "Debian", "virtual": True, "kvm": False,
    }  # fmt: skip
    return Results(machine, {"hako": "0.1.0", "runc": ""}, noise, ["--quick"], [run, phases, files, starts, broken])


def test_the_report_has_figures_ratios_failures_and_the_warning(results: Results) -> None:
    shown = text.report(results)
    assert re.search(r"hako +510 \(505 to 515, min 500, n 3\) +x 12.4 \(11.9 to 13.0\)", shown)
    assert re.search(r"hako 9p +100 +x 10.0", shown), "a tenth of the throughput is ten times the cost"
    assert "FAILED: It did not work." in shown
    assert "Note: a note" in shown
    assert "WARNING: the machine was noisy (load 0.1 before, 3.0 at most, 2.0 after)" in shown
    assert "Somebody worked." in shown
    assert "A processor, 2 CPUs, 23.5 GiB" in shown


def test_a_quiet_machine_gives_no_warning(results: Results) -> None:
    results.noise.update(verdict="quiet", reasons=[])
    assert "WARNING" not in text.report(results)


def test_markdown_tables_are_rectangular(results: Results) -> None:
    lines = [line for line in text.markdown(results).splitlines() if line.startswith("|")]
    widths: list[set[int]] = []
    for line in lines:
        if line.startswith("| what"):
            widths.append(set())
        widths[-1].add(line.count("|"))
    assert [len(found) for found in widths] == [1, 1, 1, 1]
    assert "| what | hako | runc | hako / runc |" in lines


def test_json_has_all_values_and_what_follows_from_them(results: Results) -> None:
    found = json.loads(json.dumps(results.to_json()))
    assert found["format"] == 1
    series = found["pieces"][0]["rows"][0]["series"]
    assert series["hako"]["values"] == [500.0, 520.0, 510.0]
    assert series["hako"]["median"] == 510.0
    assert series["hako"]["ratio"]["value"] == pytest.approx(510 / 41)
    assert "ratio" not in series["runc"]
    assert found["pieces"][1]["phases"][0] == {"name": "QEMU", "lane": "sandbox", "begin": 50.0, "end": 100.0}
    assert found["pieces"][4]["error"] == "It did not work."


def test_the_phases_of_pods_have_a_plot_of_their_own(results: Results) -> None:
    pods = PieceResult("pods")
    pods.phases = [Phase("RunPodSandbox", "call", 0.0, 700.0)]
    results.pieces.append(pods)
    drawn = charts.charts(results)
    assert "RunPodSandbox" in drawn["pod.svg"]
    assert "RunPodSandbox" not in drawn["phases.svg"]


def test_plots_are_well_formed_self_contained_and_stay_inside(results: Results) -> None:
    drawn = charts.charts(results)
    assert set(drawn) == {"starts.svg", "transfer.svg", "ratios.svg", "phases.svg"}
    for name, content in drawn.items():
        root = ET.fromstring(content)
        assert root.tag == f"{_SVG}svg", name
        width, height = (float(root.attrib[key]) for key in ("width", "height"))
        for box in root.iter(f"{_SVG}rect"):
            x, y, wide, high = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
            assert x >= 0, name
            assert y >= 0, name
            assert x + wide <= width, name
            assert y + high <= height, name
        for label in root.iter(f"{_SVG}text"):
            assert 0 <= float(label.attrib["x"]) <= width, name
            assert 0 <= float(label.attrib["y"]) <= height, name
        assert not re.search(r"(href|src|url\()", content), f"{name} needs something from elsewhere"
        assert "prefers-color-scheme: dark" in content


def test_a_runtime_has_the_same_colour_in_all_plots() -> None:
    assert charts.colours(["hako", "runc"]) == {"hako": 0, "runc": 1}
    assert charts.colours(["hako 9p", "hako virtiofs", "runc"])["runc"] == 1
    found = charts.colours(["ctr", "hako", "hako 9p", "runc"])
    assert len(set(found.values())) == 4


def test_bars_are_as_long_as_their_values(results: Results) -> None:
    root = ET.fromstring(charts.charts(results)["transfer.svg"])
    long = {
        title.text: float(box.attrib["width"])
        for box in root.iter(f"{_SVG}rect")
        if (title := box.find(f"{_SVG}title")) is not None
    }
    assert long["hako virtiofs: 200 MB/s"] == pytest.approx(2 * long["hako 9p: 100 MB/s"], abs=0.2)


@given(VALUES, VALUES)
def test_any_values_can_be_drawn_and_printed(ours: list[float], theirs: list[float]) -> None:
    piece = PieceResult("run")
    row = piece.row("exit", "anything", "ms")
    row.series = {"hako": ours, "runc": theirs}
    results = Results({}, {}, {}, [], [piece])
    for content in charts.charts(results).values():
        ET.fromstring(content)
    assert text.piece_lines(piece)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff")))
def test_any_title_can_be_drawn(title: str) -> None:
    svg = Svg(100, title)
    svg.label(1, 2, title, title)
    svg.bar(0, 0, 5, 5, 7, title)
    root = ET.fromstring(svg.text())
    assert root.find(f"{_SVG}text") is not None


def test_everything_is_written_and_plots_are_published_only_when_asked(
    results: Results, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save, "PUBLISHED", str(tmp_path / "docs"))
    save.save(results, str(tmp_path / "out"), publish=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"results.json", "report.txt", "report.md", "ratios.svg"} <= names
    assert not (tmp_path / "docs").exists()
    save.save(results, str(tmp_path / "out"), publish=True)
    published = {path.name for path in (tmp_path / "docs").iterdir()}
    assert published == {name for name in names if name.endswith(".svg")}


def test_a_row_without_runc_has_no_ratio() -> None:
    row = Row("agent.call", "call", "ms")
    row.add("hako", 1.0)
    assert row.ratio("hako") is None


@pytest.mark.parametrize(
    ("better", "ours", "theirs", "judged"),
    [
        ("lower", 30.0, 10.0, ["at most 3 times runc's, is kept", "at most 40 ms, is kept"]),
        ("lower", 41.0, 10.0, ["at most 3 times runc's, is MISSED", "at most 40 ms, is MISSED"]),
        ("lower", 40.0, None, ["at most 40 ms, is kept"]),
        ("higher", 10.0, 31.0, ["at most 3 times runc's, is MISSED", "at most 40 ms, is kept"]),
        ("lower", None, 10.0, []),
    ],
)
def test_budgets_are_judged_where_they_can_be(
    better: str, ours: float | None, theirs: float | None, judged: list[str]
) -> None:
    row = Row("docker.run", "run", "ms", better=better, times=3.0, most=40.0)
    for name, value in (("hako", ours), ("runc", theirs)):
        if value is not None:
            row.add(name, value)
    assert row.budgets() == [f"The budget of hako, {each}." for each in judged]
    shown = "\n".join(text.row_lines(row))
    assert all(sentence in shown for sentence in row.budgets())
    assert row.to_json()["budgets"] == row.budgets()


def test_what_has_no_budget_is_not_judged() -> None:
    row = Row("docker.run", "run", "ms")
    row.add("hako", 1e9)
    row.add("runc", 1.0)
    assert row.budgets() == []


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (0.456, "0.46"), (12.34, "12.3"), (2709.4, "2709")])
def test_numbers(value: float, shown: str) -> None:
    assert text.number(value) == shown
