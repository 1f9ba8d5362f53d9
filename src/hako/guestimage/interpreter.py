"""Driving the guest's own Python, from its unpacked packages and on the host, while an image is built.

It runs through its own dynamic loader with its own libraries, so the host's Python, if any, plays no part: the
bytecode fits the guest, and the same packages give the same bytes on every host.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from hako.arch import current
from hako.errors import ImageError
from hako.named import NamedTuple
from hako.proc import BASE_ENV, CommandFailedError, run

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside.py")
_TIMEOUT = 300.0  # seconds; the slowest step, compression, takes about ten


class Discovery(NamedTuple):
    """What importing some modules took."""

    modules: dict[str, str | None]  #: each module's file, None for one inside the interpreter itself
    missing: str | None  #: a shared library that was not found; then the rest is not complete
    version: str


class Source(NamedTuple):
    """One Python file to compile."""

    source: str
    output: str
    shown: str  #: the path that tracebacks in the guest show
    optimise: int  #: 2 leaves out docstrings and assertions, 0 nothing


def guest_command(root: str, program: str) -> list[str]:
    """What runs ``program`` (a path below ``root``, where packages are unpacked) on the host: its own dynamic loader,
    with its own libraries."""
    libraries = f"{root}/usr/lib/{current().multiarch}"
    return [f"{root}/usr{current().loader}", "--inhibit-cache", "--library-path", libraries, f"{root}/{program}"]


class GuestPython:
    """The interpreter ``program`` (a path below ``root``, where its packages are unpacked)."""

    def __init__(self, root: str, program: str) -> None:
        self._root = root
        # -s -S: no site directories. Not -I: it would ignore PYTHONHASHSEED, PYTHONHOME and PYTHONSAFEPATH too.
        self._argv = [*guest_command(root, program), "-s", "-S", "-B"]

    def discover(self, names: Sequence[str]) -> Discovery:
        """Import ``names`` and tell which files that took. Raises ImageError when one does not exist."""
        answer = json.loads(self._run(["discover", *names], self._root))
        if answer["failed"] and not answer["missing"]:
            reasons = "; ".join(sorted(answer["failed"].values()))
            raise ImageError(f"The agent needs Python modules that the guest's packages do not have: {reasons}.")
        return Discovery(answer["modules"], answer["missing"], answer["version"])

    def compile(self, sources: Sequence[Source]) -> None:
        """Compile each source to its output file."""
        self._run(["compile"], self._root, json.dumps(sources).encode())

    def check(self, tree: str, path: str, names: Sequence[str]) -> None:
        """Import ``names`` with nothing but the Python files in ``tree`` (and its directory ``path``)."""
        self._run(["check", *names], tree, path=os.path.join(tree, path))

    def gzip(self, data: bytes) -> bytes:
        """``data`` compressed by the packages' zlib, so that the bytes do not depend on the host's."""
        return self._run(["gzip"], self._root, data)

    def _run(self, words: Sequence[str], home: str, input: bytes | None = None, path: str = "") -> bytes:
        env = {
            **BASE_ENV,
            "PYTHONHOME": f"{home}/usr",
            "PYTHONPATH": path,
            "PYTHONSAFEPATH": "1",  # the script's own directory is hako's and not to be imported from
            "PYTHONHASHSEED": "0",
        }
        try:
            return run([*self._argv, _SCRIPT, *words], env=env, input=input, timeout=_TIMEOUT).stdout
        except CommandFailedError as error:
            last = error.stderr.strip().splitlines()[-1:] or [f"status {error.returncode}"]
            raise ImageError(f"The guest's Python failed in the step {words[0]!r}: {last[0]}") from error
