"""How quickly the processor's time stamp counter counts, which is what an emulated guest tells time by.

A guest measures that itself when it boots, against an emulated timer: on a busy host it is wrong by a tenth of a per
cent, at times by ten, and every clone of it has a clock that runs too fast or too slow. The host measures it better,
once, and tells the guest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from hako import log, paths, store
from hako.errors import HostError

_log = log.get("hypervisor")

#: rdtsc; shl rdx, 32; or rax, rdx; ret
_CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")

#: Seconds between the two readings. With each of them exact to half a microsecond the rate is to some millionths.
_SPAN = 0.25
_TRIES = 200


def frequency_khz() -> int:
    """The counter's frequency in kHz; 0 where it cannot be measured. Takes a quarter of a second, once per boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    path = os.path.join(paths.cache_dir(), "tsc.json")
    saved = store.read_json(path)
    if saved is not None and saved.get("boot") == boot and isinstance(saved.get("khz"), int):
        return int(str(saved["khz"]))
    khz = measure()
    # It costs another measurement, no more.
    with contextlib.suppress(HostError):
        store.ensure_dir(paths.cache_dir())
        store.write_json(path, {"boot": boot, "khz": khz})
    return khz


def measure() -> int:
    """Measure the frequency in kHz; 0 where memory may not be executed."""
    import ctypes
    import mmap

    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        _log.warning("The time stamp counter cannot be read; clocks of guests may be inexact.", reason=error.strerror)
        return 0
    page.write(_CODE)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    # The page lives as long as the process: ctypes keeps the buffer, and unmapping code is not worth a risk.
    first_ticks, first_ns = _sample(read)
    time.sleep(_SPAN)
    last_ticks, last_ns = _sample(read)
    return round((last_ticks - first_ticks) * 1_000_000 / (last_ns - first_ns))


def _sample(read: Callable[[], int]) -> tuple[int, int]:
    """The counter, and the monotonic clock in nanoseconds, of the same moment: of many, the least disturbed pair."""
    best = (1 << 62, 0, 0)
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        ticks = read()
        after = time.monotonic_ns()
        best = min(best, (after - before, ticks, (before + after) // 2))
    return best[1], best[2]
