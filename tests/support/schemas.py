"""Kubernetes' own schemas, of several versions, for the objects of manifests."""

from __future__ import annotations

from typing import Any

import kubernetes_validate

#: The oldest that the manifests are meant for, one in the middle, and the newest that the package has.
VERSIONS = ["1.25", "1.31", kubernetes_validate.latest_version().rpartition(".")[0]]


def complaints(manifest: dict[str, Any], version: str) -> list[str]:
    """What is wrong with one object, unknown fields included, in the eyes of Kubernetes ``version``."""
    try:
        checked = kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [str(error.message)]
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']} {'.'.join(map(str, error.path))}: {error.message}"]
    assert checked == version
    return []
