"""A container's root file system with this host's Python in it, for checks that a shell cannot make."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

#: Path of the interpreter, on the host and in the container.
PYTHON = os.path.realpath("/usr/bin/python3")

_MODULES = (
    "__future__,collections.abc,ctypes,encodings.latin_1,errno,fcntl,json,mmap,os,select,socket,stat,struct,threading,"
    "time,traceback"
)
_LIST = (
    f"import sys,json,{_MODULES};"
    "print(json.dumps([module.__spec__.origin for module in sys.modules.values() if module.__spec__]))"
)


def make(root: Path, *scripts: Path) -> None:
    """Fill ``root``: Python with the modules the checks import, the ``scripts`` in /checks, and mount points."""
    origins = json.loads(subprocess.run([PYTHON, "-IS", "-c", _LIST], check=True, capture_output=True).stdout)
    files = {path for path in origins if path and os.path.isabs(path)} | {PYTHON}
    binaries = [path for path in files if path == PYTHON or path.endswith(".so")]
    listed = subprocess.run(["ldd", *binaries], check=True, capture_output=True, text=True).stdout
    files |= set(re.findall(r"(/\S+) \(0x", listed))
    for path in sorted(files):
        _copy(path, root)
        cached = importlib.util.cache_from_source(path)
        if os.path.exists(cached):
            _copy(cached, root)
    for name in ("proc", "dev", "sys", "tmp", "data", "volume", "checks"):
        (root / name).mkdir()
    for script in scripts:
        shutil.copy(script, root / "checks" / script.name)


def _copy(path: str, root: Path) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)
