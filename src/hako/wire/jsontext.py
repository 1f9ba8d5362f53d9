"""JSON text to values and back, by the interpreter's own C code alone. Sans-IO, shared by host and guest.

The package json wraps the same code, but brings re, enum and functools with it, which are half of what a guest would
import: a tenth of its boot. What is read and written is what json reads and writes, except that bytes are UTF-8.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPACE = " \t\n\r"
_CONSTANTS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class _Settings:
    """What the scanner asks for; these are json's."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _CONSTANTS.__getitem__


_scan = _json.make_scanner(_Settings)  # type: ignore[arg-type]  # it reads the attributes of any object


def loads(data: bytes) -> Any:
    """The value that the JSON text ``data`` stands for. Raises ValueError; RecursionError where it is too deep."""
    text = str(data, "utf-8").strip(_SPACE)
    try:
        value, end = _scan(text, 0)
    # StopIteration: no value begins where one must. For all else the scanner has the package json's exception; where
    # that is not loaded, CPython 3.11 forgets to raise any, and later versions try to import it.
    except (StopIteration, SystemError, ImportError) as error:
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("not JSON: there is more behind the first value")
    return value


def dumps(value: object) -> bytes:
    """``value`` as JSON text, without spaces, in ASCII. Raises TypeError for what has no JSON form."""
    # One for each call: it keeps what it is in, to notice circles.
    encode = _json.make_encoder(
        {}, _no_form, _json.encode_basestring_ascii, None, ":", ",", sort_keys=False, skipkeys=False, allow_nan=True
    )
    return "".join(encode(value, 0)).encode("ascii")


def _no_form(value: object) -> object:
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")
