"""Debian packages: finding their current versions, fetching them with apt, and taking files out of them.

Nothing is installed on the host. Downloads are kept under the cache directory and used again only while
their SHA-256 is the one that apt's (signed) lists give.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from hako import store
from hako.arch import current
from hako.errors import HostError, ImageError
from hako.named import NamedTuple
from hako.paths import cache_dir
from hako.proc import CommandFailedError, run

if TYPE_CHECKING:
    from tarfile import TarFile

_NEEDS_APT = "hako builds its guest image from Debian packages and needs apt (packages apt and dpkg)."
_APT_STATE = ("/var/lib/apt/lists", "/etc/apt", "/etc/apt/sources.list.d", "/etc/apt/preferences.d")
_UPDATE_TRIES = 15
_UPDATE_PAUSE = 4.0  # seconds


class Package(NamedTuple):
    """One package at the version that apt would install now."""

    name: str
    version: str
    sha256: str
    depends: tuple[str, ...]  #: names it (pre-)depends on, the first of each group of alternatives


class Apt:
    """Look-ups in apt's lists, each package asked for once."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._known: dict[str, Package | None] = {}
        self._updated = False

    def find(self, names: Iterable[str]) -> list[Package]:
        """Those of ``names`` that are packages, in the same order. Virtual packages are left out."""
        names = list(dict.fromkeys(names))
        unknown = [name for name in names if name not in self._known]
        if unknown:
            found = parse_stanzas(self._show(unknown))
            self._known.update({name: found.get(name) for name in unknown})
        return [package for name in names if (package := self._known[name]) is not None]

    def get(self, name: str) -> Package:
        """The package ``name``. Refreshes apt's lists once if it is unknown; then raises ImageError."""
        found = self.find([name])
        if not found and not self._updated:
            self.update()
            found = self.find([name])
        if not found:
            raise ImageError(
                f"apt knows no package {name} that can be downloaded; check that /etc/apt/sources.list.d names "
                "Debian's archive."
            )
        return found[0]

    def update(self) -> None:
        """Refresh apt's package lists, waiting while another apt holds its lock. Forgets what was known."""
        self._progress("refreshing the package lists (apt-get update)")
        self._updated = True
        self._known.clear()
        for last in (*[False] * (_UPDATE_TRIES - 1), True):
            try:
                run(["apt-get", "-q", "update"], missing=_NEEDS_APT, timeout=600)
                return
            except CommandFailedError as error:
                if last or "lock" not in error.stderr.lower():
                    raise ImageError(f"The package lists could not be refreshed: {error}") from error
                time.sleep(_UPDATE_PAUSE)

    def fetch(self, packages: Sequence[Package]) -> list[str]:
        """Paths of the packages' .deb files, downloaded where the cache has none with the right SHA-256."""
        directory = store.ensure_dir(os.path.join(cache_dir(), "packages"))
        paths = [os.path.join(directory, f"{package.name}_{package.sha256[:16]}.deb") for package in packages]
        missing = [
            (package, path) for package, path in zip(packages, paths, strict=True) if _sha256_of(path) != package.sha256
        ]
        if missing:
            self._progress("downloading " + ", ".join(f"{package.name} {package.version}" for package, _ in missing))
            self._download(missing, directory)
        return paths

    def forget_old(self, current_packages: Iterable[Package]) -> None:
        """Remove other versions of these packages from the cache of downloads."""
        directory = os.path.join(cache_dir(), "packages")
        keep = {package.name: f"{package.name}_{package.sha256[:16]}.deb" for package in current_packages}
        for name in os.listdir(directory):
            if name != keep.get(name.partition("_")[0], name):
                os.unlink(os.path.join(directory, name))

    def _download(self, wanted: Sequence[tuple[Package, str]], directory: str) -> None:
        with store.staging_dir(directory) as staging:
            names = [f"{package.name}={package.version}" for package, _ in wanted]
            argv = ["apt-get", "-q", *_index_option(), "download", *names]
            try:
                run(argv, cwd=staging, missing=_NEEDS_APT, timeout=1800)
            except CommandFailedError as error:
                raise ImageError(
                    f"Packages could not be downloaded ({error}); if the lists are old, run `apt-get update` first."
                ) from error
            by_sha = {_sha256_of(path): path for path in (os.path.join(staging, n) for n in os.listdir(staging))}
            for package, path in wanted:
                if package.sha256 not in by_sha:
                    raise ImageError(f"The downloaded package {package.name} does not have the SHA-256 that apt gives.")
                os.replace(by_sha[package.sha256], path)

    def _show(self, names: Sequence[str]) -> str:
        argv = ["apt-cache", *_index_option(), "show", "--no-all-versions", *names]
        # apt-cache fails when one name is unknown, and still shows the others.
        return run(argv, missing=_NEEDS_APT, check=False, timeout=120).stdout.decode(errors="replace")


def parse_stanzas(text: str) -> dict[str, Package]:
    """Packages by name from ``apt-cache show`` output; those that cannot be downloaded are left out."""
    found: dict[str, Package] = {}
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            key, separator, value = line.partition(":")
            if separator and not line[:1].isspace():
                fields[key] = value.strip()
        if all(fields.get(key) for key in ("Package", "Version", "SHA256", "Filename")):
            depends = [*_names(fields.get("Pre-Depends", "")), *_names(fields.get("Depends", ""))]
            name = fields["Package"]
            found.setdefault(name, Package(name, fields["Version"], fields["SHA256"], tuple(dict.fromkeys(depends))))
    return found


def apt_stamp() -> str:
    """A value that changes when apt's lists or sources change, at the price of a few directory look-ups."""
    seen = hashlib.sha256(current().debian.encode())
    for directory in _APT_STATE:
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.is_file():
                info = entry.stat()
                seen.update(f"{entry.path}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def unpack(deb: str, root: str, wanted: Callable[[str], bool] = bool) -> list[str]:
    """Unpack the files of the package file ``deb`` for whose path ``wanted`` says yes into ``root``.

    Paths are relative, with /bin, /sbin, /lib and /lib64 moved into /usr as on every Debian since 12. Returns the
    paths of files and links. Modes and owners are not kept, the builder gives its own.
    """
    import tarfile

    paths: list[str] = []
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            with tarfile.open(fileobj=child.stdout, mode="r|") as archive:
                paths.extend(_extract(archive, root, wanted))
        except (tarfile.TarError, EOFError) as error:
            child.kill()
            raise ImageError(f"The package {deb} cannot be unpacked: {error}.") from error
        child.stdout.read()
        complaint = child.stderr.read().decode(errors="replace").strip()
    if child.returncode != 0:
        raise ImageError(f"The package {deb} cannot be unpacked: {complaint or 'dpkg-deb failed'}.")
    return paths


def _extract(archive: TarFile, root: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    for member in archive:
        path = merged_path(member.name)
        if path is None or not wanted(path):
            continue
        target = os.path.join(root, path)
        if member.isfile():
            source = archive.extractfile(member)
            assert source is not None
            _make_room(target)
            with open(target, "wb") as file:
                file.write(source.read())
            os.chmod(target, 0o755 if member.mode & 0o111 else 0o644)
            yield path
        elif member.issym():
            _make_room(target)
            os.symlink(member.linkname, target)
            yield path


def merged_path(name: str) -> str | None:
    """The relative path of the archive member ``name`` after the /usr merge; None for what must not be unpacked."""
    path = os.path.normpath(name.lstrip("/"))
    if path in (".", "..") or path.startswith("../"):
        return None
    first = path.partition("/")[0]
    return f"usr/{path}" if first in ("bin", "sbin", "lib", "lib64") else path


def _make_room(target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.lexists(target):
        os.unlink(target)


def _index_option() -> list[str]:
    # Hosts made from container images often tell apt to keep no index; with one, apt starts 20 times faster.
    index = os.path.join(store.ensure_dir(os.path.join(cache_dir(), "apt")), "pkgcache.bin")
    return ["-o", f"Dir::Cache::pkgcache={index}"]


def _names(field: str) -> Iterator[str]:
    """Package names in a dependency field: of ``a (>= 1) | b, c:any`` it is a and c."""
    for group in field.split(","):
        name = group.partition("|")[0].partition("(")[0].partition("[")[0].strip().partition(":")[0]
        if name:
            yield name


def _sha256_of(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"Cannot read {path}: {error.strerror}.") from error
