"""JSON calls inside frames: building and checking requests and responses. Sans-IO, shared by host and guest.

Request data:  {"method": str, "params": object}
Response data: {"result": object}  or  {"error": {"code": int, "message": str, "exit_code"?: int}}
``code`` is a gRPC status code. ``exit_code`` (126 or 127) marks a container command that cannot be run.
"""

from __future__ import annotations

from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Version of the agent protocol: both sides must name the same one in Hello.
PROTOCOL_VERSION = 1
#: Longest JSON text of a call or answer, bytes; a frame's data on this connection is never longer.
#: A config.json with every option is well below 1 MiB.
MAX_CALL = 2 << 20
#: Bytes a receiver of a raw stream is ready to hold before it has granted more.
WINDOW = 256 << 10
#: Largest piece of a raw stream in one frame; small, so that calls are never stuck behind data for long.
CHUNK = 64 << 10
#: Calls one side may have under way at a time; each process that is waited for is one.
MAX_CALLS = 4096
#: Containers in one VM.
MAX_CONTAINERS = 512
#: Processes added to one container by Exec and not deleted yet.
MAX_EXECS = 1024
#: Processes one Ps lists.
MAX_PROCESSES = 2048
#: Devices of each sort that one Stats tells of.
MAX_DEVICES = 64
#: Longest error text that is passed on, in characters.
MAX_MESSAGE = 4096

INVALID_ARGUMENT = 3
NOT_FOUND = 5
ALREADY_EXISTS = 6
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
UNIMPLEMENTED = 12
INTERNAL = 13
_LAST_CODE = 16


class CallError(Exception):
    """A call that failed, as it travels: gRPC ``code``, ``message`` and maybe the command's ``exit_code``."""

    def __init__(self, code: int, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code


class MalformedError(Exception):
    """The data of a request or response frame is not what it must be."""


def encode_request(method: str, params: dict[str, Any]) -> bytes:
    """Data of a request frame. Raises CallError when it is longer than a call may be."""
    return _limited(_dump({"method": method, "params": params}), f"the call {method}")


def encode_result(result: dict[str, Any]) -> bytes:
    """Data of a response frame for a call that worked. Raises CallError when it is longer than an answer may be."""
    return _limited(_dump({"result": result}), "the answer")


def encode_error(error: CallError) -> bytes:
    """Data of a response frame for a call that failed."""
    body: dict[str, Any] = {"code": error.code, "message": error.message[:MAX_MESSAGE]}
    if error.exit_code is not None:
        body["exit_code"] = error.exit_code
    return _dump({"error": body})


def decode_request(data: bytes) -> tuple[str, dict[str, Any]]:
    """Method and parameters of a request. Raises MalformedError."""
    message = _load(data)
    method, params = message.get("method"), message.get("params")
    if not isinstance(method, str) or not isinstance(params, dict):
        raise MalformedError("a request needs a method and an object of params")
    return method, params


def decode_response(data: bytes) -> dict[str, Any]:
    """The result of a response. Raises CallError if the call failed, MalformedError if it makes no sense."""
    message = _load(data)
    result = message.get("result")
    if isinstance(result, dict):
        return result
    error = message.get("error")
    if isinstance(error, dict):
        code, text, exit_code = error.get("code"), error.get("message"), error.get("exit_code")
        valid_exit = exit_code is None or (type(exit_code) is int and exit_code in (126, 127))
        if type(code) is int and 0 < code <= _LAST_CODE and isinstance(text, str) and valid_exit:
            raise CallError(code, text[:MAX_MESSAGE], exit_code)
    raise MalformedError("a response needs an object of results or an error")


def _limited(data: bytes, what: str) -> bytes:
    if len(data) > MAX_CALL:
        raise CallError(RESOURCE_EXHAUSTED, f"{what} has {len(data)} bytes, more than the limit of {MAX_CALL}")
    return data


def _dump(value: object) -> bytes:
    return jsontext.dumps(value)


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_CALL:
        raise MalformedError(f"a message of {len(data)} bytes exceeds the limit of {MAX_CALL}")
    try:
        value = jsontext.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedError("a message is not JSON") from error
    if not isinstance(value, dict):
        raise MalformedError("a message is not a JSON object")
    return value
