"""Files and functions that have grown too long to be read in one go."""

from __future__ import annotations

import ast

from support import source

MAX_FILE = 500
MAX_FUNCTION = 100


def test_files_are_short() -> None:
    long = {path: count for path in source.files(".py") if (count := len(source.read(path).splitlines())) > MAX_FILE}
    assert not long, f"more than {MAX_FILE} lines"


def test_functions_are_short() -> None:
    long = []
    for path in source.files(".py"):
        for node in ast.walk(source.tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)
