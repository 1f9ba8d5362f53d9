"""config.json files that docker 20.10 and podman 4.3 made on a host with cgroup v1, less their seccomp profiles.

Ids, paths and most devices of the privileged ones were replaced or left out; everything else is as they wrote it.
"""

from __future__ import annotations

import json
import os
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = sorted(name.removesuffix(".json") for name in os.listdir(_HERE) if name.endswith(".json"))


def load(name: str) -> dict[str, Any]:
    """The config.json called ``name``, fresh on each call."""
    with open(os.path.join(_HERE, f"{name}.json"), encoding="utf-8") as file:
        value: dict[str, Any] = json.load(file)
    return value
