"""Programs for the kernel's virtual machine: making, loading and attaching them, by bpf(2).

Facts: include/uapi/linux/bpf.h of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import struct

_NR_BPF = 321
_PROG_LOAD, _PROG_ATTACH, _LINK_CREATE = 5, 8, 28

#: Instructions, those of 32 bits where there are two. LOAD and STORE move a word between memory and a register.
LOAD, STORE = 0x61, 0x63
MOVE, MOVE_REGISTER, AND, SHIFT_RIGHT = 0xB7, 0xBC, 0x54, 0x74
IF_EQUAL, UNLESS_EQUAL = 0x16, 0x56
EXIT = 0x95

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def op(code: int, target: int, source: int, offset: int, value: int) -> bytes:
    """One instruction. Jumps skip ``offset`` instructions."""
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


def load(kind: int, attach: int, name: bytes, program: bytes) -> int:
    """Load ``program`` of the type ``kind``, to be attached as ``attach``; return its descriptor. Raises OSError."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"")
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name,
    # prog_ifindex, expected_attach_type
    fields = (kind, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    return _bpf(_PROG_LOAD, struct.pack("=IIQQIIQII16sII", *fields, 0, 0, 0, 0, 0, name, 0, attach))


def link(program: int, group: int, attach: int) -> int:
    """Attach a program to a cgroup until the descriptor that is returned is closed. Raises OSError."""
    return _bpf(_LINK_CREATE, struct.pack("=4I", program, group, attach, 0))


def attach(program: int, group: int, attach: int) -> None:
    """Attach a program to a cgroup for as long as that exists. Raises OSError."""
    _bpf(_PROG_ATTACH, struct.pack("=5I", group, program, attach, 0, 0))


def _bpf(command: int, attributes: bytes) -> int:
    given = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(ctypes.c_long(_NR_BPF), ctypes.c_int(command), given, ctypes.c_uint(len(attributes))))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf: {os.strerror(number)}")
    return result
