"""What skopeo and umoci say becomes one sentence with the image, the place and what to do."""

from __future__ import annotations

import pytest

from hako.errors import HakoError, HostError, ImageError, NotFoundError
from hako.ociimage import tools
from hako.proc import CommandFailedError


def _fatal(message: str) -> str:
    escaped = message.replace("\\", "\\\\").replace('"', '\\"')
    return f'Getting image source signatures\ntime="2026-01-01T00:00:00Z" level=fatal msg="{escaped}"'


@pytest.mark.parametrize(
    ("output", "kind", "parts"),
    [
        (
            _fatal("initializing source: reading manifest v9 in r:1/a: manifest unknown: manifest unknown"),
            NotFoundError,
            ["There is no image a:v9 in r:1."],
        ),
        (
            _fatal('initializing source oci:lay:zz: no descriptor found for reference "zz"'),
            NotFoundError,
            ["no image a:v9"],
        ),
        (
            _fatal("reading manifest latest in docker.io/library/x: requested access to the resource is denied"),
            ImageError,
            ["does not give out a:v9", "skopeo login r:1"],
        ),
        (
            _fatal("unable to retrieve auth token: invalid username/password: unauthorized"),
            ImageError,
            ["skopeo login"],
        ),
        (
            _fatal('Get "https://r:1/v2/": http: server gave HTTP response to HTTPS client'),
            ImageError,
            ["plain HTTP", "image.insecure_registries"],
        ),
        (
            _fatal('pinging: Get "http://r:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'),
            ImageError,
            ["Cannot reach r:1", "connection refused."],
        ),
        (_fatal("dial tcp: lookup r on 1.1.1.1:53: no such host"), ImageError, ["Cannot reach r:1", "no such host."]),
        (
            _fatal("x509: certificate signed by unknown authority"),
            ImageError,
            ["certificate of r:1", "certificate signed by unknown authority."],
        ),
        (_fatal("write /x: no space left on device"), HostError, ["No disk space left", "a:v9"]),
        (
            _fatal("writing blob: happened during read: Digest did not match, expected sha256:1, got sha256:2"),
            ImageError,
            ["a:v9 is damaged", "Digest did not match"],
        ),
        (
            "   \u2022 unpacking rootfs ...\n   \u2a2f create rootfs: gzip: invalid header",
            ImageError,
            ["a:v9 is damaged"],
        ),
        (_fatal("expected 1 item, got 2"), ImageError, ["more than one image"]),
        (_fatal("one: two: three: four"), ImageError, ["Cannot use the image a:v9 from r:1: three: four."]),
        ("", ImageError, ["it said nothing"]),
    ],
)
def test_sentences(output: str, kind: type[HakoError], parts: list[str]) -> None:
    error = tools.explain(CommandFailedError(["skopeo"], 1, output), "a:v9", "r:1")
    assert type(error) is kind
    for part in parts:
        assert part in str(error)
    assert "\n" not in str(error)


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match=r"hako-no-such is not installed.*apt-get install some-package"):
        tools.run("hako-no-such", [], package="some-package")
