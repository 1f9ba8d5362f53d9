"""The smallest guest there is: an initrd whose /init says one line on the console and powers off.

A kernel that gets this far has run in kernel and in user mode, taken interrupts and served system calls.
"""

from __future__ import annotations

import struct

from hako import arch

#: What /init prints.
MARKER = "hako: the guest runs"

_WRITE, _REBOOT = 1, 169
_POWER_OFF = (0xFEE1DEAD, 0x28121969, 0x4321FEDC)

_BASE = 0x400000
_ELF_HEADER, _PROGRAM_HEADER = 64, 56
_TRAILER = "TRAILER!!!"


def initrd() -> bytes:
    """A cpio archive (newc) with /init in it and nothing else."""
    return _entry("init", 0o100755, _init()) + _entry(_TRAILER, 0, b"")


def _init() -> bytes:
    """A static x86-64 ELF program: write(1, MARKER), reboot(power off), then wait for the end."""
    if arch.current() is not arch.X86_64:
        raise AssertionError("only x86-64 machine code is here")
    text = MARKER.encode() + b"\n"
    magic1, magic2, command = _POWER_OFF
    syscall, start = b"\x0f\x05", _ELF_HEADER + _PROGRAM_HEADER
    tail = (
        b"\xb8" + struct.pack("<I", _REBOOT)  # mov eax, reboot
        + b"\xbf" + struct.pack("<I", magic1)  # mov edi, magic1
        + b"\xbe" + struct.pack("<I", magic2)  # mov esi, magic2
        + b"\xba" + struct.pack("<I", command)  # mov edx, command
        + syscall
        + b"\xeb\xfe"  # jmp to itself: returning from here would be a crash
    )  # fmt: skip
    head_size = 5 + 5 + 5 + 5 + len(syscall)
    code = (
        b"\xb8" + struct.pack("<I", _WRITE)  # mov eax, write
        + b"\xbf" + struct.pack("<I", 1)  # mov edi, 1
        + b"\xbe" + struct.pack("<I", _BASE + start + head_size + len(tail))  # mov esi, text
        + b"\xba" + struct.pack("<I", len(text))  # mov edx, length
        + syscall
        + tail
        + text
    )  # fmt: skip
    size = start + len(code)
    executable, x86_64, readable_executable = 2, arch.X86_64.elf_machine, 5
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", executable, x86_64, 1, _BASE + start, _ELF_HEADER, 0, 0,
        _ELF_HEADER, _PROGRAM_HEADER, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, readable_executable, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code


def _entry(name: str, mode: int, data: bytes) -> bytes:
    path = name.encode() + b"\0"
    # inode, mode, uid, gid, links, time, size, 4 device numbers, name size, checksum
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
