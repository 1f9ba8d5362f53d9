"""Which registries are spoken to without a checked certificate."""

from __future__ import annotations

import pytest

from hako.ociimage import fetch, reference


@pytest.mark.parametrize(
    ("name", "insecure"),
    [
        ("localhost/a", True),
        ("localhost:5000/a", True),
        ("127.0.0.1:5000/a", True),
        ("127.1.2.3/a", True),
        ("[::1]:5000/a", True),
        ("127.evil.example/a", False),
        ("localhost.example/a", False),
        ("r.example:5000/a", True),
        ("r.example:5001/a", False),
        ("plain.example/a", True),
        ("plain.example:80/a", True),
        ("busybox", False),
    ],
)
def test_insecure_registries(name: str, insecure: bool) -> None:
    flags = fetch._tls("--src-tls-verify", reference.parse_name(name), ("r.example:5000", "plain.example"))
    assert flags == (["--src-tls-verify=false"] if insecure else [])
