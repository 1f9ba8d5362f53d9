"""What crun's words mean for the caller."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib

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


def test_crun_is_moved_into_a_file_that_nobody_can_write(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "crun"
    program.write_bytes(b"content")
    monkeypatch.setattr(crun, "CRUN", str(program))
    monkeypatch.setattr(crun, "_sealed", "")
    crun.prepare()
    try:
        assert not program.exists(), "the memory of one copy is enough"
        assert pathlib.Path(crun._sealed).read_bytes() == b"content"
        fd = int(os.path.basename(crun._sealed))
        wanted = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == wanted, "what crun looks for"
        assert not os.get_inheritable(fd)
        for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)
