"""Rendering a Helm chart, by Helm itself.

It is a library written in Go: it starts threads and takes signals, which other tests in the process could do without,
so it gets a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import yaml

_PROGRAM = """\
import json, sys
import helm_python as helm
path, values, namespace = json.load(sys.stdin)
try:
    with helm.Chart.load(path) as chart:
        made = chart.render(values, name="hako", namespace=namespace)
    found = helm.lint(path, values, strict=True)
    notes = [message["error"] for message in found["messages"] if message["severity"] > 1]
    json.dump({"made": made, "complaints": notes + found["errors"]}, sys.stdout)
except helm.HelmError as error:
    sys.exit(str(error))
"""


class HelmRefusal(Exception):
    """What Helm says to values or templates that it does not take."""


class Rendered:
    """What a chart makes."""

    def __init__(self, answer: dict[str, Any]) -> None:
        #: What `helm lint --strict` finds wrong.
        self.complaints: list[str] = answer["complaints"]
        #: The texts by template.
        self.texts: dict[str, str] = answer["made"]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The objects for the cluster, hooks among them."""
        texts = [text for name, text in self.texts.items() if name.endswith(".yaml")]
        return [found for text in texts for found in yaml.safe_load_all(text) if found is not None]


def render(chart: str, values: dict[str, Any] | None = None, namespace: str = "hako-system") -> Rendered:
    """What the chart in the directory ``chart`` makes with ``values``. Raises HelmRefusal."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PROGRAM], input=json.dumps([chart, values or {}, namespace]),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise HelmRefusal(done.stderr)
    return Rendered(json.loads(done.stdout))
