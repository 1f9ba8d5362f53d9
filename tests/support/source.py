"""The repository's own files, for the tests that check them."""

from __future__ import annotations

import ast
import functools
import os

CLONE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCE = os.path.join(CLONE, "src")

_NOT_OURS = {".git", ".venv", ".cache", "build", "dist", "__pycache__"}


def files(*endings: str, under: str = "") -> list[str]:
    """The repository's files whose names end so, as paths relative to it; not what was made in it."""
    found = []
    for folder, folders, names in os.walk(os.path.join(CLONE, under)):
        folders[:] = [name for name in folders if name not in _NOT_OURS and not name.endswith("_cache")]
        found += [os.path.relpath(os.path.join(folder, name), CLONE) for name in names if name.endswith(endings)]
    return sorted(found)


@functools.cache
def read(path: str) -> str:
    """The text of the file ``path`` of the repository."""
    with open(os.path.join(CLONE, path), encoding="utf-8") as file:
        return file.read()


@functools.cache
def tree(path: str) -> ast.Module:
    """The syntax tree of the Python file ``path`` of the repository."""
    return ast.parse(read(path), path)
