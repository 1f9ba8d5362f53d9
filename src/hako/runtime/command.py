"""A command that cannot be run, in the words by which container engines know that from other failures.

They make exit codes of it: 127 when an executable is missing, 126 when it must not be executed.
"""

from __future__ import annotations

import contextlib

from hako.errors import EXIT_NOT_FOUND, CommandError
from hako.runtime.texts import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the guest's runtime says of a directory.
_NOT_A_FILE = "operation not permitted"


@contextlib.contextmanager
def faults_in_engines_words(program: str) -> Iterator[None]:
    """A CommandError of the block, whose command is ``program``, is raised anew as runc words it."""
    try:
        yield
    except CommandError as error:
        text = f"exec: {quote(program)}: {_reason(error, program)}"
        raise CommandError(text, error.grpc_code, exit_code=error.exit_code) from error


def _reason(error: CommandError, program: str) -> str:
    if error.exit_code == EXIT_NOT_FOUND:
        return f"stat {program}: no such file or directory" if "/" in program else "executable file not found in $PATH"
    reason = str(error).rpartition(": ")[2].lower()
    return "permission denied" if reason == _NOT_A_FILE else reason
