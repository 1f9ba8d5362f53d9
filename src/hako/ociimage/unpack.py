"""Turns an OCI layout in a staging directory into a finished image: checks, unpacks with umoci, publishes."""

from __future__ import annotations

import os
from collections.abc import Callable

from hako import proc, store
from hako.errors import ImageError
from hako.ociimage import imageconfig, index, staging, tools

Progress = Callable[[str], None]

#: Name of the layout inside the staging directory and of the one image in it.
LAYOUT = "layout"
TAG = "image"

# Layers are gzipped tar files; text and programs shrink to between a half and a quarter.
_GROWTH = 4


def check_space(layers: tuple[imageconfig.Layer, ...], image: str, *, fetched: bool) -> None:
    """Raise HostError unless there is room to unpack ``layers``, and to fetch them first when not ``fetched``."""
    stored = sum(layer.size for layer in layers)
    grown = sum(layer.size * (1 if layer.media_type.endswith(".tar") else _GROWTH) for layer in layers)
    store.check_free_space(staging.images_dir(), grown + (0 if fetched else stored), f"the image {image}")


def install(where: str, image: str, progress: Progress) -> str:
    """Unpack the layout in the staging directory ``where`` and publish it; return the image's digest.

    ``image`` is its name in errors. Raises ImageError for damaged content or another platform, HostError without
    disk space.
    """
    manifest_data, manifest = _read_manifest(where, image)
    config_data = _read_blob(where, manifest.config, f"The configuration of {image}")
    config = imageconfig.parse_config(imageconfig.load(config_data, f"The configuration of {image}"), image)
    imageconfig.check_platform(config, image)
    if index.exists(manifest.config):
        return manifest.config
    check_space(manifest.layers, image, fetched=True)
    if any(layer.media_type.endswith("+zstd") for layer in manifest.layers):
        _without_zstd(where, image)
    progress(f"Unpacking {len(manifest.layers)} layer{'s' if len(manifest.layers) != 1 else ''}")
    finished = os.path.join(where, "image")
    os.mkdir(finished, 0o700)
    try:
        tools.run("umoci", ["raw", "unpack", "--image", f"{LAYOUT}:{TAG}", "image/rootfs"], cwd=where, package="umoci")
    except proc.CommandFailedError as error:
        raise tools.explain(error, image, "the image store") from error
    rootfs = os.path.join(finished, "rootfs")
    if not os.path.isdir(rootfs) or os.path.islink(rootfs):
        raise ImageError(f"The image {image} is damaged: it has no root directory.")
    # The compressed layers have served; on disk stays one copy of the content.
    staging.remove_tree(os.path.join(where, LAYOUT))
    store.write_atomic(os.path.join(finished, "config.json"), config_data)
    store.write_atomic(os.path.join(finished, "manifest.json"), manifest_data)
    index.publish(finished, manifest.config)
    return manifest.config


def _read_manifest(where: str, image: str) -> tuple[bytes, imageconfig.Manifest]:
    what = f"The index of {image}"
    top = imageconfig.load(imageconfig.read_file(os.path.join(where, LAYOUT, "index.json"), what), what)
    entries = top.get("manifests")
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise ImageError(f"{what} is damaged: it does not name one manifest.")
    data = _read_blob(where, str(entries[0].get("digest")), f"The manifest of {image}")
    document = imageconfig.load(data, f"The manifest of {image}")
    return data, imageconfig.parse_manifest(document, image)


def _read_blob(where: str, digest: str, what: str) -> bytes:
    return imageconfig.read_file(imageconfig.blob_path(os.path.join(where, LAYOUT), digest, what), what)


def _without_zstd(where: str, image: str) -> None:
    """Rewrite the layout with plain layers, because umoci knows gzip only. The configuration stays the same."""
    try:
        for args in (
            ["copy", "-q", "--dest-decompress", f"oci:{LAYOUT}:{TAG}", "dir:plain"],
            ["copy", "-q", "--dest-oci-accept-uncompressed-layers", "dir:plain", f"oci:{LAYOUT}-plain:{TAG}"],
        ):
            tools.run("skopeo", ["--tmpdir", where, *args], cwd=where, package="skopeo")
    except proc.CommandFailedError as error:
        raise tools.explain(error, image, "the image store") from error
    staging.remove_tree(os.path.join(where, "plain"))
    staging.remove_tree(os.path.join(where, LAYOUT))
    os.rename(os.path.join(where, f"{LAYOUT}-plain"), os.path.join(where, LAYOUT))
