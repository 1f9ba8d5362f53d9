"""What tests of the benchmark's engines share."""

from __future__ import annotations

import glob
import os
import pathlib
import shutil

from bench import engines


def runc() -> str:
    """The path of runc."""
    found = shutil.which("runc")
    assert found
    return found


def left_of(base: str) -> list[str]:
    """What there is of an engine that had the directory ``base``."""
    cgroups = glob.glob(f"/sys/fs/cgroup/**/{os.path.basename(base)}/", recursive=True)
    found = [*cgroups, *(str(pid) for pid in engines.members(base))]
    return [*found, base] if os.path.exists(base) else found


def programs(directory: pathlib.Path, **scripts: str) -> str:
    """A search path that finds these scripts before Debian's programs."""
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return f"{directory}:{engines.PATH}"
