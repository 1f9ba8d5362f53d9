"""hako's configuration: one table of settings, read from TOML files, annotations and flags into a frozen Config."""

from __future__ import annotations

from hako.config.load import apply_annotations, load, override
from hako.config.settings import Config

__all__ = ["Config", "apply_annotations", "load", "override"]
