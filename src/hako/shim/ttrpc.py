"""ttrpc: serving containerd's calls on a UNIX socket, and making some.

Facts: containerd/ttrpc PROTOCOL.md, request.proto, server.go; containerd pkg/shim/shim_linux.go for who may call.
Only unary calls exist here: none of containerd's services that a shim serves or uses has a streaming method.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from hako.errors import (
    GRPC_DEADLINE_EXCEEDED,
    GRPC_INTERNAL,
    GRPC_INVALID_ARGUMENT,
    GRPC_RESOURCE_EXHAUSTED,
    GRPC_UNAVAILABLE,
    GRPC_UNIMPLEMENTED,
    HakoError,
    ProtocolError,
    TimedOutError,
    from_wire,
)
from hako.named import NamedTuple
from hako.sandbox.serving import READ_SIZE, FrameConnection, FrameServer
from hako.shim.messages import KeyValue, Request, Response, Status
from hako.wire import calls, frames, protobuf

log = logging.getLogger(__name__)

M = TypeVar("M", bound=protobuf.Message)

_NAME = "the ttrpc socket"
_NANO = 1_000_000_000
_LAST_STREAM = (1 << 32) - 1
_LONGEST_TIMEOUT = (1 << 63) - 1


class Method(NamedTuple):
    """What a method takes, and what answers it. Errors of ``handler`` become the call's status."""

    request: type[protobuf.Message]
    handler: Callable[[Any], Awaitable[protobuf.Message]]


def to_the_end(handler: Callable[[Any], Awaitable[protobuf.Message]]) -> Callable[[Any], Awaitable[protobuf.Message]]:
    """``handler`` for what must not be left half done: it goes on when the call that asked for it is given up."""

    async def handle(request: Any) -> protobuf.Message:
        work = asyncio.ensure_future(handler(request))
        # Nobody may be there to hear of a failure.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(work)

    return handle


#: Methods by service and name: ``{"containerd.task.v2.Task": {"State": Method(...)}}``.
Services = Mapping[str, Mapping[str, Method]]


class ClosedError(HakoError):
    """The other side has closed the connection, or nobody is there."""

    grpc_code = GRPC_UNAVAILABLE


class _RefusedError(Exception):
    """A call that fails before it reaches a handler, or with an answer that cannot be sent."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Connection(FrameConnection):
    """One client. What is wrong with a call fails that call alone."""

    def __init__(self, sock: socket.socket, services: Services, on_closed: Callable[[_Connection], None]) -> None:
        self._services = services
        self._last_stream = 0
        decoder = frames.Decoder(tolerant=True)
        super().__init__(sock, _NAME, decoder, self._on_message, lambda: on_closed(self))

    def _on_message(self, frame: frames.Frame) -> None:
        if frame.kind not in (frames.REQUEST, frames.DATA):
            return
        try:
            call = self._request(frame)
        except _RefusedError as error:
            self._answer(frame.stream, _failure(error.code, str(error)))
        else:
            self.start(self._serve(frame.stream, call))

    def _request(self, frame: frames.Frame) -> Request:
        """The call that ``frame`` makes. Raises _RefusedError."""
        if frame.dropped:
            text = f"a message of {frame.dropped} bytes exceeds the limit of {frames.MAX_DATA}"
            raise _RefusedError(GRPC_RESOURCE_EXHAUSTED, text)
        if frame.stream % 2 == 0:
            raise _RefusedError(GRPC_INVALID_ARGUMENT, f"stream {frame.stream}: a client's streams have odd numbers")
        if frame.kind == frames.DATA:
            raise _RefusedError(GRPC_INVALID_ARGUMENT, f"stream {frame.stream}: there is no such stream")
        if frame.stream <= self._last_stream:
            text = f"stream {frame.stream}: numbers must rise, and {self._last_stream} has been used"
            raise _RefusedError(GRPC_INVALID_ARGUMENT, text)
        self._last_stream = frame.stream
        if len(self.tasks) >= calls.MAX_CALLS:
            raise _RefusedError(GRPC_RESOURCE_EXHAUSTED, f"more than {calls.MAX_CALLS} calls at a time")
        try:
            call = Request.decode(frame.data)
        except protobuf.ProtobufError as error:
            raise _RefusedError(GRPC_INVALID_ARGUMENT, f"the request is malformed: {error}") from error
        if frame.flags & frames.FLAG_REMOTE_OPEN:
            raise _RefusedError(GRPC_UNIMPLEMENTED, f"{call.service}/{call.method} is not a streaming method")
        return call

    async def _serve(self, number: int, call: Request) -> None:
        name = f"{call.service}/{call.method}"
        log.debug("%s is called", name)
        try:
            answer = Response(payload=await self._result(name, call))
        except _RefusedError as error:
            answer = _failure(error.code, str(error))
        except HakoError as error:
            answer = _failure(error.grpc_code, str(error))
        except asyncio.CancelledError:
            if self.closed.is_set():
                raise
            # What the handler waited for has been cancelled, not the call: its client must not wait forever.
            answer = _failure(GRPC_UNAVAILABLE, f"{name} was interrupted")
        except Exception as error:
            log.exception("%s failed", name)
            answer = _failure(GRPC_INTERNAL, f"{name}: {type(error).__name__}: {error}")
        self._answer(number, answer)

    async def _result(self, name: str, call: Request) -> bytes:
        """The payload that answers ``call``."""
        method = self._services.get(call.service, {}).get(call.method)
        if method is None:
            what = "method" if call.service in self._services else "service"
            raise _RefusedError(GRPC_UNIMPLEMENTED, f"{name}: there is no such {what}")
        try:
            request = method.request.decode(call.payload)
        except protobuf.ProtobufError as error:
            raise _RefusedError(GRPC_INVALID_ARGUMENT, f"{name}: the request is malformed: {error}") from error
        limit = call.timeout_nano / _NANO if call.timeout_nano else None
        try:
            async with asyncio.timeout(limit) as clock:
                return (await method.handler(request)).encode()
        except TimeoutError:
            if not clock.expired():
                raise
            raise _RefusedError(GRPC_DEADLINE_EXCEEDED, f"{name} took longer than {limit:g} s") from None

    def _answer(self, number: int, answer: Response) -> None:
        data = answer.encode()
        if len(data) > frames.MAX_DATA:
            text = f"the answer has {len(data)} bytes, more than the limit of {frames.MAX_DATA}"
            data = _failure(GRPC_RESOURCE_EXHAUSTED, text).encode()
        self.send(frames.encode(number, frames.RESPONSE, data))


def _failure(code: int, message: str) -> Response:
    # A path in the text need not be UTF-8; the status must be.
    text = message[: calls.MAX_MESSAGE].encode(errors="replace").decode()
    return Response(status=Status(code=code, message=text))


class Server(FrameServer[_Connection]):
    """Serves ``services`` to every client of ``listener``, which it owns, if its user and group ids are ours.

    Needs a running event loop. A call is cancelled when its connection ends, and when its time is up.
    """

    def __init__(self, listener: socket.socket, services: Services) -> None:
        self._services: dict[str, dict[str, Method]] = {}
        self.add(services)
        super().__init__(
            listener, _NAME, lambda sock, on_closed: _Connection(sock, self._services, on_closed), check_group=True
        )

    async def let_go(self, timeout: float) -> None:
        """Wait until all clients have gone, at most ``timeout`` seconds.

        Go's client may take the end of a connection for the answer to a call, although that has come before.
        """
        leaving = [asyncio.create_task(connection.closed.wait()) for connection in self._connections]
        if leaving:
            _, staying = await asyncio.wait(leaving, timeout=timeout)
            for task in staying:
                task.cancel()

    def add(self, services: Services) -> None:
        """Serve more methods; clients that are there already can call them too."""
        for service, methods in services.items():
            self._services.setdefault(service, {}).update(methods)


class Client:
    """Calls over one connection; any number can be under way at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next = 1
        self._calls: dict[int, asyncio.Future[frames.Frame]] = {}
        self._error: HakoError | None = None
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def connect(cls, path: str) -> Client:
        """Connect to the socket at ``path``, which may begin with ``unix://``. Raises ClosedError."""
        path = path.removeprefix("unix://")
        try:
            return cls(*await asyncio.open_unix_connection(path))
        except OSError as error:
            raise ClosedError(f"Nobody answers at {path}: {error.strerror}.") from error

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._error is not None

    async def close(self) -> None:
        """End the connection. Calls under way raise ClosedError."""
        self._fail(ClosedError("The connection has been closed."))
        await asyncio.wait([self._reading])
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(
        self,
        service: str,
        method: str,
        request: protobuf.Message,
        response: type[M],
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> M:
        """Make a call and return its answer.

        Raises ClosedError when the connection ends, TimedOutError after ``timeout`` seconds, ProtocolError for an
        answer that makes no sense, and what from_wire() makes of the status of a call that failed.
        """
        pairs = [KeyValue(key=key, value=value) for key, value in (metadata or {}).items()]
        limit = min(round(timeout * _NANO), _LONGEST_TIMEOUT) if timeout is not None else 0
        call = Request(
            service=service, method=method, payload=request.encode(), timeout_nano=limit, metadata=pairs
        ).encode()
        if len(call) > frames.MAX_DATA:
            text = f"{method}: the request has {len(call)} bytes, more than the limit of {frames.MAX_DATA}."
            raise from_wire(GRPC_RESOURCE_EXHAUSTED, text)
        try:
            async with asyncio.timeout(timeout):
                frame = await self._exchange(call)
        except TimeoutError:
            raise TimedOutError(f"{method} was not answered within {timeout:g} s.") from None
        return _payload(frame, method, response)

    async def _exchange(self, call: bytes) -> frames.Frame:
        if self._error is None and self._next > _LAST_STREAM:
            self._fail(ClosedError("The connection has no numbers left for more calls."))
        if self._error is not None:
            raise self._error
        number = self._next
        self._next += 2
        answer: asyncio.Future[frames.Frame] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            self._writer.write(frames.encode(number, frames.REQUEST, call))
            try:
                await self._writer.drain()
            except OSError:
                self._fail(ClosedError("The other side has closed the connection."))
            return await answer
        finally:
            self._calls.pop(number, None)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # somebody has looked at it: asyncio need not complain

    async def _read(self) -> None:
        decoder = frames.Decoder(tolerant=True)
        try:
            while data := await self._reader.read(READ_SIZE):
                for frame in decoder.feed(data):
                    waiting = self._calls.get(frame.stream)
                    if frame.kind == frames.RESPONSE and waiting is not None and not waiting.done():
                        waiting.set_result(frame)
        except OSError as lost:
            log.debug("A ttrpc connection was lost: %s", lost)
        self._fail(ClosedError("The other side has closed the connection."))

    def _fail(self, error: HakoError) -> None:
        """End the connection for ``error``; only the first counts."""
        if self._error is not None:
            return
        self._error = error
        self._reading.cancel()
        self._writer.transport.abort()
        for waiting in self._calls.values():
            if not waiting.done():
                waiting.set_exception(error)


def _payload(frame: frames.Frame, method: str, kind: type[M]) -> M:
    """The answer in ``frame``. Raises what the call failed with."""
    if frame.dropped:
        raise ProtocolError(f"{method}: the answer has {frame.dropped} bytes, more than a message may have.")
    try:
        response = Response.decode(frame.data)
        if response.status is not None and response.status.code:
            raise from_wire(response.status.code, response.status.message[: calls.MAX_MESSAGE])
        return kind.decode(response.payload)
    except protobuf.ProtobufError as error:
        raise ProtocolError(f"{method}: the answer is malformed: {error}.") from error
