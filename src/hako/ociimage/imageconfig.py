"""Reads the JSON that an image brings. It was made by a stranger: sizes are capped and every used field is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from hako import arch
from hako.errors import ImageError
from hako.named import NamedTuple

MAX_JSON = 4 << 20


class Layer(NamedTuple):
    """One layer as the manifest names it."""

    media_type: str
    digest: str
    size: int  #: bytes as stored, usually compressed


class Manifest(NamedTuple):
    """What hako uses of an image manifest."""

    config: str  #: digest of the image's configuration
    layers: tuple[Layer, ...]


class ImageConfig(NamedTuple):
    """What hako uses of an image's configuration."""

    architecture: str
    os: str
    created: str
    config: dict[str, object]  #: Env, Cmd, Entrypoint, …: checked


def load(data: bytes, what: str) -> dict[str, object]:
    """The JSON object in ``data``. Raises ImageError naming ``what``."""
    if len(data) > MAX_JSON:
        raise ImageError(f"{what} is larger than {MAX_JSON >> 20} MiB, so it is not used.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ImageError(f"{what} is damaged: it is not JSON.") from None
    if not isinstance(value, dict):
        raise ImageError(f"{what} is damaged: it is not a JSON object.")
    return value


def read_file(path: str, what: str) -> bytes:
    """The content of ``path``, up to one byte more than load() accepts. Raises ImageError."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_JSON + 1)
    except OSError as error:
        raise ImageError(f"{what} cannot be read: {error.strerror}.") from error


def blob_path(layout: str, digest: str, what: str) -> str:
    """The file of a blob in an OCI layout. Raises ImageError when ``digest`` is no sha256 digest."""
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or len(value) != 64 or not frozenset("0123456789abcdef").issuperset(value):
        raise ImageError(f"{what} is damaged: {digest[:80]!r} is not a sha256 digest.")
    return os.path.join(layout, "blobs", algorithm, value)


def parse_manifest(document: dict[str, object], image: str) -> Manifest:
    """The config and layers of an OCI or docker (schema 2) manifest. Raises ImageError."""
    config = document.get("config")
    layers = document.get("layers")
    if not isinstance(config, dict) or not isinstance(layers, list):
        raise ImageError(f"The manifest of {image} is damaged: it names no configuration or no layers.")
    found: list[Layer] = []
    for layer in layers:
        kind, digest, size = (layer.get(key) for key in ("mediaType", "digest", "size")) if _is(layer) else (0, 0, 0)
        if not isinstance(kind, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
            raise ImageError(f"The manifest of {image} is damaged: layer {len(found)} has no digest, size or type.")
        found.append(Layer(kind, digest, size))
    if not isinstance(config.get("digest"), str):
        raise ImageError(f"The manifest of {image} is damaged: its configuration has no digest.")
    return Manifest(config["digest"], tuple(found))


def choose_platform(document: dict[str, object], image: str) -> str | None:
    """The digest of this host's manifest in an image index, or None when ``document`` is no index.

    Raises ImageError, naming what there is, when nothing in the index is for this host.
    """
    entries = document.get("manifests")
    if not isinstance(entries, list):
        return None
    offered = []
    for entry in entries:
        platform = entry.get("platform") if _is(entry) else None
        if not isinstance(platform, dict) or not isinstance(entry.get("digest"), str):
            continue
        name = f"{platform.get('os')}/{platform.get('architecture')}"
        if name == _host():
            return str(entry["digest"])
        # Build attestations are listed as images for "unknown/unknown".
        if "unknown" not in name and name not in offered:
            offered.append(name)
    raise ImageError(f"The image {image} is for {', '.join(offered) or 'no platform'}, but this host runs {_host()}.")


def parse_config(document: dict[str, object], image: str) -> ImageConfig:
    """Check an OCI image configuration. Raises ImageError naming the field that is wrong."""
    values = {}
    for key in ("architecture", "os", "created"):
        value = document.get(key) or ""
        if not isinstance(value, str) or len(value) > 64:
            raise ImageError(f"The configuration of {image} is damaged: {key} is not a text.")
        values[key] = value
    inner = document.get("config") or {}
    if not isinstance(inner, dict):
        raise ImageError(f"The configuration of {image} is damaged: config is not an object.")
    return ImageConfig(values["architecture"], values["os"], values["created"], _check(inner, image))


def check_platform(config: ImageConfig, image: str) -> None:
    """Raise ImageError unless the image is for this host. What an image does not say is not held against it."""
    native = arch.current().oci
    if (config.architecture or native) != native or (config.os or "linux") != "linux":
        theirs = f"{config.os or 'linux'}/{config.architecture or native}"
        raise ImageError(f"The image {image} is for {theirs}, but this host runs {_host()}.")


def _host() -> str:
    return f"linux/{arch.current().oci}"


def _is(value: object) -> bool:
    return isinstance(value, dict)


def _is_text(value: object) -> bool:
    """Whether ``value`` can be an argument of a program: no NUL, and no half of a surrogate pair, as JSON allows."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


def _is_env(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(item) and item.find("=") > 0 for item in value)


def _is_set(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(key) for key in value)


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(key) and _is_text(item) for key, item in value.items())


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "Env": (_is_env, "a list of NAME=VALUE texts"),
    "Cmd": (_is_text_list, "a list of texts"),
    "Entrypoint": (_is_text_list, "a list of texts"),
    "WorkingDir": (_is_text, "a text"),
    "User": (_is_text, "a text"),
    "StopSignal": (_is_text, "a text"),
    "ExposedPorts": (_is_set, "an object"),
    "Volumes": (_is_set, "an object"),
    "Labels": (_is_labels, "an object of texts"),
}


def _check(inner: dict[str, object], image: str) -> dict[str, object]:
    """The known fields of ``inner``, checked; null and absent are the same."""
    known = {}
    for key, (is_good, wanted) in _FIELDS.items():
        value = inner.get(key)
        if value is None:
            continue
        if not is_good(value):
            raise ImageError(f"The configuration of {image} is damaged: config.{key} is not {wanted}.")
        known[key] = value
    return known
