"""Names of sandboxes, containers and processes: how they are made and which ones are accepted."""

from __future__ import annotations

import os

from hako.errors import ConfigError

MAX_ID = 128
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_REST = _FIRST | frozenset("_.-")


def new_id() -> str:
    """A fresh id: 16 hexadecimal digits."""
    return os.urandom(8).hex()


def is_valid(value: object) -> bool:
    """Whether ``value`` can be an id: safe as a file name, at most 128 characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID and value[0] in _FIRST and _REST.issuperset(value)


def check(value: object, what: str) -> str:
    """Return ``value`` if it is a valid id; raise ConfigError naming ``what`` otherwise."""
    if not is_valid(value):
        raise ConfigError(
            f"{what} {value!r} is not valid: use 1 to {MAX_ID} letters, digits, '_', '.' or '-', "
            "starting with a letter or digit."
        )
    assert isinstance(value, str)
    return value
