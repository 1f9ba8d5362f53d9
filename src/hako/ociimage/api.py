"""Container images: find, fetch, list and remove them. What `hako run`, `hako pull` and `hako rmi` use.

An image is unpacked once, into ``paths.images_dir()/<digest>/``, and every container of it uses that root directory
read-only, as the lower layer of an overlay. See docs/images.md for what counts as an image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from hako.errors import ConfigError, HakoError, ImageError, NotFoundError, StateError
from hako.ociimage import index, reference, staging
from hako.ociimage.index import Image

__all__ = ["Image", "hold", "inspect", "list_images", "prune", "pull", "remove", "resolve"]

ALWAYS, MISSING, NEVER = "always", "missing", "never"


def resolve(
    ref: str,
    *,
    pull: str = MISSING,
    progress: Callable[[str], None] | None = None,
    insecure_registries: Sequence[str] = (),
) -> Image:
    """The image that ``ref`` means, fetched first when need be.

    ``pull`` is about registries: ``missing`` asks one only for what is not here, ``always`` asks each time whether
    there is a newer one, ``never`` does not ask. Images in files and directories are brought up to date always.
    ``progress`` gets a line for each step. Raises NotFoundError, ImageError, HostError or ConfigError.
    """
    if pull not in (ALWAYS, MISSING, NEVER):
        raise ConfigError(f"{pull!r} is no pull policy: use always, missing or never.")
    source = _parse_or_prefix(ref)
    if isinstance(source, Image):
        return source
    if source.kind == reference.ROOTFS:
        return _in_place(source)
    if source.kind == reference.REGISTRY and pull != ALWAYS:
        image = _local(source, ref)
        if image is not None:
            return image
        if pull == NEVER:
            raise NotFoundError(f"There is no image {source.key} here: get it with hako pull {ref}.")
    return _fetch(source, progress or _silent, tuple(insecure_registries))


def pull(
    ref: str,
    progress: Callable[[str], None] | None = None,
    *,
    insecure_registries: Sequence[str] = (),
) -> Image:
    """Fetch ``ref``, or find that what is here is up to date. Raises as resolve()."""
    return resolve(ref, pull=ALWAYS, progress=progress, insecure_registries=insecure_registries)


def list_images() -> list[Image]:
    """All images, those with names first. Damaged ones are left out."""
    names = index.read_names()
    images = []
    for digest in index.digests():
        try:
            images.append(index.load(digest, names))
        except ImageError:
            continue
    return sorted(images, key=lambda image: (not image.names, image.names, image.digest))


def inspect(ref: str) -> Image:
    """The image ``ref`` as it is here; never asks a registry. Raises NotFoundError."""
    return resolve(ref, pull=NEVER)


def remove(ref: str, *, force: bool = False, in_use: Callable[[str], bool] | None = None) -> list[str]:
    """Take the name ``ref`` away, and the image with it when that was the last name. Returns what was removed.

    A digest means all its names, which needs ``force`` when there are several. ``in_use`` tells whether a container
    needs the image of that digest; such an image, and one that a process holds, is not removed (StateError).
    Raises NotFoundError.
    """
    digest, names = _to_remove(ref, force=force)
    with staging.index_lock():
        left = {key for key, name in index.read_names().items() if name.digest == digest} - names
        if left:
            index.drop_names(names)
            return sorted(names)
        _refuse_in_use(digest, ref, in_use)
        index.drop_names(names)
        doomed = index.delete(digest)
    staging.remove_tree(doomed)
    return [*sorted(names), digest]


def prune(in_use: Callable[[str], bool] | None = None) -> list[str]:
    """Remove the images that have no name and that nothing uses, and what killed makers left; return their digests."""
    removed = []
    with staging.index_lock():
        staging.clean()
        named = {name.digest for name in index.read_names().values()}
        doomed = []
        for digest in index.digests():
            if digest in named or _is_held(digest) or (in_use is not None and in_use(digest)):
                continue
            doomed.append(index.delete(digest))
            removed.append(digest)
    for path in doomed:
        staging.remove_tree(path)
    return removed


def hold(digest: str) -> int | None:
    """Keep the image ``digest`` from being removed until the returned fd is closed, or its last holder is dead.

    None for a root directory used in place. Raises NotFoundError when the image has just been removed.
    """
    if not digest.startswith("sha256:"):
        return None
    import fcntl

    with staging.index_lock():
        if not index.exists(digest):
            raise NotFoundError(f"The image {digest[:19]} has just been removed.")
        fd = os.open(index.image_dir(digest), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _is_held(digest: str) -> bool:
    import fcntl

    fd = os.open(index.image_dir(digest), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _refuse_in_use(digest: str, ref: str, in_use: Callable[[str], bool] | None) -> None:
    if _is_held(digest) or (in_use is not None and in_use(digest)):
        raise StateError(f"The image {ref} is used by a container: remove the container first.")


def _silent(_: str) -> None:
    pass


def _parse_or_prefix(ref: str) -> reference.Source | Image:
    """What ``ref`` means; an image when it is no name here but the digest of one, whole or its start."""
    prefix = reference.digest_prefix(ref)
    if prefix is None:
        return reference.parse(ref)
    names = index.read_names()
    if ":" not in ref and (source := reference.parse_name(ref)).key in names:
        return source
    found = [digest for digest in index.digests() if digest[7:].startswith(prefix)]
    if len(found) > 1:
        raise ImageError(f"{ref} is the start of {len(found)} digests: write more of it.")
    if found:
        return index.load(found[0], names)
    if ref.startswith("sha256:") or len(prefix) == 64:
        raise NotFoundError(f"There is no image {ref} here.")
    return reference.parse_name(ref)


def _local(source: reference.Source, ref: str) -> Image | None:
    names = index.read_names()
    name = names.get(source.key)
    if name is None and source.selector.startswith("sha256:"):
        # The same manifest may have come under a tag.
        same = source.key.partition("@")[0]
        found = [key for key, entry in names.items() if entry.version == source.selector and key.startswith(same)]
        name = names[found[0]] if found else None
    try:
        return index.load(name.digest, names) if name is not None else None
    except ImageError as error:
        raise ImageError(f"{error} (asked for as {ref})") from error


def _in_place(source: reference.Source) -> Image:
    """A root directory is used where it is; containers get an overlay, so it is not written to."""
    from hako import arch

    return Image(f"rootfs:{source.location}", (), source.location, {}, 0, "", arch.current().oci)


def _fetch(source: reference.Source, progress: Callable[[str], None], insecure: tuple[str, ...]) -> Image:
    from hako.ociimage import fetch, unpack

    begun = time.time()
    with staging.pull_lock(source.key):
        names = index.read_names()
        name = names.get(source.key)
        if name is not None and name.at >= begun and source.kind == reference.REGISTRY:
            return index.load(name.digest, names)  # another puller did it while this one waited
        with staging.staging() as where:
            version, layers = fetch.version(source, insecure, where)
            digest = _known(names, name, version)
            if digest is None:
                unpack.check_space(layers, source.key, fetched=False)
                fetch.copy(source, insecure, where, len(layers), progress)
                digest = unpack.install(where, source.key, progress)
            with staging.index_lock():
                if not index.exists(digest):
                    raise NotFoundError(f"The image {source.key} was removed while it was being fetched: try again.")
                index.set_name(source.key, digest, version)
    return index.load(digest)


def _known(names: dict[str, index.Name], mine: index.Name | None, version: str) -> str | None:
    """The digest of the image that is here already and has this ``version``."""
    if mine is not None and mine.version == version:
        return mine.digest
    if not version.startswith("sha256:"):
        return None
    return next((name.digest for name in names.values() if name.version == version), None)


def _to_remove(ref: str, *, force: bool) -> tuple[str, set[str]]:
    """The digest and the names that ``ref`` asks to be removed."""
    names = index.read_names()
    for key in _keys(ref):
        if key in names:
            return names[key].digest, {key}
    prefix = reference.digest_prefix(ref)
    found = [digest for digest in index.digests() if prefix and digest[7:].startswith(prefix)]
    if not found:
        raise NotFoundError(f"There is no image {ref} here.")
    if len(found) > 1:
        raise ImageError(f"{ref} is the start of {len(found)} digests: write more of it.")
    mine = {key for key, name in names.items() if name.digest == found[0]}
    if len(mine) > 1 and not force:
        raise StateError(f"The image {ref} has {len(mine)} names ({', '.join(sorted(mine))}): remove it with force.")
    return found[0], mine


def _keys(ref: str) -> list[str]:
    """The index keys that ``ref`` may mean; also for an archive or layout that is gone from its path."""
    try:
        return [reference.parse(ref).key]
    except HakoError:
        path = os.path.abspath(ref)
        return [ref, *(f"{kind}:{path}" for kind in reference.ON_DISK)]
