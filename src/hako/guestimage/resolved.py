"""Remembers which packages the last build used, so that the next one can tell in milliseconds that nothing changed.

As long as apt's lists and sources are untouched, the answer holds as it is. When they were touched, the same
packages are looked up again; only if one of them changed must everything be worked out anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from hako import store
from hako.guestimage.packages import Apt, Package, apt_stamp
from hako.paths import cache_dir


def load(imports: Sequence[str], apt: Apt, *, own_kernel: bool) -> list[Package] | None:
    """The packages that a build for an agent with these imports uses, or None when that must be worked out."""
    path = _path(own_kernel=own_kernel)
    known = store.read_json(path)
    if known is None or known.get("imports") != list(imports):
        return None
    try:
        used, asked = _packages(known["used"]), _packages(known["asked"])
    except (KeyError, TypeError):
        return None
    stamp = apt_stamp()
    if known.get("stamp") != stamp:
        now = apt.find([package.name for package in [*used, *asked]])
        if now != [*used, *asked]:
            return None
        store.write_json(path, {**known, "stamp": stamp})
    return used


def save(imports: Sequence[str], used: Sequence[Package], asked: Sequence[Package], *, own_kernel: bool) -> None:
    """Remember ``used``, the packages in the image, and ``asked``, those whose dependencies led there."""
    store.ensure_dir(cache_dir())
    value = {"stamp": apt_stamp(), "imports": list(imports), "used": list(used), "asked": list(asked)}
    store.write_json(_path(own_kernel=own_kernel), json.loads(json.dumps(value)))


def _packages(value: object) -> list[Package]:
    if not isinstance(value, list):
        raise TypeError
    return [Package(name, version, sha256, tuple(depends)) for name, version, sha256, depends in value]


def _path(*, own_kernel: bool) -> str:
    return os.path.join(cache_dir(), f"guest-packages{'-own-kernel' if own_kernel else ''}.json")
