"""What the user means by an image: a name, a digest, a path, or a transport with either.

The rules, in order:

1. ``docker://``, ``oci:``, ``oci-archive:``, ``docker-archive:`` and ``rootfs:`` say it outright.
2. Anything that starts with ``/``, ``./`` or ``../`` (or is ``.`` or ``..``) is a path, and so is anything with a
   slash that exists as a path. What kind of image the path holds is found out by looking.
3. Everything else is a name as registries know it, with docker's short forms: ``busybox`` is
   ``docker.io/library/busybox:latest``.
"""

from __future__ import annotations

import os
import re

from hako.errors import ConfigError, ImageError, NotFoundError
from hako.named import NamedTuple

REGISTRY = "registry"
LAYOUT = "oci"
ROOTFS = "rootfs"
ARCHIVE = "archive"  #: of either kind; its content decides
OCI_ARCHIVE = "oci-archive"
DOCKER_ARCHIVE = "docker-archive"
ON_DISK = (ARCHIVE, LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE)

_DEFAULT_REGISTRY = "docker.io"
_FOREIGN = ("docker-daemon:", "containers-storage:", "dir:", "ostree:", "sif:", "tarball:")

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_DIGEST_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})\Z")


class Source(NamedTuple):
    """Where an image comes from."""

    kind: str  #: one of the constants above
    location: str  #: absolute path, or the registry name without tag: ``docker.io/library/busybox``
    selector: str = ""  #: the tag or ``sha256:`` digest in a registry, the tag in a layout, the reference in an archive

    @property
    def key(self) -> str:
        """The one name under which the index knows this source: ``busybox:latest``, ``oci:/srv/app:v1``."""
        if self.kind == REGISTRY:
            mark = "@" if _DIGEST.match(self.selector) else ":"
            return f"{familiar(self.location)}{mark}{self.selector}"
        return f"{self.kind}:{self.location}" + (f":{self.selector}" if self.selector else "")

    @property
    def registry(self) -> str:
        """Host and port of the registry; only for the kind REGISTRY."""
        return self.location.partition("/")[0]

    @property
    def remote(self) -> str:
        """The name for skopeo's docker transport."""
        mark = "@" if _DIGEST.match(self.selector) else ":"
        return f"{self.location}{mark}{self.selector}"


def parse(ref: str) -> Source:
    """What ``ref`` means. Looks at the file system for paths only.

    Raises ConfigError when it cannot be a reference, NotFoundError for a path that does not exist, ImageError
    for a path that is neither a directory nor a file.
    """
    if not ref or "\0" in ref or "\n" in ref:
        raise ConfigError("The image has no name: give a name such as busybox, or the path of an image.")
    for foreign in _FOREIGN:
        if ref.startswith(foreign):
            raise ImageError(
                f"hako does not read {foreign.rstrip(':')} images ({ref}): copy it to a file first, for example "
                f"with: skopeo copy {ref} oci-archive:image.tar"
            )
    if ref.startswith("docker://"):
        return parse_name(ref.removeprefix("docker://"))
    for kind in (LAYOUT, OCI_ARCHIVE, DOCKER_ARCHIVE, ROOTFS):
        if ref.startswith(f"{kind}:"):
            return _explicit(kind, ref.removeprefix(f"{kind}:"))
    if is_path(ref):
        return _path(ref)
    return parse_name(ref)


def is_path(ref: str) -> bool:
    """Whether ``ref`` is meant as a path, by rule 2 above."""
    if ref in (".", "..") or ref.startswith(("/", "./", "../")):
        return True
    return "/" in ref and (os.path.exists(ref) or os.path.exists(_split(ref)[0]))


def parse_name(name: str) -> Source:
    """A registry reference in docker's grammar. Raises ConfigError when it is none."""
    rest, _, digest = name.partition("@")
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        domain, path = head, tail
    else:
        domain, path = _DEFAULT_REGISTRY, rest
    path, colon, tag = path.partition(":")
    if domain in ("index.docker.io", "registry-1.docker.io"):
        domain = _DEFAULT_REGISTRY
    if domain == _DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    name_is_good = _DOMAIN.match(domain) and _PATH.match(path) and len(path) <= 255
    if not name_is_good or (colon and not _TAG.match(tag)) or ("@" in name and not _DIGEST.match(digest)):
        raise ConfigError(
            f"{name!r} is not the name of an image: write [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST] with the name in "
            "small letters, or ./PATH for an image in a file or directory."
        )
    return Source(REGISTRY, f"{domain}/{path}", digest or tag or "latest")


def familiar(location: str) -> str:
    """``docker.io/library/busybox`` as people write it: ``busybox``."""
    short = location.removeprefix("docker.io/")
    return short.removeprefix("library/") if short != location else location


def digest_prefix(ref: str) -> str | None:
    """The hexadecimal digits when ``ref`` may be a digest or the start of one (four digits at least), else None."""
    match = _DIGEST_PREFIX.match(ref)
    return match[1] if match else None


def _split(ref: str) -> tuple[str, str]:
    """``PATH:SELECTOR`` at the last colon before which there is an existing path; the selector may be empty."""
    at = ref.rfind(":")
    while at > 0:
        if os.path.exists(ref[:at]):
            return ref[:at], ref[at + 1 :]
        at = ref.rfind(":", 0, at)
    return ref, ""


def _locate(ref: str) -> tuple[str, str]:
    path, selector = (ref, "") if os.path.exists(ref) else _split(ref)
    if not os.path.exists(path):
        raise NotFoundError(f"There is no image at {ref}: no such file or directory.")
    return os.path.realpath(path), selector


def _explicit(kind: str, ref: str) -> Source:
    path, selector = _locate(ref)
    if kind in (LAYOUT, ROOTFS) and not os.path.isdir(path):
        raise ImageError(f"{path} is not a directory, so it cannot be used with {kind}:.")
    if kind in (OCI_ARCHIVE, DOCKER_ARCHIVE) and not os.path.isfile(path):
        raise ImageError(f"{path} is not a file, so it cannot be used with {kind}:.")
    if kind == LAYOUT and not _is_layout(path):
        raise ImageError(f"{path} is not an OCI layout: it holds no file named oci-layout.")
    if kind == ROOTFS and selector:
        raise NotFoundError(f"There is no root directory at {ref}.")
    return Source(kind, path, selector)


def _path(ref: str) -> Source:
    path, selector = _locate(ref)
    if os.path.isfile(path):
        return Source(ARCHIVE, path, selector)
    if not os.path.isdir(path):
        raise ImageError(f"{path} is neither a directory nor a file, so it cannot be an image.")
    if _is_layout(path):
        return Source(LAYOUT, path, selector)
    if selector:
        raise ImageError(f"{path} is a root directory, which has no tags; leave out {':' + selector!r}.")
    return Source(ROOTFS, path)


def _is_layout(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "oci-layout"))
