"""The unpacked packages that a guest's user space is taken from, and the shared libraries that programs need.

Packages come in only when one of their files is wanted: a library that no file here has is looked for among the
direct dependencies of the package whose file asks for it, the likeliest name first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hako import store
from hako.arch import current
from hako.errors import ImageError
from hako.guestimage.elf import ElfFile
from hako.guestimage.packages import Apt, Package, unpack

_SKIPPED = ("usr/share/man/", "usr/share/locale/", "usr/share/info/", "etc/")


class Userland:
    """A directory of unpacked packages, which remembers the package of each file."""

    def __init__(self, root: str, apt: Apt) -> None:
        self.root = root
        self.packages: dict[str, Package] = {}
        self._apt = apt
        self._owners: dict[str, str] = {}

    def add(self, packages: Sequence[Package]) -> None:
        """Fetch and unpack ``packages``, those that are not here yet."""
        new = [package for package in packages if package.name not in self.packages]
        for package, deb in zip(new, self._apt.fetch(new), strict=True):
            self.packages[package.name] = package
            for path in unpack(deb, self.root, _is_wanted):
                self._owners[path] = package.name

    def read(self, path: str) -> bytes:
        """The content of the unpacked file ``path``; links are followed."""
        with open(os.path.join(self.root, path), "rb") as file:
            return file.read()

    def replace(self, path: str, data: bytes) -> None:
        """Give the unpacked program ``path`` the content ``data``."""
        self.owner(path)
        store.write_atomic(os.path.join(self.root, path), data, 0o755)

    def owner(self, path: str) -> str:
        """The name of the package that ``path`` came with. Raises ImageError for a file that is not here."""
        if path not in self._owners:
            raise ImageError(f"The Debian packages for the guest do not hold /{path}, which hako needs.")
        return self._owners[path]

    def libraries(self, programs: Sequence[str]) -> dict[str, str]:
        """The shared libraries that ``programs`` (paths) need, with those that these need: soname → path."""
        found: dict[str, str] = {}
        queue = list(programs)
        while queue:
            path = queue.pop(0)
            self.owner(path)
            for soname in ElfFile(self.read(path), f"/{path}").needed():
                if soname not in found:
                    found[soname] = self.find_library(soname, path)
                    queue.append(found[soname])
        return found

    def find_library(self, soname: str, needed_by: str) -> str:
        """The path of the library ``soname``, brought in for the file ``needed_by`` if it is not here yet."""
        here = self._library_path(soname)
        if here is not None:
            return here
        asking = self.packages[self.owner(needed_by)]
        candidates = [p for p in self._apt.find(asking.depends) if p.name not in self.packages]
        for package in sorted(candidates, key=lambda package: not is_named_after(package.name, soname)):
            self.add([package])
            here = self._library_path(soname)
            if here is not None:
                return here
        raise ImageError(f"No dependency of the package {asking.name} has the library {soname} of /{needed_by}.")

    def _library_path(self, soname: str) -> str | None:
        for directory in (f"usr/lib/{current().multiarch}", "usr/lib64", "usr/lib"):
            path = f"{directory}/{soname}"
            if path in self._owners:
                return path
        return None


def is_named_after(package: str, soname: str) -> bool:
    """Whether Debian's naming rule gives ``package`` to the library ``soname`` (libcap.so.2 → libcap2)."""
    stem, _, version = soname.partition(".so")
    version = version.lstrip(".")
    joint = "-" if stem[-1:].isdigit() else ""
    return package.startswith(f"{stem}{joint}{version}".lower().replace("_", "-"))


def _is_wanted(path: str) -> bool:
    return not path.startswith(_SKIPPED)
