"""Commands that cannot be run, in the words that engines look for."""

from __future__ import annotations

import pytest

from hako.errors import CommandError, ConfigError
from hako.runtime.command import faults_in_engines_words

_MISSING = "executable file `{}` not found in $PATH: No such file or directory"


@pytest.mark.parametrize(
    ("program", "said", "exit_code", "words"),
    [
        ("foo", _MISSING.format("foo"), 127, 'exec: "foo": executable file not found in $PATH'),
        ("/a/foo", _MISSING.format("/a/foo"), 127, 'exec: "/a/foo": stat /a/foo: no such file or directory'),
        ("./foo", "open executable: No such file or directory", 127, 'exec: "./foo": stat ./foo: no such file or '),
        ("/etc/motd", "open executable: Permission denied", 126, 'exec: "/etc/motd": permission denied'),
        ("/bin", "open executable: Operation not permitted", 126, 'exec: "/bin": permission denied'),
        ("/x", "exec /x: Exec format error", 126, 'exec: "/x": exec format error'),
        ('a"\n', _MISSING.format('a"\n'), 127, 'exec: "a\\"\\n": executable file not found in $PATH'),
    ],
)
def test_engines_know_why(program: str, said: str, exit_code: int, words: str) -> None:
    with pytest.raises(CommandError) as caught, faults_in_engines_words(program):
        raise CommandError(said, exit_code=exit_code)
    assert str(caught.value).startswith(words)
    assert caught.value.exit_code == exit_code


def test_other_errors_stay_as_they_are() -> None:
    error = ConfigError("executable file: wrong")
    with pytest.raises(ConfigError) as caught, faults_in_engines_words("foo"):
        raise error
    assert caught.value is error
