"""Style, types and shell scripts, each by the tool that knows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support import source

TOOLS = {
    # mypy first: it takes longest, and with several workers the others run beside it.
    "types": ["mypy", "--no-error-summary"],
    "style": ["ruff", "check", "--no-cache", "--quiet"],
    "format": ["ruff", "format", "--no-cache", "--check", "--quiet"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_has_no_complaint(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *TOOLS[tool]], cwd=source.CLONE, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_has_no_complaint() -> None:
    scripts = [*source.files(".sh", under="scripts"), ".ci/run"]
    assert len(scripts) > 4
    done = subprocess.run(
        ["shellcheck", "-x", *scripts], cwd=source.CLONE, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout


def test_scripts_can_be_executed() -> None:
    not_executable = [
        path
        for path in [*source.files(".sh", under="scripts"), ".ci/run"]
        if source.read(path).startswith("#!") and not os.access(os.path.join(source.CLONE, path), os.X_OK)
    ]
    assert not not_executable
