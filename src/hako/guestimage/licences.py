"""Licences of the packages in a guest image, read from the copyright file that each Debian package ships."""

from __future__ import annotations

import os
import re

_PROSE = "see copyright"
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9][A-Za-z0-9.+-]*[A-Za-z0-9])")


def copyright_text(root: str, package: str) -> bytes | None:
    """The copyright file of ``package`` in the unpacked tree ``root``; None when there is none.

    A package may share its documentation with another by a link. Links are followed inside the tree only.
    """
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, "usr/share/doc", package, "copyright"))
    if not path.startswith(base + os.sep) or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def licence_names(text: bytes) -> list[str]:
    """Short names of the licences that a copyright file names, sorted.

    Machine-readable files say ``License: NAME``. Others are prose: the licences that they refer to in Debian's
    collection of common licences are named, and "see copyright", for there may be more.
    """
    decoded = text.decode(errors="replace")
    names = set()
    if decoded.startswith("Format:"):
        for line in decoded.splitlines():
            field, _, value = line.partition(":")
            if field.lower() == "license" and value.strip():
                names.add(value.strip())
    return sorted(names) or [*sorted(set(_COMMON.findall(decoded))), _PROSE]
