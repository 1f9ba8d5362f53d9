"""An image as a file that containerd imports: an OCI layout of one layer.

Source: opencontainers/image-spec, image-layout.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence

from bench import commands

_TYPE = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(path: str, root: str, tag: str, env: Sequence[str], command: Sequence[str]) -> None:
    """Write the image of the directory ``root`` to the tar file ``path``; whatever needs space is beside that."""
    directory = f"{path}.d"
    blobs = os.path.join(directory, "blobs", "sha256")
    os.makedirs(blobs)
    commands.run(["tar", "-C", root, "-cf", os.path.join(blobs, "layer"), "."])
    layer = _place(blobs, "layer")
    configuration = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()), "os": "linux",
        "config": {"Env": list(env), "Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": {"mediaType": f"{_TYPE}.config.v1+json", **_add(blobs, configuration)},
        "layers": [{"mediaType": f"{_TYPE}.layer.v1.tar", **layer}],
    }  # fmt: skip
    named = {"mediaType": manifest["mediaType"], **_add(blobs, manifest)}
    named["annotations"] = {"org.opencontainers.image.ref.name": tag}
    _write(os.path.join(directory, "index.json"), {"schemaVersion": 2, "manifests": [named]})
    _write(os.path.join(directory, "oci-layout"), {"imageLayoutVersion": "1.0.0"})
    commands.run(["tar", "-C", directory, "-cf", path, "."])


def _add(blobs: str, content: object) -> dict[str, object]:
    _write(os.path.join(blobs, "new"), content)
    return _place(blobs, "new")


def _place(blobs: str, name: str) -> dict[str, object]:
    """Give a file the name that its content has; what others say of it."""
    path = os.path.join(blobs, name)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = os.path.getsize(path)
    os.rename(path, os.path.join(blobs, digest))
    return {"digest": f"sha256:{digest}", "size": size}


def _write(path: str, content: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
