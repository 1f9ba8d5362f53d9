"""JSON calls: what comes back from what was sent, and that any data is a message or a protocol error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.wire import calls
from hako.wire.calls import CallError, MalformedError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
parts = st.sampled_from(["method", "params", "result", "error", "code", "message", "exit_code"])
near_messages = st.dictionaries(parts, json_values | st.dictionaries(parts, json_values, max_size=4), max_size=4)


def decode_any(data: bytes) -> None:
    """Both decoders give what they promise, or a protocol error."""
    try:
        method, params = calls.decode_request(data)
        assert isinstance(method, str)
        assert isinstance(params, dict)
    except MalformedError:
        pass
    error = None
    try:
        assert isinstance(calls.decode_response(data), dict)
    except MalformedError:
        pass
    except CallError as raised:
        error = raised
    if error is not None:
        assert type(error.code) is int
        assert 0 < error.code <= 16
        assert isinstance(error.message, str)
        assert len(error.message) <= calls.MAX_MESSAGE
        assert error.exit_code in (None, 126, 127)


@given(st.binary(max_size=500))
def test_any_bytes(data: bytes) -> None:
    decode_any(data)


@given(json_values | near_messages)
def test_any_json(value: object) -> None:
    decode_any(json.dumps(value).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'{"result":' * 50_000,
        b'{"method":"a","params":' + b"1" * 5000 + b"}",
        b'{"result":' + b"9" * 5000 + b"}",
        b"\xff\xfe{\x00}\x00",
        b'"' + b"\\ud800" * 10 + b'"',
        b'{"error":{"code":true,"message":""}}',
        b'{"error":{"code":0,"message":""}}',
        b'{"error":{"code":17,"message":""}}',
        b'{"error":{"code":5,"message":7}}',
        b'{"error":{"code":5,"message":"","exit_code":1}}',
        b'{"error":{"code":5,"message":"","exit_code":126.0}}',
        b'{"result":[]}',
        b'{"method":"a","params":[]}',
        b'{"method":1,"params":{}}',
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        calls.decode_request(data)
    with pytest.raises(MalformedError):
        calls.decode_response(data)


def test_a_message_beyond_the_limit_is_not_parsed() -> None:
    data = b'{"result":{"a":"' + b"x" * calls.MAX_CALL + b'"}}'
    with pytest.raises(MalformedError, match=f"exceeds the limit of {calls.MAX_CALL}"):
        calls.decode_response(data)


@given(st.text(), st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_calls_and_results_come_back(method: str, params: dict[str, Any]) -> None:
    assert calls.decode_request(calls.encode_request(method, params)) == (method, params)
    assert calls.decode_response(calls.encode_result(params)) == params


@pytest.mark.parametrize(("code", "exit_code"), [(calls.NOT_FOUND, None), (calls.INVALID_ARGUMENT, 127)])
def test_errors_come_back(code: int, exit_code: int | None) -> None:
    with pytest.raises(CallError) as raised:
        calls.decode_response(calls.encode_error(CallError(code, "a \ud800 b", exit_code)))
    assert (raised.value.code, raised.value.message, raised.value.exit_code) == (code, "a \ud800 b", exit_code)


def test_long_error_texts_are_cut() -> None:
    with pytest.raises(CallError) as raised:
        calls.decode_response(calls.encode_error(CallError(calls.INTERNAL, "x" * (calls.MAX_MESSAGE + 1))))
    assert raised.value.message == "x" * calls.MAX_MESSAGE


def test_what_is_too_long_for_the_other_side_is_not_made() -> None:
    params = {"spec": "x" * calls.MAX_CALL}
    with pytest.raises(CallError, match=r"the call Create has \d+ bytes") as raised:
        calls.encode_request("Create", params)
    assert raised.value.code == calls.RESOURCE_EXHAUSTED
    with pytest.raises(CallError, match=r"the answer has \d+ bytes"):
        calls.encode_result(params)
