"""What a guest image is on disk: a directory with a kernel, an initrd and a manifest that describes both.

The directory of a built image is named by the SHA-256 of its manifest, which holds the SHA-256 of every other
file: the name stands for each byte in it. When it was built is only in the files' times.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from hako import digests
from hako.errors import ImageError
from hako.named import NamedTuple

MANIFEST = "manifest.json"
KERNEL = "vmlinux"
INITRD = "initrd"
LICENCES = "licences"
#: Kernel modules that the guest reads when its kernel asks for them (requested.py). SUMS is the file in it that stands
#: for the others: listing hundreds in the manifest would cost each start a millisecond.
MODULES = "modules"
SUMS = "SHA256SUMS"

#: Version of the manifest's own layout. Readers refuse others.
FORMAT = 1
#: How the guest's root file system comes: "initrd" is built today; "erofs" and "disk" are a file of their own,
#: given to the VM as a block device beside an initrd that mounts it.
FORMS = ("initrd", "erofs", "disk")
_ROOT_FILES = {"erofs": "root.erofs", "disk": "root.img"}


class GuestImage(NamedTuple):
    """A guest image that is there and readable (its content is checked by ``images.verify`` only)."""

    digest: str  #: 64 hexadecimal digits that change whenever the image does
    directory: str
    manifest: dict[str, Any]

    @property
    def kernel(self) -> str:
        """Path of the kernel, an uncompressed ELF file with a PVH entry."""
        return os.path.join(self.directory, KERNEL)

    @property
    def initrd(self) -> str:
        """Path of the initrd."""
        return os.path.join(self.directory, INITRD)

    @property
    def modules(self) -> str | None:
        """Path of the directory of modules that the kernel may ask for, or None in an image without any."""
        known = f"{MODULES}/{SUMS}" in self.manifest["files"]
        return os.path.join(self.directory, MODULES) if known else None

    @property
    def form(self) -> str:
        """One of FORMS."""
        return str(self.manifest["form"])

    @property
    def root(self) -> str | None:
        """Path of the root file system's own file, or None when all is in the initrd."""
        name = _ROOT_FILES.get(self.form)
        return os.path.join(self.directory, name) if name else None

    @property
    def kernel_version(self) -> str:
        """The kernel's version as ``uname -r`` shows it in the guest."""
        return str(self.manifest["kernel"]["version"])

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Every file of the image but the manifest: relative path → {"size": bytes, "sha256": hex}."""
        return dict(self.manifest["files"])


def encode(manifest: Mapping[str, object]) -> bytes:
    """The bytes of ``manifest``; the same manifest always gives the same bytes."""
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def digest_of(manifest: bytes) -> str:
    """The digest of an image whose manifest has these bytes."""
    return digests.of(manifest)


def describe(data: bytes) -> dict[str, object]:
    """The manifest's entry for a file with content ``data``."""
    import hashlib

    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def load(directory: str) -> tuple[dict[str, Any], bytes]:
    """The manifest in ``directory``, checked, and its bytes. Raises ImageError when it is missing or not valid."""
    path = os.path.join(directory, MANIFEST)
    try:
        with open(path, "rb") as file:
            raw = file.read()
        value = json.loads(raw)
    except OSError as error:
        raise ImageError(
            f"{directory} is not a guest image: {MANIFEST} cannot be read ({error.strerror}); run `hako image build`."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ImageError(f"The guest image in {directory} is damaged: {MANIFEST} is not JSON.") from error
    problem = _problem(value)
    if problem is not None:
        raise ImageError(f"The guest image in {directory} cannot be used: its manifest {problem}; build it again.")
    return value, raw


def _problem(value: object) -> str | None:
    """What is wrong with the manifest ``value``, or None."""
    if not isinstance(value, dict):
        return "is not an object"
    if value.get("format") != FORMAT:
        return f"has format {value.get('format')!r}, this hako reads {FORMAT}"
    form = value.get("form")
    if form not in FORMS:
        return f"has the unknown form {form!r}"
    kernel = value.get("kernel")
    if not isinstance(kernel, dict) or not isinstance(kernel.get("version"), str):
        return "does not tell the kernel's version"
    files = value.get("files")
    if not isinstance(files, dict):
        return "lists no files"
    for name, entry in files.items():
        if not _is_safe(name) or not isinstance(entry, dict):
            return f"has an entry for {name!r} that is not valid"
        if type(entry.get("size")) is not int or not isinstance(entry.get("sha256"), str):
            return f"does not tell size and SHA-256 of {name}"
    missing = {KERNEL, INITRD, *([_ROOT_FILES[form]] if form in _ROOT_FILES else [])} - files.keys()
    return f"does not list {', '.join(sorted(missing))}" if missing else None


def _is_safe(name: str) -> bool:
    """Whether ``name`` is a relative path that stays inside the image."""
    return name != MANIFEST and not any(part in ("", ".", "..") for part in name.split("/")) and "\0" not in name
