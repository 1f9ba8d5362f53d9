"""A command's own standard streams: they are there, and nobody stumbles over a reader who went away."""

from __future__ import annotations

import os
import sys


def open_missing() -> None:
    """A caller may have closed standard streams: nothing else must get their numbers, or it would be taken for them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 (stays open)
            setattr(sys, name, stream)


def silence_stdout() -> None:
    """Nobody reads: the interpreter must not find that out again while it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def one_line(text: str) -> str:
    """``text`` as one line. Control characters, which an image or a guest may bring, are shown escaped."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def complain(line: str) -> None:
    """Say ``line`` on standard error; nothing is raised when nobody can hear it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass
    except UnicodeEncodeError:
        print(line.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)
