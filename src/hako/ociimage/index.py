"""Which images there are and what they are called.

The directory of an image holds ``rootfs/``, ``config.json`` (the OCI image configuration), ``manifest.json`` and
``record.json``. Names are kept apart, in ``index.json``, because many names can mean one image and a name can move.
"""

from __future__ import annotations

import os
import time

from hako import store
from hako.errors import HostError, ImageError
from hako.named import NamedTuple
from hako.ociimage import imageconfig, staging

_RECORD = "record.json"


class Image(NamedTuple):
    """One usable image. Its ``rootfs`` is shared by all containers of it and must not be written to."""

    digest: str  #: ``sha256:…`` of the configuration, or ``rootfs:PATH`` for a root directory used in place
    names: tuple[str, ...]  #: ``busybox:latest``, …
    rootfs: str  #: absolute path of the root directory
    config: dict[str, object]  #: checked: Env, Cmd, Entrypoint, WorkingDir, User, ExposedPorts, Volumes, StopSignal…
    size: int  #: bytes on disk
    created: str  #: RFC 3339, as the image says, or empty
    architecture: str  #: OCI name, for example ``amd64``


class Name(NamedTuple):
    """One entry of the index."""

    digest: str
    version: str  #: what the source was when it was fetched: manifest digest, file identity or package version
    at: float  #: when it was last found to be up to date, seconds since the epoch


def image_dir(digest: str) -> str:
    """The directory of the image ``digest``."""
    return os.path.join(staging.images_dir(), digest.removeprefix("sha256:"))


def read_names() -> dict[str, Name]:
    """All names with the images they mean; names of images that are gone are left out."""
    document = store.read_json(_names_file()) or {}
    found = {}
    names = document.get("names")
    for key, entry in names.items() if isinstance(names, dict) else ():
        if not isinstance(entry, dict):
            continue
        digest, version, at = entry.get("digest"), entry.get("version"), entry.get("at")
        if isinstance(digest, str) and isinstance(version, str) and isinstance(at, (int, float)) and exists(digest):
            found[key] = Name(digest, version, at)
    return found


def set_name(key: str, digest: str, version: str) -> None:
    """Make ``key`` mean the image ``digest``. The caller holds the index lock."""
    _write_names({**read_names(), key: Name(digest, version, time.time())})


def drop_names(keys: set[str]) -> None:
    """Forget ``keys``. The caller holds the index lock."""
    _write_names({key: name for key, name in read_names().items() if key not in keys})


def _write_names(names: dict[str, Name]) -> None:
    store.write_json(_names_file(), {"version": 1, "names": {key: name._asdict() for key, name in names.items()}})


def _names_file() -> str:
    return os.path.join(staging.images_dir(), "index.json")


def exists(digest: str) -> bool:
    """Whether the image ``digest`` is here, whole."""
    return os.path.isfile(os.path.join(image_dir(digest), _RECORD))


def digests() -> list[str]:
    """All images, named or not."""
    with os.scandir(staging.images_dir()) as entries:
        return sorted(
            f"sha256:{entry.name}" for entry in entries if len(entry.name) == 64 and exists(f"sha256:{entry.name}")
        )


def load(digest: str, names: dict[str, Name] | None = None) -> Image:
    """The image ``digest``, with the names it has in ``names`` (read when not given).

    Raises ImageError when its files were damaged after it was made.
    """
    known = read_names() if names is None else names
    where = image_dir(digest)
    record = store.read_json(os.path.join(where, _RECORD)) or {}
    size = record.get("size")
    what = f"The configuration of the image {digest[:19]}"
    document = imageconfig.load(imageconfig.read_file(os.path.join(where, "config.json"), what), what)
    config = imageconfig.parse_config(document, f"the image {digest[:19]}")
    rootfs = os.path.join(where, "rootfs")
    if not os.path.isdir(rootfs):
        raise ImageError(f"The image {digest[:19]} is damaged: {rootfs} is missing; remove it with hako rmi.")
    return Image(
        digest,
        tuple(sorted(key for key, name in known.items() if name.digest == digest)),
        rootfs,
        config.config,
        size if isinstance(size, int) else 0,
        config.created,
        config.architecture,
    )


def publish(finished: str, digest: str) -> None:
    """Make the directory ``finished`` (rootfs, config.json, manifest.json) the image ``digest``, in one step.

    An image of the same digest that is there already wins: it may be in use. The caller holds no lock.
    """
    from hako import proc  # listing and finding images do without

    used = proc.run(["du", "-sx", "--block-size=1", finished]).stdout.split()[0]
    store.write_json(os.path.join(finished, _RECORD), {"digest": digest, "size": int(used), "at": time.time()})
    # After a power cut a directory may be in place whose files were never written: flush before, not after.
    proc.run(["sync", "-f", finished])
    with staging.index_lock():
        if exists(digest):
            return
        target = image_dir(digest)
        staging.remove_tree(target)
        try:
            os.rename(finished, target)
        except OSError as error:
            raise HostError(f"Cannot store the image in {target}: {error.strerror}.") from error


def delete(digest: str) -> str:
    """Take the image away and return the directory that is left to be removed. The caller holds the index lock."""
    doomed = os.path.join(staging.images_dir(), f".del-{os.getpid()}-{digest[7:19]}-{time.monotonic_ns()}")
    try:
        os.rename(image_dir(digest), doomed)
    except OSError as error:
        raise HostError(f"Cannot remove the image {digest[:19]}: {error.strerror}.") from error
    return doomed
