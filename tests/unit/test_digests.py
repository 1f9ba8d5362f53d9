"""Names that follow from others."""

from __future__ import annotations

import hashlib

from hako import digests


def test_it_is_sha_256() -> None:
    for data in (b"", b"abc", bytes(1000)):
        assert digests.of(data) == hashlib.sha256(data).hexdigest()
