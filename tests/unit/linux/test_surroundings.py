"""What makes one process as good as another for whoever is started by it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from support import source

_PROGRAM = f"import sys; sys.path.append({source.SOURCE!r}); from hako.linux import surroundings; "
_PROGRAM += "sys.stdout.buffer.write(surroundings.describe())"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def described(*prefix: str, before: Callable[[], object] | None = None, **more: str) -> bytes:
    """What a process that is started by ``prefix`` has around it."""
    argv = [*prefix, os.path.realpath(sys.executable), "-IS", "-c", _PROGRAM]
    return subprocess.run(
        argv, stdout=subprocess.PIPE, check=True, preexec_fn=before, env={**os.environ, **more}
    ).stdout


def test_the_same_each_time_whatever_the_environment() -> None:
    found = described()
    assert found == described(VARIABLE="x")
    assert len(found) > 500


@pytest.mark.parametrize(
    "before",
    [
        lambda: os.umask(0o077),
        lambda: os.nice(1),
        lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_CORE, (0, 0)),
        lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    ],
    ids=["umask", "priority", "limit", "processors"],
)
def test_what_children_inherit_makes_a_difference(before: Callable[[], object]) -> None:
    assert described(before=before) != described()


@needs_root
@pytest.mark.parametrize(
    "prefix",
    [
        ["unshare", "--mount"],
        ["unshare", "--net"],
        ["unshare", "--uts"],
        ["setpriv", "--no-new-privs"],
        ["setpriv", "--bounding-set=-chown"],
        ["setpriv", "--regid=1", "--clear-groups"],
        ["choom", "-n", "500", "--"],
    ],
    ids=lambda prefix: prefix[1].strip("-"),
)
def test_namespaces_and_rights_make_a_difference(prefix: list[str]) -> None:
    assert described(*prefix) != described()
