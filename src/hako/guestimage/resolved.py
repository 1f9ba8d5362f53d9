"""Remembers what the last build used, so that the next one can tell in milliseconds that nothing changed.

Packages: as long as apt's lists and sources are untouched, the answer holds as it is. When they were touched, the
same packages are looked up again; only if one of them changed must everything be worked out anew.

A user's own kernel: its digest holds as long as its files are untouched. Reading it takes seconds, and each start
of a sandbox asks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from hako import store
from hako.guestimage import modules, requested
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


def load_own_kernel(kernel: str, modules_dir: str, extra: Sequence[str]) -> str | None:
    """The digest of a user's kernel and modules if their files are those that were read last, else None."""
    known = store.read_json(_kernel_path(kernel, modules_dir, extra))
    files = known.get("files") if known else None
    if known is None or not isinstance(files, list) or known.get("stamp") != _stamp_of(kernel, modules_dir, files):
        return None
    sha256 = known.get("sha256")
    return sha256 if isinstance(sha256, str) else None


def save_own_kernel(kernel: str, modules_dir: str, extra: Sequence[str], files: Sequence[str], sha256: str) -> None:
    """Remember the digest of a user's kernel whose modules were read from ``files``."""
    path = _kernel_path(kernel, modules_dir, extra)
    store.ensure_dir(os.path.dirname(path))
    stamp = _stamp_of(kernel, modules_dir, files)
    store.write_json(path, {"stamp": stamp, "files": list(files), "sha256": sha256})


def _kernel_path(kernel: str, modules_dir: str, extra: Sequence[str]) -> str:
    wanted = [kernel, modules_dir, *extra, "", *modules.REQUIRED, *modules.BOOT_OPTIONAL, *modules.ON_DEMAND]
    wanted += ["", *requested.DIRECTORIES, *requested.NAMES]
    return os.path.join(cache_dir(), "own-kernels", hashlib.sha256("\0".join(wanted).encode()).hexdigest() + ".json")


def _stamp_of(kernel: str, modules_dir: str, files: Sequence[str]) -> str:
    """A value that changes when one of the files does, or when depmod or an installation changed the directory."""
    seen = hashlib.sha256()
    indexes = [os.path.join(modules_dir, name) for name in ("modules.builtin", "modules.dep")]
    for path in (kernel, modules_dir, *indexes, *files):
        try:
            info = os.stat(path)
            fact = f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
        except OSError as error:
            fact = f"{error.errno}"
        seen.update(f"{path}\0{fact}\n".encode())
    return seen.hexdigest()


def _packages(value: object) -> list[Package]:
    if not isinstance(value, list):
        raise TypeError
    return [Package(name, version, sha256, tuple(depends)) for name, version, sha256, depends in value]


def _path(*, own_kernel: bool) -> str:
    return os.path.join(cache_dir(), f"guest-packages{'-own-kernel' if own_kernel else ''}.json")
