"""Writes an OCI layout with one image made of one tar file: how hako makes images itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

from hako.errors import HostError

_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CHUNK = 1 << 20


def write(layout: str, tar: str, *, config: dict[str, object], architecture: str, created: str, tag: str) -> None:
    """Make the directory ``layout`` an OCI layout whose image ``tag`` has the uncompressed ``tar`` as its root.

    ``config`` holds Env, Cmd and so on; ``created`` is RFC 3339. The same input gives the same digests.
    Raises HostError when it cannot be written.
    """
    blobs = os.path.join(layout, "blobs", "sha256")
    try:
        os.makedirs(blobs)
        layer = _add_file(blobs, tar)
        image = {
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, **_add_json(blobs, image)},
            "layers": [{"mediaType": _LAYER, **layer}],
        }
        named = {
            "mediaType": _MANIFEST,
            **_add_json(blobs, manifest),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        _write(os.path.join(layout, "index.json"), _encode({"schemaVersion": 2, "manifests": [named]}))
        _write(os.path.join(layout, "oci-layout"), _encode({"imageLayoutVersion": "1.0.0"}))
    except OSError as error:
        raise HostError(f"Cannot write an image to {layout}: {error.strerror}.") from error


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _add_json(blobs: str, value: object) -> dict[str, object]:
    data = _encode(value)
    digest = hashlib.sha256(data).hexdigest()
    _write(os.path.join(blobs, digest), data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _add_file(blobs: str, path: str) -> dict[str, object]:
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
        size = file.tell()
    shutil.copyfile(path, os.path.join(blobs, hasher.hexdigest()))
    return {"digest": f"sha256:{hasher.hexdigest()}", "size": size}
