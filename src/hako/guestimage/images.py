"""The guest images on this host: finding, listing, inspecting, checking, publishing and removing them.

    guest-images/
        .lock                 held while an image is published or removed
        default -> DIGEST     the image that sandboxes boot unless their settings name another
        DIGEST/               manifest.json, vmlinux, initrd, licences/PACKAGE, modules/

A directory appears complete or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from hako import digests, store
from hako.errors import ImageError
from hako.guestimage.manifest import MANIFEST, SUMS, GuestImage, digest_of, encode, load
from hako.paths import guest_images_dir

_DEFAULT = "default"
_LOCK = ".lock"
_DIGEST_LENGTH = 64
_HEX = frozenset("0123456789abcdef")
_REMEDY = "run `hako image build`"


def find(name: str | None = None) -> GuestImage:
    """The image called ``name``: None for the default one, a digest or the unique beginning of one, or the
    absolute path of a directory that holds one (a user's changed image).

    Raises ImageError with the remedy when there is none, and when ``name`` is ambiguous.
    """
    if not name:
        return _default()
    if os.path.isabs(name):
        return _from_directory(os.path.normpath(name))
    if not _HEX.issuperset(name) or len(name) > _DIGEST_LENGTH:
        raise ImageError(f"{name!r} names no guest image: give the beginning of a digest or an absolute path.")
    matches = [digest for digest in _digests() if digest.startswith(name)]
    if len(matches) > 1:
        raise ImageError(f"{name} is the beginning of {len(matches)} guest images; give more digits.")
    if not matches:
        raise ImageError(f"There is no guest image {name}; `hako image list` shows those there are, or {_REMEDY}.")
    return _published(matches[0])


def list_images() -> list[GuestImage]:
    """All published images that can be read, the newest first. Damaged ones are left out; find() tells about them."""
    found: list[tuple[float, GuestImage]] = []
    for digest in _digests():
        with contextlib.suppress(ImageError, FileNotFoundError):
            image = _published(digest)
            found.append((built_at(image), image))
    return [image for _, image in sorted(found, key=lambda item: (-item[0], item[1].digest))]


def default_digest() -> str | None:
    """The digest of the default image, or None when no image was built yet."""
    try:
        return os.path.basename(os.readlink(os.path.join(guest_images_dir(), _DEFAULT)))
    except OSError:
        return None


def built_at(image: GuestImage) -> float:
    """When the image was built here, in seconds since 1970."""
    return os.stat(os.path.join(image.directory, MANIFEST)).st_mtime


def inspect(name: str | None = None) -> dict[str, Any]:
    """All there is to say about an image: its manifest, and its digest, directory, build time and total size."""
    image = find(name)
    return {
        "digest": image.digest,
        "directory": image.directory,
        "default": image.digest == default_digest(),
        "built": built_at(image),
        "size": sum(entry["size"] for entry in image.files.values()),
        **image.manifest,
    }


def verify(image: GuestImage) -> None:
    """Read the whole image and raise ImageError naming the first file that is not as the manifest says."""
    manifest, raw = load(image.directory)
    if is_published(image) and digest_of(raw) != image.digest:
        raise ImageError(f"The guest image {image.digest[:12]} is damaged: its manifest was changed; {_REMEDY}.")
    for name, entry in sorted(manifest["files"].items()):
        _verify(os.path.join(image.directory, name), entry["sha256"])
    if image.modules is not None:
        with open(os.path.join(image.modules, SUMS), encoding="utf-8", errors="replace") as file:
            for line in file:
                wanted, _, name = line.rstrip("\n").partition("  ")
                _verify(os.path.join(image.modules, name), wanted)


def _verify(path: str, wanted: str) -> None:
    import hashlib

    try:
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"The guest image is damaged: {path} cannot be read ({error.strerror}).") from error
    if actual != wanted:
        raise ImageError(f"The guest image is damaged: {path} is not the file that its manifest names.")


def remove(name: str, *, force: bool = False) -> str:
    """Remove a published image and return its digest. VMs that run from it go on.

    Raises ImageError for an unknown image, for a directory outside hako's own, and for the default image
    unless ``force``.
    """
    with store.locked(_lock_path()):
        image = find(name)
        if not is_published(image):
            raise ImageError(f"{image.directory} is not among hako's own images; remove the directory yourself.")
        if image.digest == default_digest():
            if not force:
                raise ImageError(
                    f"{image.digest[:12]} is the default guest image, which new sandboxes boot; force its removal, "
                    "or build another first."
                )
            os.unlink(os.path.join(guest_images_dir(), _DEFAULT))
        # Renamed first: no one finds an image that is half gone.
        with store.staging_dir(guest_images_dir()) as grave:
            os.rename(image.directory, os.path.join(grave, image.digest))
    return image.digest


def publish(staging: str, manifest: dict[str, object], *, make_default: bool) -> GuestImage:
    """Publish the complete image in ``staging`` (a directory beside the images) under its digest.

    ``manifest`` is written to it. An image with the same digest that is there already is kept.
    """
    raw = encode(manifest)
    digest = digest_of(raw)
    store.write_atomic(os.path.join(staging, MANIFEST), raw, 0o644)
    os.chmod(staging, 0o755)  # noqa: S103 - nothing in it is secret, and QEMU may run as another user
    with store.locked(_lock_path()):
        place = os.path.join(guest_images_dir(), digest)
        if is_complete(place):
            pass
        else:
            store.remove_tree(place)
            _sync(staging)
            os.rename(staging, place)
        if make_default:
            _point_default_at(digest)
    return _published(digest)


def set_default(image: GuestImage) -> None:
    """Make a published image the default one. Raises ImageError for any other."""
    with store.locked(_lock_path()):
        if not is_published(image):
            raise ImageError(f"{image.directory} is not a published guest image and cannot be the default.")
        if default_digest() != image.digest:
            _point_default_at(image.digest)


def find_by_inputs(inputs: str) -> GuestImage | None:
    """The complete published image that was built from these inputs, if there is one."""
    for image in list_images():
        if image.manifest.get("inputs") == inputs and is_complete(image.directory):
            return image
    return None


def is_complete(directory: str) -> bool:
    """Whether every file that the manifest in ``directory`` names is there with its size."""
    try:
        manifest, _ = load(directory)
        return all(
            os.stat(os.path.join(directory, name)).st_size == entry["size"] for name, entry in manifest["files"].items()
        )
    except (ImageError, OSError):
        return False


def is_published(image: GuestImage) -> bool:
    """Whether the image is one of hako's own (not a directory of the user's)."""
    return image.directory == os.path.join(guest_images_dir(), image.digest)


def _default() -> GuestImage:
    digest = default_digest()
    if digest is None:
        raise ImageError(f"There is no guest image yet; {_REMEDY}.")
    if digest not in _digests():
        raise ImageError(f"The default guest image {digest[:12]} is gone; {_REMEDY}.")
    return _published(digest)


def _published(digest: str) -> GuestImage:
    directory = os.path.join(guest_images_dir(), digest)
    manifest, _ = load(directory)
    return _with_files(GuestImage(digest, directory, manifest))


def _from_directory(directory: str) -> GuestImage:
    parent, name = os.path.split(directory)
    if parent == guest_images_dir() and _is_digest(name):
        return find(name)
    manifest, raw = load(directory)
    image = _with_files(GuestImage("", directory, manifest))
    # A user may change a file and not the manifest, so the files' identities count too; reading them all would
    # cost each start a tenth of a second.
    identities = [raw]
    for file in sorted(image.files):
        try:
            info = os.stat(os.path.join(directory, file))
        except OSError as error:
            raise ImageError(f"The guest image in {directory} is not complete: {file}: {error.strerror}.") from error
        identities.append(f"{file}\0{info.st_dev}\0{info.st_ino}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    return image._replace(digest=digests.of(b"".join(identities)))


def _with_files(image: GuestImage) -> GuestImage:
    for path in (image.kernel, image.initrd, image.root):
        if path is not None and not os.path.isfile(path):
            raise ImageError(f"The guest image in {image.directory} is damaged: {path} is missing; {_REMEDY}.")
    return image


def _is_digest(name: str) -> bool:
    return len(name) == _DIGEST_LENGTH and _HEX.issuperset(name)


def _digests() -> list[str]:
    try:
        return sorted(filter(_is_digest, os.listdir(guest_images_dir())))
    except FileNotFoundError:
        return []


def _lock_path() -> str:
    return os.path.join(store.ensure_dir(guest_images_dir()), _LOCK)


def _point_default_at(digest: str) -> None:
    link = os.path.join(guest_images_dir(), _DEFAULT)
    temporary = f"{link}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(digest, temporary)
    os.replace(temporary, link)


def _sync(directory: str) -> None:
    """Write the files of ``directory`` to the disk, so that a crash cannot leave an image of empty files."""
    for parent, _, names in os.walk(directory):
        for path in (*(os.path.join(parent, name) for name in names), parent):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
