"""Writing the results: into the directory of a run, and the plots into docs/."""

from __future__ import annotations

import json
import os

from bench.machine import CLONE
from bench.model import Results
from bench.report import charts, text

#: Where docs/performance.md has its plots.
PUBLISHED = os.path.join(CLONE, "docs", "bench")


def save(results: Results, directory: str, *, publish: bool) -> list[str]:
    """Write results.json, report.txt, report.md and the plots; with ``publish`` the plots also for the documents.

    Plots of an earlier run that this one did not draw stay where they are. Returns what was written.
    """
    plots = charts.charts(results)
    files = {
        "results.json": json.dumps(results.to_json(), indent=1, ensure_ascii=False) + "\n",
        "report.txt": text.report(results),
        "report.md": text.markdown(results),
        **plots,
    }
    written = [_write(directory, name, content) for name, content in files.items()]
    if publish:
        written += [_write(PUBLISHED, name, content) for name, content in plots.items()]
    return written


def _write(directory: str, name: str, content: str) -> str:
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
    return path
