"""Google's protobuf as an oracle: the same messages, declared to it at run time from hako's own tables."""

from __future__ import annotations

import struct
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from hako.wire import protobuf
from hako.wire.protobuf import Field, Message

FieldProto = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    protobuf.TEXT: FieldProto.TYPE_STRING,
    protobuf.BYTES: FieldProto.TYPE_BYTES,
    protobuf.BOOL: FieldProto.TYPE_BOOL,
    protobuf.U32: FieldProto.TYPE_UINT32,
    protobuf.U64: FieldProto.TYPE_UINT64,
    protobuf.I32: FieldProto.TYPE_INT32,
    protobuf.I64: FieldProto.TYPE_INT64,
    protobuf.ENUM: FieldProto.TYPE_ENUM,
    protobuf.DOUBLE: FieldProto.TYPE_DOUBLE,
    protobuf.MESSAGE: FieldProto.TYPE_MESSAGE,
    protobuf.MAP: FieldProto.TYPE_MESSAGE,
}
_RANGES = {
    protobuf.U32: (0, 2**32 - 1),
    protobuf.U64: (0, 2**64 - 1),
    protobuf.I32: (-(2**31), 2**31 - 1),
    protobuf.ENUM: (-(2**31), 2**31 - 1),
    protobuf.I64: (-(2**63), 2**63 - 1),
}


def _mangled(kind: type[Message]) -> str:
    return kind.FULL_NAME.replace(".", "_")


def _reachable(kind: type[Message], found: dict[str, type[Message]]) -> None:
    if _mangled(kind) not in found:
        found[_mangled(kind)] = kind
        for field in kind.FIELDS:
            if field.message is not None:
                _reachable(field.message, found)


def _declare_field(declared: descriptor_pb2.DescriptorProto, field: Field, maps: bool) -> None:
    row = declared.field.add(name=field.name, number=field.number, type=_TYPES[field.kind])
    many = field.repeated or field.kind == protobuf.MAP
    row.label = FieldProto.LABEL_REPEATED if many else FieldProto.LABEL_OPTIONAL
    if field.message is not None:
        row.type_name = f".t.{_mangled(field.message)}"
    elif field.kind == protobuf.ENUM:
        row.type_name = ".t.AnyEnum"
    elif field.kind == protobuf.MAP:
        name = "".join(part.capitalize() for part in field.name.split("_")) + "Entry"
        entry = declared.nested_type.add(name=name)
        entry.options.map_entry = maps
        for number, part in enumerate(("key", "value"), 1):
            entry.field.add(name=part, number=number, type=FieldProto.TYPE_STRING, label=FieldProto.LABEL_OPTIONAL)
        row.type_name = f".t.{declared.name}.{name}"


def oracle(kind: type[Message], *, maps: bool = True) -> type[Any]:
    """The same message as ``kind``, as Google's library makes it.

    Without ``maps`` a map is the list of entries that it is on the wire: this library, unlike that of Go, hides an
    entry of a map that has an unknown field in it.
    """
    found: dict[str, type[Message]] = {}
    _reachable(kind, found)
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.enum_type.add(name="AnyEnum").value.add(name="ZERO", number=0)
    for name, one in found.items():
        declared = file.message_type.add(name=name)
        for field in one.FIELDS:
            _declare_field(declared, field, maps)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{_mangled(kind)}"))


def parse(kind: type[Any], data: bytes) -> Any:
    """What the oracle makes of ``data``; None when it refuses it."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def plain(ours: Message) -> dict[str, Any]:
    """The fields of a message that can be compared with plain_of_oracle()."""
    return {field.name: _plain(field, getattr(ours, field.name), plain) for field in ours.FIELDS}


def plain_of_oracle(kind: type[Message], theirs: Any) -> dict[str, Any]:
    """As plain(), of a message of the oracle."""
    values = {}
    for field in kind.FIELDS:
        single_message = field.kind == protobuf.MESSAGE and not field.repeated
        value = None if single_message and not theirs.HasField(field.name) else getattr(theirs, field.name)
        inner = field.message
        values[field.name] = _plain(field, value, lambda one, inner=inner: plain_of_oracle(inner, one))
    return values


def _plain(field: Field, value: Any, inner: Any) -> Any:
    if field.kind == protobuf.MAP:
        listed = not hasattr(value, "items")
        return {entry.key: entry.value for entry in value} if listed else dict(value)
    if field.repeated:
        return [_plain_one(field, one, inner) for one in value]
    return _plain_one(field, value, inner)


def _plain_one(field: Field, value: Any, inner: Any) -> Any:
    if field.kind == protobuf.MESSAGE:
        return None if value is None else inner(value)
    # Not equal to itself, and minus zero equal to zero.
    return struct.pack("<d", value) if field.kind == protobuf.DOUBLE else value


def instances(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Any message of ``kind``."""
    return st.builds(kind, **{field.name: _values(field) for field in kind.FIELDS})


def _values(field: Field) -> st.SearchStrategy[Any]:
    if field.kind == protobuf.MAP:
        short = st.text(max_size=5)
        return st.dictionaries(short, short, max_size=1)  # the oracle has an order of its own for more
    one: st.SearchStrategy[Any]
    if field.message is not None:
        one = instances(field.message)
    elif field.kind in _RANGES:
        low, high = _RANGES[field.kind]
        one = st.sampled_from([0, 1, 127, 128, low, high]) | st.integers(low, high)
    else:
        one = {
            protobuf.TEXT: st.text(max_size=8),
            protobuf.BYTES: st.binary(max_size=8),
            protobuf.BOOL: st.booleans(),
            protobuf.DOUBLE: st.floats(),
        }[field.kind]
    if field.repeated:
        return st.lists(one, max_size=3)
    return st.none() | one if field.message is not None else one
