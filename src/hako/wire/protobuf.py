"""Protocol buffers: messages declared in Python, to bytes and back. Sans-IO, standard library only.

A message is a class whose fields are declared by name, type and number, as in its .proto file:

    class Mount(Message):
        FULL_NAME = "containerd.types.Mount"
        type: str = text(1)
        options: list[str] = texts(4)

Facts: protobuf.dev/programming-guides/encoding. The rules are proto3's: what has its default is not written, numbers
in a list are packed, enums are open. Unknown fields are skipped and not kept, and so is a field of another wire type.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self, TypeVar, dataclass_transform

    M = TypeVar("M", bound="Message")
else:

    def dataclass_transform(**_options: object) -> Callable[[type], type]:
        """Tells type checkers alone how constructors look."""
        return lambda cls: cls


#: Messages, and groups of unknown fields, inside each other.
MAX_DEPTH = 100
#: Longest encoded message that has a length at all: lengths are 31 bits.
MAX_SIZE = (1 << 31) - 1

TEXT, BYTES, BOOL, U32, U64, I32, I64, ENUM, DOUBLE, MESSAGE, MAP = (
    "text", "bytes", "bool", "u32", "u64", "i32", "i64", "enum", "double", "message", "map",
)  # fmt: skip

_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)
_WIRE = {TEXT: _LENGTH, BYTES: _LENGTH, MESSAGE: _LENGTH, MAP: _LENGTH, DOUBLE: _FIXED64}
_DEFAULTS: dict[str, object] = {TEXT: "", BYTES: b"", BOOL: False, DOUBLE: 0.0, MESSAGE: None}
_RANGES = {
    U32: (0, (1 << 32) - 1),
    U64: (0, (1 << 64) - 1),
    I32: (-(1 << 31), (1 << 31) - 1),
    ENUM: (-(1 << 31), (1 << 31) - 1),
    I64: (-(1 << 63), (1 << 63) - 1),
}
_MASK = (1 << 64) - 1
_KEY_LIMIT = 1 << 32
_VARINT_BYTES = 10


class ProtobufError(Exception):
    """The bytes are not a message, or a value does not fit its field."""


class Field:
    """One row of a message's table. ``message`` is the class of a MESSAGE; ``name`` is set by the message."""

    __slots__ = ("kind", "message", "name", "number", "repeated", "wire")

    def __init__(self, number: int, kind: str, *, repeated: bool = False, message: type[Message] | None = None) -> None:
        self.number = number
        self.kind = kind
        self.repeated = repeated
        self.message = message
        self.name = ""
        self.wire = _WIRE.get(kind, _VARINT)

    @property
    def packable(self) -> bool:
        """Whether a list of it may be written as one piece."""
        return self.wire != _LENGTH


def _declare(number: int, kind: str, repeated: bool = False, message: type[Message] | None = None) -> Any:
    """A field, typed for its readers as the value that the attribute has."""
    return Field(number, kind, repeated=repeated, message=message)


def text(number: int) -> str:
    """Declare a ``string``."""
    return _declare(number, TEXT)  # type: ignore[no-any-return]


def binary(number: int) -> bytes:
    """Declare ``bytes``."""
    return _declare(number, BYTES)  # type: ignore[no-any-return]


def boolean(number: int) -> bool:
    """Declare a ``bool``."""
    return _declare(number, BOOL)  # type: ignore[no-any-return]


def u32(number: int) -> int:
    """Declare a ``uint32``."""
    return _declare(number, U32)  # type: ignore[no-any-return]


def u64(number: int) -> int:
    """Declare a ``uint64``."""
    return _declare(number, U64)  # type: ignore[no-any-return]


def i32(number: int) -> int:
    """Declare an ``int32``."""
    return _declare(number, I32)  # type: ignore[no-any-return]


def i64(number: int) -> int:
    """Declare an ``int64``."""
    return _declare(number, I64)  # type: ignore[no-any-return]


def enumeration(number: int) -> int:
    """Declare an ``enum``, which is a number here; one that nobody has named is kept."""
    return _declare(number, ENUM)  # type: ignore[no-any-return]


def double(number: int) -> float:
    """Declare a ``double``."""
    return _declare(number, DOUBLE)  # type: ignore[no-any-return]


def message(number: int, kind: type[M]) -> M | None:
    """Declare a message, which is None when it is not there."""
    return _declare(number, MESSAGE, message=kind)  # type: ignore[no-any-return]


def texts(number: int) -> list[str]:
    """Declare a ``repeated string``."""
    return _declare(number, TEXT, repeated=True)  # type: ignore[no-any-return]


def u32s(number: int) -> list[int]:
    """Declare a ``repeated uint32``."""
    return _declare(number, U32, repeated=True)  # type: ignore[no-any-return]


def u64s(number: int) -> list[int]:
    """Declare a ``repeated uint64``."""
    return _declare(number, U64, repeated=True)  # type: ignore[no-any-return]


def i64s(number: int) -> list[int]:
    """Declare a ``repeated int64``."""
    return _declare(number, I64, repeated=True)  # type: ignore[no-any-return]


def enumerations(number: int) -> list[int]:
    """Declare a repeated enum."""
    return _declare(number, ENUM, repeated=True)  # type: ignore[no-any-return]


def messages(number: int, kind: type[M]) -> list[M]:
    """Declare a list of messages."""
    return _declare(number, MESSAGE, repeated=True, message=kind)  # type: ignore[no-any-return]


def text_map(number: int) -> dict[str, str]:
    """Declare a ``map<string, string>``."""
    return _declare(number, MAP)  # type: ignore[no-any-return]


@dataclass_transform(kw_only_default=True, eq_default=False)
class Message:
    """Base of all messages. The constructor takes each field by its name; equal are messages with equal fields."""

    #: The name in the .proto file with its package, such as ``containerd.types.Mount``.
    FULL_NAME = ""
    #: The fields, in the order of their numbers.
    FIELDS: tuple[Field, ...] = ()
    _by_number: dict[int, Field] = {}

    def __init_subclass__(cls) -> None:
        fields = [(name, value) for name, value in vars(cls).items() if isinstance(value, Field)]
        for name, field in fields:
            field.name = name
            # What an instance has no value of its own for is read from the class.
            setattr(cls, name, _DEFAULTS.get(field.kind, 0))
        cls.FIELDS = tuple(sorted((field for _, field in fields), key=lambda field: field.number))
        cls._by_number = {field.number: field for field in cls.FIELDS}

    def __init__(self, **values: Any) -> None:
        for field in self.FIELDS:
            name = field.name
            if name in values:
                setattr(self, name, values.pop(name))
            elif field.repeated:
                setattr(self, name, [])
            elif field.kind == MAP:
                setattr(self, name, {})
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in self.FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        values = [(field.name, getattr(self, field.name)) for field in self.FIELDS]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values if value)})"

    def encode(self) -> bytes:
        """The bytes of the message. Raises ProtobufError when a value does not fit its field."""
        out = bytearray()
        for field in self.FIELDS:
            try:
                _encode_field(out, field, getattr(self, field.name))
            except (TypeError, AttributeError, UnicodeError, OverflowError, struct.error) as error:
                raise ProtobufError(f"{type(self).__name__}.{field.name}: {error}") from error
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The message that ``data`` holds. Raises ProtobufError, whatever the bytes are."""
        found = cls()
        _merge(found, data, 0, len(data), MAX_DEPTH)
        return found


# Encoding.


def _put_varint(out: bytearray, value: int) -> None:
    value &= _MASK
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_piece(out: bytearray, number: int, piece: bytes | bytearray) -> None:
    if len(piece) > MAX_SIZE:
        raise ProtobufError(f"{len(piece)} bytes exceed the limit of {MAX_SIZE}")
    _put_varint(out, number << 3 | _LENGTH)
    _put_varint(out, len(piece))
    out += piece


def _put_number(out: bytearray, kind: str, value: Any) -> None:
    if kind == DOUBLE:
        out += struct.pack("<d", value)
    elif kind == BOOL:
        if type(value) is not bool:
            raise TypeError(f"{value!r} is not a bool")
        out.append(value)
    else:
        low, high = _RANGES[kind]
        if not isinstance(value, int):
            raise TypeError(f"{value!r} is not a whole number")
        if not low <= value <= high:
            raise OverflowError(f"{value} is not between {low} and {high}")
        _put_varint(out, value)


def _piece(field: Field, value: Any) -> bytes:
    """``value`` of a field that has a length."""
    if field.kind == TEXT:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not text")
        return value.encode()
    if field.kind == BYTES:
        if not isinstance(value, bytes):
            raise TypeError(f"{value!r} is not bytes")
        return value
    if field.message is None or type(value) is not field.message:
        raise TypeError(f"{value!r} is another message")
    return value.encode()


def _encode_field(out: bytearray, field: Field, value: Any) -> None:
    number, kind = field.number, field.kind
    if kind == MAP:
        for key, text_value in value.items():
            entry = bytearray()
            _put_piece(entry, 1, key.encode())
            _put_piece(entry, 2, text_value.encode())
            _put_piece(out, number, entry)
    elif field.repeated:
        if field.packable:
            packed = bytearray()
            for one in value:
                _put_number(packed, kind, one)
            if packed:
                _put_piece(out, number, packed)
        else:
            for one in value:
                _put_piece(out, number, _piece(field, one))
    elif field.wire == _LENGTH:
        # A message that is there is written even if it is empty; an empty text is not.
        if kind == MESSAGE and value is None:
            return
        if (piece := _piece(field, value)) or kind == MESSAGE:
            _put_piece(out, number, piece)
    else:
        encoded = bytearray()
        _put_number(encoded, kind, value)
        if any(encoded):
            _put_varint(out, number << 3 | field.wire)
            out += encoded


# Decoding. Each function takes the bytes, where to begin and where the part that it may read ends.


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and where what follows begins. Bits beyond 64 are dropped."""
    value = shift = 0
    while at < end and shift < 7 * _VARINT_BYTES:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
    raise ProtobufError("a number has no end")


def _key(data: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Field number, wire type, and where what follows begins."""
    key, at = _varint(data, at, end)
    if not 8 <= key < _KEY_LIMIT:
        raise ProtobufError(f"{key >> 3} is no field's number")
    return key >> 3, key & 7, at


def _length(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where a piece begins and ends."""
    length, at = _varint(data, at, end)
    if length > end - at:
        raise ProtobufError(f"a field of {length} bytes, where {end - at} are left")
    return at, at + length


def _skip(data: bytes, at: int, end: int, number: int, wire: int, depth: int) -> int:
    """Where the field after an unknown one begins."""
    if wire == _VARINT:
        return _varint(data, at, end)[1]
    if wire == _LENGTH:
        return _length(data, at, end)[1]
    if wire in (_FIXED64, _FIXED32):
        at += 8 if wire == _FIXED64 else 4
        if at > end:
            raise ProtobufError("a number has no end")
        return at
    if wire != _GROUP:
        raise ProtobufError(f"a field of wire type {wire}")
    if depth <= 1:
        raise ProtobufError(f"more than {MAX_DEPTH} messages in each other")
    while True:
        inner, wire, at = _key(data, at, end)
        if wire == _GROUP_END:
            if inner != number:
                raise ProtobufError("the end of a group that has not begun")
            return at
        at = _skip(data, at, end, inner, wire, depth - 1)


def _number(kind: str, data: bytes, at: int, end: int) -> tuple[Any, int]:
    """A value of fixed length, or a varint, and where what follows begins."""
    if kind == DOUBLE:
        if end - at < 8:
            raise ProtobufError("a number has no end")
        return struct.unpack_from("<d", data, at)[0], at + 8
    value, at = _varint(data, at, end)
    if kind == BOOL:
        return value != 0, at
    if kind in (U32, I32, ENUM):
        value &= 0xFFFFFFFF
    if kind in (I32, ENUM) and value >> 31:
        value -= 1 << 32
    elif kind == I64 and value >> 63:
        value -= 1 << 64
    return value, at


def _text(data: bytes, at: int, end: int) -> str:
    try:
        return data[at:end].decode()
    except UnicodeDecodeError as error:
        raise ProtobufError("a text is not UTF-8") from error


def _entry(data: bytes, at: int, end: int, depth: int) -> tuple[str, str]:
    """Key and value of a map's entry."""
    found = ["", ""]
    while at < end:
        number, wire, at = _key(data, at, end)
        if number in (1, 2) and wire == _LENGTH:
            start, at = _length(data, at, end)
            found[number - 1] = _text(data, start, at)
        else:
            at = _skip(data, at, end, number, wire, depth)
    return found[0], found[1]


def _merge(target: Message, data: bytes, at: int, end: int, depth: int) -> None:
    """Add the fields that ``data`` has from ``at`` to ``end`` to ``target``."""
    if depth <= 0:
        raise ProtobufError(f"more than {MAX_DEPTH} messages in each other")
    fields = target._by_number
    while at < end:
        number, wire, at = _key(data, at, end)
        field = fields.get(number)
        if field is None:
            at = _skip(data, at, end, number, wire, depth)
        elif wire == _LENGTH and (field.wire == _LENGTH or field.repeated):
            start, at = _length(data, at, end)
            _take_piece(target, field, data, start, at, depth)
        elif wire == field.wire:
            value, at = _number(field.kind, data, at, end)
            if field.repeated:
                getattr(target, field.name).append(value)
            else:
                setattr(target, field.name, value)
        else:
            at = _skip(data, at, end, number, wire, depth)


def _take_piece(target: Message, field: Field, data: bytes, at: int, end: int, depth: int) -> None:
    """Add a piece of ``data`` to a field that has a length, or to a list of packed numbers."""
    name = field.name
    if field.kind == MAP:
        key, value = _entry(data, at, end, depth - 1)
        getattr(target, name)[key] = value
    elif field.kind == MESSAGE and field.message is not None:
        part = None if field.repeated else getattr(target, name)
        if part is None:
            part = field.message()
            _put(target, field, part)
        _merge(part, data, at, end, depth - 1)
    elif field.packable:
        values = getattr(target, name)
        while at < end:
            value, at = _number(field.kind, data, at, end)
            values.append(value)
    else:
        _put(target, field, _text(data, at, end) if field.kind == TEXT else data[at:end])


def _put(target: Message, field: Field, value: object) -> None:
    if field.repeated:
        getattr(target, field.name).append(value)
    else:
        setattr(target, field.name, value)
