"""SHA-256 of short texts: names that follow from others.

hashlib loads OpenSSL, which takes as long as hashing half a megabyte without it; it is for what is larger.
"""

from __future__ import annotations

try:
    from _sha256 import sha256  # type: ignore[import-not-found]  # before CPython 3.12
except ImportError:
    from hashlib import sha256


def of(data: bytes) -> str:
    """The digest of ``data``, 64 hexadecimal digits."""
    return str(sha256(data).hexdigest())
