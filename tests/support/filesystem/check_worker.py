"""Runs in a container: reads calls from standard input and answers each with a line on standard output.

Calls and answers are JSON. Bytes travel as text in Latin-1.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

sys.path.insert(0, "/checks")
sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]


def find(name: str) -> object:
    """The function called ``name`` of whichever module has it."""
    for module in ("check_names", "check_data", "check_rights"):
        function = getattr(__import__(module), name, None)
        if function is not None:
            return function
    raise LookupError(name)


def check(name: str, place: str, *args: object) -> None:
    """Make the check ``name`` in a new directory below ``place``. What it leaves there stays."""
    directory = f"{place}/{name}"
    os.mkdir(directory)
    function = find(name)
    assert callable(function)
    function(directory, *args)


def main() -> None:
    """Serve until standard input ends."""
    for line in sys.stdin:
        call = json.loads(line)
        try:
            function = check if call["name"] == "check" else find(call["name"])
            assert callable(function)
            answer = {"result": function(*call["args"])}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
