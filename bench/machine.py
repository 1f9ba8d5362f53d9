"""What the figures were measured on: the machine, and the versions of what was measured."""

from __future__ import annotations

import ast
import datetime
import filecmp
import os
import platform
import shutil
from collections.abc import Iterable
from typing import Any

from bench import commands
from bench.model import BenchError
from bench.targets.base import Target

CLONE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def machine() -> dict[str, Any]:
    """The machine, as far as it decides how quick something is."""
    info = _pairs("/proc/cpuinfo")
    memory = int(_pairs("/proc/meminfo").get("MemTotal", "0 kB").split()[0])
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": info.get("model name", platform.machine()),
        "cpus": os.cpu_count() or 1,
        "memory_gib": round(memory / (1 << 20), 1),
        "kernel": platform.release(),
        "system": _system(),
        "virtual": "hypervisor" in info.get("flags", "").split(),
        "kvm": os.path.exists("/dev/kvm"),
    }


def versions(targets: Iterable[Target]) -> dict[str, str]:
    """The versions of what is measured and of what measures."""
    found: dict[str, str] = {}
    for target in targets:
        found |= target.versions()
    return found | {"commit": _commit(), "Python": platform.python_version()}


def _pairs(path: str) -> dict[str, str]:
    """The ``name: value`` lines of a file of the kernel, the first of each name."""
    found: dict[str, str] = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, colon, value = line.partition(":")
            if colon:
                found.setdefault(name.strip(), value.strip())
    return found


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _commit() -> str:
    """The clone's commit, with a mark when files differ from it; empty where that is not known."""
    if shutil.which("git") is None:
        return ""
    try:
        commit = commands.run(["git", "-C", CLONE, "rev-parse", "--short=12", "HEAD"]).output.decode().strip()
        changed = commands.run(["git", "-C", CLONE, "status", "--porcelain", "--", "src"]).output.strip()
    except BenchError:
        return ""
    return f"{commit} with changes" if changed else commit


def difference(command: str) -> str:
    """Why what ``command`` runs is not this clone's source, as a sentence; empty when it is, or when nobody can say."""
    installed = _imported_from(shutil.which(command) or command)
    source = os.path.join(CLONE, "src", "hako")
    if not installed or os.path.realpath(installed) == os.path.realpath(source):
        return ""
    names = sorted(_sources(source) | _sources(installed))
    _, differing, lacking = filecmp.cmpfiles(source, installed, names, shallow=False)
    other = [*differing, *lacking]
    if not other:
        return ""
    return (
        f"{command} is not what this clone has: {len(other)} files differ, among them {other[0]}; "
        "`make install` brings it up to date, --hako .venv/bin/hako measures the clone."
    )


def _sources(directory: str) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), directory)
        for folder, _, names in os.walk(directory)
        for name in names
        if name.endswith(".py")
    }


def _imported_from(launcher: str) -> str:
    """The package that a launcher written by scripts/launcher.py runs; empty for any other program."""
    try:
        with open(launcher, encoding="utf-8") as file:
            lines = file.read(1 << 14).splitlines()
        path = next(line for line in lines if line.startswith("sys.path += "))
        directories = ast.literal_eval(path.removeprefix("sys.path += "))
    except (OSError, ValueError, SyntaxError, StopIteration):
        return ""
    places = [os.path.join(str(directory), "hako") for directory in directories]
    return next((place for place in places if os.path.isfile(os.path.join(place, "__init__.py"))), "")
