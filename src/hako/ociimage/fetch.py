"""Brings an image from where it is into an OCI layout in a staging directory, with skopeo.

Paths are handed to skopeo through symbolic links in the staging directory, because it takes a colon in a path for
the start of a tag.
"""

from __future__ import annotations

import hashlib
import os

from hako import arch, proc
from hako.errors import ImageError
from hako.ociimage import archive, imageconfig, tools, unpack
from hako.ociimage.reference import ARCHIVE, DOCKER_ARCHIVE, LAYOUT, OCI_ARCHIVE, REGISTRY, Source
from hako.ociimage.unpack import Progress

_INSPECT_SECONDS = 60


def version(source: Source, insecure: tuple[str, ...], where: str) -> tuple[str, tuple[imageconfig.Layer, ...]]:
    """What ``source`` is now, to be compared with what was fetched before, and the layers it has if that is known.

    For a registry or a layout this is the manifest's digest, for an archive the identity of the file. ``where`` is
    a staging directory. Raises HakoErrors for a source that is missing, unreachable or for another platform.
    """
    if source.kind in (ARCHIVE, OCI_ARCHIVE, DOCKER_ARCHIVE):
        try:
            stat = os.stat(source.location)
        except OSError as error:
            raise ImageError(f"Cannot read the image archive {source.location}: {error.strerror}.") from error
        return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}", ()
    data = _inspect(source, insecure, where)
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    document = imageconfig.load(data, f"The manifest of {source.key}")
    chosen = imageconfig.choose_platform(document, source.key)
    if chosen is not None and source.kind == REGISTRY:
        data = _inspect(source._replace(selector=chosen), insecure, where)
        document = imageconfig.load(data, f"The manifest of {source.key}")
    # Manifests of docker's first schema list no sizes; skopeo converts them on the way.
    known = isinstance(document.get("layers"), list) and isinstance(document.get("config"), dict)
    return found, imageconfig.parse_manifest(document, source.key).layers if known else ()


def copy(source: Source, insecure: tuple[str, ...], where: str, layers: int, progress: Progress) -> None:
    """Copy ``source`` into the layout in the staging directory ``where``; ``layers`` is their number, 0 if unknown."""
    native = arch.current()
    origin = _skopeo_name(source, where)
    # Told to accept plain layers, skopeo 1.9 labels those of a docker archive as gzip, and umoci then fails.
    plain = [] if origin.startswith(DOCKER_ARCHIVE) else ["--dest-oci-accept-uncompressed-layers"]
    args = ["--tmpdir", where, "--override-arch", native.oci, "--override-os", "linux"]
    args += ["copy", "--retry-times", "2", *_tls("--src-tls-verify", source, insecure), *plain]
    args += [origin, f"oci:{unpack.LAYOUT}:{unpack.TAG}"]
    report = _Reporter(progress, layers)
    try:
        tools.run("skopeo", args, cwd=where, package="skopeo", on_line=report.line)
    except proc.CommandFailedError as error:
        raise tools.explain(error, source.key, _where(source)) from error


class _Reporter:
    """Turns skopeo's lines into progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._begun = 0

    def line(self, line: str) -> None:
        if line.startswith("Copying blob"):
            self._begun += 1
            total = f" of {self._total}" if self._begun <= self._total else ""
            self._progress(f"Copying blob {self._begun}{total}")
        elif line.startswith("Copying config"):
            self._progress("Copying the configuration")


def _inspect(source: Source, insecure: tuple[str, ...], where: str) -> bytes:
    args = ["--tmpdir", where, "inspect", "--raw", *_tls("--tls-verify", source, insecure), _skopeo_name(source, where)]
    try:
        return tools.run("skopeo", args, cwd=where, package="skopeo", timeout=_INSPECT_SECONDS)
    except proc.CommandFailedError as error:
        raise tools.explain(error, source.key, _where(source)) from error


def _skopeo_name(source: Source, where: str) -> str:
    if source.kind == REGISTRY:
        return f"docker://{source.remote}"
    kind, path = source.kind, source.location
    if kind == LAYOUT:
        _check_choice(source)
    else:
        path = archive.decompressed(path, where)
        if kind == ARCHIVE:
            kind = archive.kind_of(path, source.location)
    link = os.path.join(where, "source")
    if not os.path.islink(link):
        os.symlink(path, link)
    return f"{kind}:source" + (f":{source.selector}" if source.selector else "")


def _check_choice(source: Source) -> None:
    """Raise ImageError when a layout holds several images and the user named none: the tags are known here."""
    what = f"The index of {source.location}"
    document = imageconfig.load(imageconfig.read_file(os.path.join(source.location, "index.json"), what), what)
    entries = document.get("manifests")
    if source.selector or not isinstance(entries, list) or len(entries) < 2:
        return
    notes = [entry.get("annotations") for entry in entries if isinstance(entry, dict)]
    tags = [str(note.get("org.opencontainers.image.ref.name")) for note in notes if isinstance(note, dict)]
    raise ImageError(
        f"{source.location} holds more than one image: name one of them by adding :TAG to the path "
        f"({', '.join(sorted(tags)[:10]) or 'but none has a tag'})."
    )


def _tls(flag: str, source: Source, insecure: tuple[str, ...]) -> list[str]:
    if source.kind != REGISTRY:
        return []
    host = source.registry.rpartition(":")[0] if ":" in source.registry.rpartition("]")[2] else source.registry
    is_loopback = host.startswith("127.") and host.replace(".", "").isdigit()
    local = is_loopback or host in ("localhost", "[::1]")
    return [f"{flag}=false"] if local or source.registry in insecure or host in insecure else []


def _where(source: Source) -> str:
    return source.registry if source.kind == REGISTRY else source.location
