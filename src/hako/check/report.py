"""How the findings of `hako check` are shown, and the exit code they make."""

from __future__ import annotations

import json as json_module
from typing import TextIO

from hako import config
from hako.check.findings import ERROR, OK, SEVERITIES, WARNING, Finding, findings

# The table keeps to a terminal's usual width; the last column takes what is left.
_WIDTH = 100


def run_check(json: bool, out: TextIO) -> int:
    """Check the host, write the report to ``out`` and return the exit code.

    The code is 0 when sandboxes will work (notes included), 1 when there are warnings and 2 when there is an
    error. ``json`` asks for one JSON object: {"findings": [{name, severity, text, remedy}], "severity": the worst}.
    Raises ConfigError for a configuration that cannot be read.
    """
    found = findings(config.load())
    out.write(as_json(found) if json else as_table(found))
    return exit_code(found)


def worst(found: list[Finding]) -> str:
    """The gravest severity among ``found``."""
    return max((finding.severity for finding in found), key=SEVERITIES.index, default=OK)


def exit_code(found: list[Finding]) -> int:
    """2 for an error, 1 for a warning, otherwise 0."""
    return {ERROR: 2, WARNING: 1}.get(worst(found), 0)


def as_json(found: list[Finding]) -> str:
    """The report for programs."""
    value = {"severity": worst(found), "findings": [finding._asdict() for finding in found]}
    return json_module.dumps(value, indent=2, ensure_ascii=False) + "\n"


def as_table(found: list[Finding]) -> str:
    """The report for people: a row per finding, its remedy below it."""
    import textwrap

    names = max((len(finding.name) for finding in found), default=0)
    severities = max(map(len, SEVERITIES))
    indent = " " * (names + severities + 4)
    lines = []
    for finding in found:
        head = f"{finding.name:<{names}}  {finding.severity.upper() if finding.severity == ERROR else finding.severity}"
        text = finding.text + (f"\n→ {finding.remedy}" if finding.remedy else "")
        rows = [
            row
            for paragraph in text.splitlines()
            for row in textwrap.wrap(paragraph, _WIDTH - len(indent), break_on_hyphens=False)
        ]
        lines += [(head if number == 0 else "").ljust(len(indent)) + row for number, row in enumerate(rows)]
    return "".join(line.rstrip() + "\n" for line in lines)
