"""Programs in the kernel: instructions, loading, attaching, by bpf(2). Shared by host and guest.

Facts: include/uapi/linux/bpf.h of the kernel. Every call raises OSError.
"""

from __future__ import annotations

import ctypes
import os
import struct

_NR_BPF = 321
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _PROG_ATTACH, _LINK_CREATE = 0, 2, 5, 8, 28

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def op(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction: what it does, its registers, an offset (of memory, or of a jump), a signed number."""
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


def load(kind: int, attach: int, program: bytes, name: bytes) -> int:
    """Load ``program``, of the kind BPF_PROG_TYPE_…, to be attached as BPF_…; return its descriptor."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"")
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name,
    # prog_ifindex, expected_attach_type
    fields = (kind, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    return _bpf(_PROG_LOAD, struct.pack("=IIQQIIQII16sII", *fields, 0, 0, 0, 0, 0, name, 0, attach))


def attach(program: int, target: int, kind: int) -> int:
    """Attach ``program`` to the descriptor ``target`` as BPF_…; it stays until the returned descriptor is closed."""
    return _bpf(_LINK_CREATE, struct.pack("=4I", program, target, kind, 0))


def attach_for_good(program: int, group: int, kind: int) -> None:
    """Attach ``program`` to the cgroup with the descriptor ``group`` as BPF_…; it stays as long as the cgroup."""
    _bpf(_PROG_ATTACH, struct.pack("=5I", group, program, kind, 0, 0))


def create_map(kind: int, value_size: int, entries: int) -> int:
    """A map of the kind BPF_MAP_TYPE_…, whose keys are 32-bit numbers; its descriptor."""
    # map_type, key_size, value_size, max_entries, map_flags
    return _bpf(_MAP_CREATE, struct.pack("=5I", kind, 4, value_size, entries, 0))


def set_entry(target: int, key: int, value: bytes) -> None:
    """Set an entry of the map ``target``."""
    keys = ctypes.create_string_buffer(struct.pack("=I", key), 4)
    values = ctypes.create_string_buffer(value, len(value))
    _bpf(_MAP_UPDATE, struct.pack("=IIQQQ", target, 0, ctypes.addressof(keys), ctypes.addressof(values), 0))


def _bpf(command: int, attributes: bytes) -> int:
    given = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(ctypes.c_long(_NR_BPF), ctypes.c_int(command), given, ctypes.c_uint(len(attributes))))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf: {os.strerror(number)}")
    return result
