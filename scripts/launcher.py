"""Writes a command: a small program that starts Python on hako with nothing else in the way.

    python3 scripts/launcher.py COMMAND PYTHON ENTRY DIRECTORY...

COMMAND is the file to write, PYTHON the interpreter to start, ENTRY ``module:function`` and each DIRECTORY one
to import from. Python is started isolated and without the site module: what a user's environment holds cannot
change what hako does, and start-up is a quarter shorter (7.7 ms instead of 10 on a machine of two cores).
"""

from __future__ import annotations

import os
import sys

_TEXT = """\
#!{python} -IS
import sys
sys.path += {directories!r}
from {module} import {function}
sys.exit({function}())
"""


def write(command: str, python: str, entry: str, directories: list[str]) -> None:
    """Write ``command``, replacing what is there in one step, and make it executable."""
    module, _, function = entry.partition(":")
    text = _TEXT.format(python=python, directories=directories, module=module, function=function)
    temp = f"{command}.{os.getpid()}.tmp"
    with open(temp, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o755)
    os.replace(temp, command)


def main(argv: list[str]) -> int:
    """The command line."""
    if len(argv) < 5:
        print(__doc__, file=sys.stderr)
        return 2
    write(argv[1], argv[2], argv[3], argv[4:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
