"""JSON that came with an image is a stranger's: it is used when every field is as it must be, or refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.errors import ImageError
from hako.ociimage import imageconfig

_CONFIG = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}}


@pytest.mark.parametrize(
    ("inner", "field"),
    [
        ({"Env": "A=1"}, "Env"),
        ({"Env": ["A"]}, "Env"),
        ({"Env": ["=A"]}, "Env"),
        ({"Env": ["A=\0"]}, "Env"),
        ({"Env": ["A=\ud800"]}, "Env"),
        ({"Env": [1]}, "Env"),
        ({"Cmd": "sh"}, "Cmd"),
        ({"Cmd": [["sh"]]}, "Cmd"),
        ({"Entrypoint": {"a": 1}}, "Entrypoint"),
        ({"WorkingDir": ["/"]}, "WorkingDir"),
        ({"User": 0}, "User"),
        ({"StopSignal": 15}, "StopSignal"),
        ({"ExposedPorts": ["80/tcp"]}, "ExposedPorts"),
        ({"Volumes": "/data"}, "Volumes"),
        ({"Labels": {"a": 1}}, "Labels"),
    ],
)
def test_a_wrong_field_is_named(inner: dict[str, Any], field: str) -> None:
    with pytest.raises(ImageError, match=rf"configuration of box is damaged: config\.{field} is not"):
        imageconfig.parse_config({**_CONFIG, "config": inner}, "box")


@pytest.mark.parametrize("document", [{"architecture": 1}, {"os": ["linux"]}, {"config": [1]}, {"created": "x" * 65}])
def test_a_wrong_outer_field_is_named(document: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="configuration of box is damaged"):
        imageconfig.parse_config({**_CONFIG, **document}, "box")


def test_nulls_and_unknown_fields_are_left_out() -> None:
    inner = {"Cmd": ["sh"], "Env": None, "Entrypoint": None, "Healthcheck": {"Test": 7}, "Labels": {"a": "b"}}
    found = imageconfig.parse_config({**_CONFIG, "config": inner}, "box")
    assert found.config == {"Cmd": ["sh"], "Labels": {"a": "b"}}
    assert imageconfig.parse_config({"config": None}, "box").config == {}


@pytest.mark.parametrize(
    ("architecture", "system", "named"),
    [("arm64", "linux", "linux/arm64"), ("amd64", "windows", "windows/amd64"), ("s390x", "", "linux/s390x")],
)
def test_another_platform_names_both(architecture: str, system: str, named: str) -> None:
    config = imageconfig.ImageConfig(architecture, system, "", {})
    with pytest.raises(ImageError, match=f"box is for {named}, but this host runs linux/amd64"):
        imageconfig.check_platform(config, "box")


@pytest.mark.parametrize(("architecture", "system"), [("amd64", "linux"), ("", ""), ("amd64", "")])
def test_this_platform(architecture: str, system: str) -> None:
    imageconfig.check_platform(imageconfig.ImageConfig(architecture, system, "", {}), "box")


def _entry(system: str, architecture: str, digest: str) -> dict[str, Any]:
    return {"digest": digest, "platform": {"os": system, "architecture": architecture}}


def test_choose_platform() -> None:
    entries = [_entry("linux", "arm64", "a"), _entry("unknown", "unknown", "u"), _entry("linux", "amd64", "b"), 5]
    assert imageconfig.choose_platform({"manifests": entries}, "box") == "b"
    assert imageconfig.choose_platform({"layers": []}, "box") is None
    with pytest.raises(ImageError, match="box is for linux/arm64, but this host runs linux/amd64"):
        imageconfig.choose_platform({"manifests": entries[:2]}, "box")
    with pytest.raises(ImageError, match="is for no platform"):
        imageconfig.choose_platform({"manifests": []}, "box")


_LAYER: dict[str, Any] = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:1", "size": 5}


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ({}, "no configuration or no layers"),
        ({"config": {"digest": "d"}, "layers": {}}, "no configuration or no layers"),
        ({"config": {}, "layers": []}, "its configuration has no digest"),
        ({"config": {"digest": "d"}, "layers": [_LAYER, 7]}, "layer 1 has no"),
        ({"config": {"digest": "d"}, "layers": [{**_LAYER, "size": -1}]}, "layer 0 has no"),
        ({"config": {"digest": "d"}, "layers": [{**_LAYER, "size": True}]}, "layer 0 has no"),
    ],
)
def test_a_wrong_manifest(manifest: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        imageconfig.parse_manifest(manifest, "box")


def test_a_manifest() -> None:
    found = imageconfig.parse_manifest({"config": {"digest": "d"}, "layers": [_LAYER]}, "box")
    assert found == imageconfig.Manifest("d", (imageconfig.Layer(_LAYER["mediaType"], "sha256:1", 5),))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b"\xff", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b" " * (imageconfig.MAX_JSON + 1), "larger than 4 MiB"),
    ],
)
def test_what_is_no_json(data: bytes, sentence: str) -> None:
    with pytest.raises(ImageError, match=f"It is (damaged: )?{sentence}"):
        imageconfig.load(data, "It")


@pytest.mark.parametrize("digest", ["", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "a" * 64, "a" * 64])
def test_a_digest_that_is_no_file_name(digest: str) -> None:
    with pytest.raises(ImageError, match="is not a sha256 digest"):
        imageconfig.blob_path("/layout", digest, "It")


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["Env", "Cmd", "Entrypoint", "WorkingDir", "User", "StopSignal", "ExposedPorts", "Volumes", "Labels"]


@given(st.dictionaries(st.sampled_from(_FIELDS), _ANY))
def test_any_configuration_is_used_or_refused(inner: dict[str, object]) -> None:
    refused = False
    try:
        found = imageconfig.parse_config({"config": inner}, "box").config
    except ImageError:
        refused = True
    if not refused:
        json.dumps(found).encode()
        assert all(isinstance(word, str) for word in found.get("Cmd", []))  # type: ignore[attr-defined]


@given(st.dictionaries(st.sampled_from(["config", "layers", "manifests"]), _ANY))
def test_any_manifest_is_used_or_refused(document: dict[str, object]) -> None:
    for parse in (imageconfig.parse_manifest, imageconfig.choose_platform):
        problem = None
        try:
            parse(document, "box")
        except ImageError as error:
            problem = error
        assert problem is None or "box" in str(problem)
