"""What crun's words mean for the caller."""

from __future__ import annotations

import json
import os

import pytest

from hako.agent import crun
from hako.wire import calls


@pytest.mark.parametrize(
    ("message", "code", "exit_code"),
    [
        ("executable file `nope` not found in $PATH: No such file or directory", calls.INVALID_ARGUMENT, 127),
        ("executable file `nope` not found in $PATH: Permission denied", calls.INVALID_ARGUMENT, 126),
        ("open executable: Operation not permitted", calls.INVALID_ARGUMENT, 126),
        ("exec container process `/x`: Exec format error", calls.INVALID_ARGUMENT, 126),
        ("exec container process `/x`: No such file or directory", calls.INVALID_ARGUMENT, 127),
        ("mount `/x` to `/y`: No such file or directory", calls.INTERNAL, None),
        ("container `c` does not exist", calls.INTERNAL, None),
        ("executables are nice", calls.INTERNAL, None),
        ("", calls.INTERNAL, None),
    ],
)
def test_errors(message: str, code: int, exit_code: int | None) -> None:
    error = crun.error("create c", 1, message)
    assert (error.code, error.exit_code) == (code, exit_code)
    # The command's own fault needs no word on what hako was doing.
    text = message or "crun ended with status 1 and said nothing"
    assert error.message == (text if exit_code else f"create c: {text}")


def test_the_last_error_of_the_log_counts(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "log")
    lines = [
        json.dumps({"msg": "first", "level": "error"}),
        json.dumps({"msg": " second\n", "level": "error"}),
        json.dumps({"msg": "only said", "level": "warning"}),
        json.dumps({"msg": 7, "level": "error"}),
        json.dumps(["level", "error"]),
        "not JSON",
        "",
    ]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    assert crun._last_error(path) == "second"


def test_no_log_no_words(tmp_path: os.PathLike[str]) -> None:
    assert crun._last_error(os.path.join(tmp_path, "missing")) == ""
