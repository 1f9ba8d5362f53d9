"""JSON text: the same as the standard library's, with and without the package json at hand."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.wire import jsontext
from support import source

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=30,
)
#: Text of which much is nearly JSON.
texts = st.lists(
    st.sampled_from([*'{}[]:,"\\ \t\n\r', '"a"', "1", "-0", "1e5", "0.5", "true", "null", "NaN", "\\ud800", "\0", "é"])
).map("".join)


@given(values)
def test_values_come_back_as_they_went(value: Any) -> None:
    data = jsontext.dumps(value)
    assert data == json.dumps(value, separators=(",", ":")).encode()
    assert jsontext.loads(data) == value


@given(texts | st.text() | values.map(json.dumps))
def test_any_text_is_read_as_the_standard_library_reads_it(text: str) -> None:
    data = text.encode()
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            jsontext.loads(data)
    else:
        assert repr(jsontext.loads(data)) == repr(expected)


@given(st.binary())
def test_any_bytes_give_a_value_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        jsontext.loads(data)


_REFUSED = [b"", b" ", b"[", b"{}x", b'"\n"', b'{"a"}', b"\xff", b"\xef\xbb\xbf{}", b"\xed\xa0\x80", b"1" * 5000]


@pytest.mark.parametrize("data", _REFUSED)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        jsontext.loads(data)


def test_depth_is_limited() -> None:
    with pytest.raises(RecursionError):
        jsontext.loads(b"[" * 100_000)
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError):
        jsontext.dumps(value)


def test_numbers_that_json_does_not_have() -> None:
    assert jsontext.dumps([math.inf, -math.inf, math.nan]) == b"[Infinity,-Infinity,NaN]"
    assert jsontext.loads(b"[Infinity,-Infinity]") == [math.inf, -math.inf]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {(1, 2): 3}])
def test_what_has_no_json_form(value: object) -> None:
    with pytest.raises(TypeError):
        jsontext.dumps(value)


def test_errors_are_the_same_where_there_is_no_package_json() -> None:
    program = f"""
import sys
sys.path.append({source.SOURCE!r})
sys.modules["json"] = None  # as if it were not installed
from hako.wire import jsontext
for data in {_REFUSED!r}:
    try:
        jsontext.loads(data)
    except ValueError:
        continue
    sys.exit(repr(data))
assert jsontext.loads(jsontext.dumps({{"a": [1, None, "x"]}})) == {{"a": [1, None, "x"]}}
"""
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
