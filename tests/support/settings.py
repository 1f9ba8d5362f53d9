"""Configuration for the commands that tests start."""

from __future__ import annotations

import os
from pathlib import Path


def without_network(directory: str | os.PathLike[str]) -> None:
    """With the configuration file in ``directory``, `hako run` makes no network unless it is told to.

    The machine's own namespace is everybody's, so networks are made by tests that have a host of their own.
    """
    drop_ins = Path(directory, "config.d")
    drop_ins.mkdir(exist_ok=True)
    (drop_ins / "network.toml").write_text('[network]\ndefault = "none"\n')
