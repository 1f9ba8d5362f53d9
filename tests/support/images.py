"""Makes container images of any content for tests, and a registry to serve them."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Entry(NamedTuple):
    """One member of a layer."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    link: str = ""
    xattrs: dict[str, str] = {}


def layer(*entries: Entry) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type, member.mode, member.linkname = entry.kind, entry.mode, entry.link
            member.uid = member.gid = entry.uid
            member.size = len(entry.data)
            member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in entry.xattrs.items()}
            tar.addfile(member, io.BytesIO(entry.data))
    return buffer.getvalue()


def write_layout(path: str, images: Mapping[str, tuple[Sequence[bytes], dict[str, Any]]]) -> None:
    """An OCI layout with one image for each tag: its layers and its whole configuration."""
    os.makedirs(os.path.join(path, "blobs", "sha256"))
    entries = [_add_image(path, tag, layers, config) for tag, (layers, config) in images.items()]
    _write(os.path.join(path, "oci-layout"), {"imageLayoutVersion": "1.0.0"})
    _write(os.path.join(path, "index.json"), {"schemaVersion": 2, "manifests": entries})


def write_index(path: str, tag: str, images: Mapping[str, tuple[Sequence[bytes], dict[str, Any]]]) -> None:
    """An OCI layout whose one tag is an index of images, one for each architecture."""
    os.makedirs(os.path.join(path, "blobs", "sha256"))
    entries = []
    for architecture, (layers, config) in images.items():
        entry = _add_image(path, "", layers, config)
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    inner = _add(path, json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}).encode())
    named = {"mediaType": _INDEX, **inner, "annotations": {"org.opencontainers.image.ref.name": tag}}
    _write(os.path.join(path, "oci-layout"), {"imageLayoutVersion": "1.0.0"})
    _write(os.path.join(path, "index.json"), {"schemaVersion": 2, "manifests": [named]})


def config(command: str = "sh", *, architecture: str = "amd64", **fields: Any) -> dict[str, Any]:
    """An image configuration whose root is filled in by write_layout()."""
    return {"architecture": architecture, "os": "linux", "config": {"Cmd": [command], **fields}}


def _add_image(path: str, tag: str, layers: Sequence[bytes], configuration: dict[str, Any]) -> dict[str, Any]:
    plain = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    whole = {**configuration, "rootfs": {"type": "layers", "diff_ids": plain}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, **_add(path, json.dumps(whole).encode())},
        "layers": [{"mediaType": _LAYER, **_add(path, gzip.compress(data, mtime=0))} for data in layers],
    }
    entry = {"mediaType": _MANIFEST, **_add(path, json.dumps(manifest).encode())}
    return {**entry, "annotations": {"org.opencontainers.image.ref.name": tag}} if tag else entry


def _add(path: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    with open(os.path.join(path, "blobs", "sha256", digest), "wb") as file:
        file.write(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _write(path: str, value: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


class Registry(NamedTuple):
    """A running docker-registry."""

    address: str  #: 127.0.0.1:PORT
    storage: str  #: the directory with its content

    def push(self, source: str, name: str) -> str:
        """Copy ``source`` (for skopeo, such as ``oci:DIR:TAG``) here as ``name``; return how to call it."""
        target = f"docker://{self.address}/{name}"
        subprocess.run(
            ["skopeo", "copy", "--all", "-q", "--dest-tls-verify=false", source, target],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        return f"{self.address}/{name}"


@contextlib.contextmanager
def registry(directory: str) -> Iterator[Registry]:
    """docker-registry with its content in ``directory``, on a port of its own choice, until the end of the block."""
    storage = os.path.join(directory, "registry")
    settings = os.path.join(directory, "registry.yml")
    _write(  # YAML takes JSON
        settings,
        {
            "version": 0.1,
            "log": {"level": "info", "formatter": "text"},
            "storage": {"filesystem": {"rootdirectory": storage}},
            "http": {"addr": "127.0.0.1:0"},
        },
    )
    child = subprocess.Popen(
        ["docker-registry", "serve", settings], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stderr is not None
        said = ""
        for line in child.stderr:
            said += line
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                break
        else:
            raise RuntimeError(f"docker-registry did not start: {said}")
        # Nobody reads on: what it writes must not fill the pipe.
        drain = subprocess.Popen(["cat"], stdin=child.stderr, stdout=subprocess.DEVNULL)
        child.stderr.close()
        try:
            yield Registry(found[1], storage)
        finally:
            child.terminate()
            child.wait(10)
            drain.wait(10)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
