"""The guest as a whole: the parts of it that do not need one."""

from __future__ import annotations

import subprocess
import sys

from support import source

_GARBAGE = """import gc, weakref
from hako.agent import system
class Ring: pass
ring = Ring()
ring.self = ring
gone = weakref.ref(ring)
gc.disable()
del ring
gc.enable()
system.forget_garbage()
print(gone() is None, gc.get_freeze_count() > 1000)
before = gc.get_stats()[0]["collections"]
kept = [[] for _ in range(5000)]  # what a clone's agent makes for its first containers is less
print(gc.get_stats()[0]["collections"] == before)
rings = []
for number in range(20000):
    ring = Ring()
    ring.self = ring
    if number == 0:
        gone = weakref.ref(ring)
print(gone() is None)"""


def test_garbage_is_looked_for_once_and_then_seldom() -> None:
    program = f"import sys; sys.path.append({source.SOURCE!r})\n{_GARBAGE}"
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 4, done.stderr
