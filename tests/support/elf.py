"""Makes small ELF files, enough for what reads kernels, modules and libraries."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SIGNATURE = b"~Module signature appended~\n"


def elf(
    *,
    kind: int = 2,
    machine: int = 62,
    segments: Sequence[tuple[int, int, bytes]] = (),
    sections: Mapping[str, bytes] | None = None,
) -> bytes:
    """An ELF64 file. Segments are (type, address, content); a section table comes with ``sections`` only."""
    body = b""
    start = _EHDR.size + _PHDR.size * len(segments)
    headers = b""
    for type_, address, content in segments:
        headers += _PHDR.pack(type_, 4, start + len(body), address, address, len(content), len(content), 8)
        body += content
    table, count = b"", 0
    if sections is not None:
        names = b"\0"
        rows = [_SHDR.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
        for name, content in sections.items():
            rows.append(_SHDR.pack(len(names), 1, 2, 0, start + len(body), len(content), 0, 0, 1, 0))
            names += name.encode() + b"\0"
            body += content
        name_at = len(names)
        names += b".shstrtab\0"
        rows.append(_SHDR.pack(name_at, 3, 0, 0, start + len(body), len(names), 0, 0, 1, 0))
        body += names
        table, count = b"".join(rows), len(rows)
    section_at = start + len(body) if count else 0
    head = _EHDR.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        *(kind, machine, 1, 0, _EHDR.size if segments else 0, section_at, 0, _EHDR.size),
        *(_PHDR.size, len(segments), _SHDR.size, count, max(count - 1, 0)),
    )
    return head + headers + body + table


def module(**info: str | Sequence[str]) -> bytes:
    """A kernel module whose .modinfo has these keys; a value may be several."""
    pairs = [
        (key, value) for key, values in info.items() for value in ([values] if isinstance(values, str) else values)
    ]
    return elf(kind=1, sections={".text": b"\x90" * 4, ".modinfo": b"".join(f"{k}={v}\0".encode() for k, v in pairs)})


def signed(data: bytes, signature: bytes = b"signature") -> bytes:
    """``data`` with a module signature at its end."""
    return data + signature + struct.pack(">BBBBB3xI", 0, 0, 2, 0, 0, len(signature)) + _SIGNATURE


def library(needed: Sequence[str], soname: str | None = None) -> bytes:
    """A shared library that is linked with ``needed``."""
    strings = b"\0"
    entries: list[tuple[int, int]] = []
    for tag, name in [*((1, name) for name in needed), *([(14, soname)] if soname else [])]:
        entries.append((tag, len(strings)))
        strings += name.encode() + b"\0"
    address = 0x1000
    entries += [(5, address), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    return elf(kind=3, segments=[(1, address, strings), (2, 0x2000, dynamic)])


def note(owner: str, kind: int, data: bytes) -> bytes:
    """One ELF note."""
    name = owner.encode() + b"\0"
    return struct.pack("<III", len(name), len(data), kind) + _padded(name) + _padded(data)


def kernel(version: str = "6.1.0-test", *, pvh: bool = True, machine: int = 62) -> bytes:
    """What passes for an uncompressed kernel."""
    notes = note("GNU", 3, b"build id") + (note("Xen", 18, bytes(8)) if pvh else b"")
    banner = f"Linux version {version} (someone@somewhere) #1\n".encode()
    return elf(machine=machine, segments=[(1, 0x100000, banner), (4, 0x200000, notes)])


def bzimage(payload: bytes, *, protocol: int = 0x020F) -> bytes:
    """A bzImage around the compressed kernel ``payload``, which includes the size that ends it."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"trailing"


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
