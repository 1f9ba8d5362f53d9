"""The protobuf codec beside Google's own: the same bytes, the same values, the same refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hako.wire import protobuf as pb
from hako.wire.protobuf import MAX_DEPTH, Message, ProtobufError
from support import protos


class Leaf(Message):
    FULL_NAME = "test.Leaf"

    name: str = pb.text(1)
    amount: int = pb.u64(2)
    marks: dict[str, str] = pb.text_map(3)


class Branch(Message):
    FULL_NAME = "test.Branch"

    leaf: Leaf | None = pb.message(1, Leaf)
    leaves: list[Leaf] = pb.messages(2, Leaf)


class Everything(Message):
    """One of each kind, not in the order of numbers, which need one to three bytes."""

    FULL_NAME = "test.Everything"

    double: float = pb.double(9)
    text: str = pb.text(1)
    binary: bytes = pb.binary(2)
    boolean: bool = pb.boolean(3)
    u32: int = pb.u32(4)
    u64: int = pb.u64(5)
    i32: int = pb.i32(6)
    i64: int = pb.i64(7)
    enum: int = pb.enumeration(8)
    message: Branch | None = pb.message(10, Branch)
    marks: dict[str, str] = pb.text_map(11)
    texts: list[str] = pb.texts(15)
    u32s: list[int] = pb.u32s(16)
    u64s: list[int] = pb.u64s(17)
    i64s: list[int] = pb.i64s(2047)
    enums: list[int] = pb.enumerations(2048)
    messages: list[Branch] = pb.messages(19, Branch)


WRITER = protos.oracle(Everything)
READER = protos.oracle(Everything, maps=False)


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def key(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def piece(number: int, data: bytes) -> bytes:
    return key(number, 2) + varint(len(data)) + data


def agrees(data: bytes) -> None:
    """hako and the oracle read the same from ``data``, or both refuse it.

    Inside of a group the oracle does not mind the number 0, which is no field's.
    """
    theirs = protos.parse(READER, data)
    refusal, ours = "", None
    try:
        ours = Everything.decode(data)
    except ProtobufError as error:
        refusal = str(error)
    if ours is None:
        assert theirs is None or "no field's number" in refusal
    else:
        assert theirs is not None
        assert protos.plain(ours) == protos.plain_of_oracle(Everything, theirs)


@settings(max_examples=300, deadline=None)
@given(protos.instances(Everything))
def test_the_bytes_are_the_oracles_and_come_back(message: Message) -> None:
    data = message.encode()
    theirs = WRITER.FromString(data)
    assert protos.plain(message) == protos.plain_of_oracle(Everything, theirs)
    assert theirs.SerializeToString(deterministic=True) == data
    assert protos.plain(Everything.decode(data)) == protos.plain(message)


#: Fields as they may come: of the right wire type and of others, known and unknown, whole and broken.
numbers = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17, 19, 2047, 2048, 2**29 - 1, 2**29])
big = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
odd_varints = st.builds(varint, big) | st.sampled_from([b"\x80" * n + b"\x01" for n in range(12)])
fields = st.recursive(
    st.builds(lambda number, value: key(number, 0) + value, numbers, odd_varints)
    | st.builds(lambda number, data: key(number, 1) + data, numbers, st.binary(min_size=8, max_size=8))
    | st.builds(lambda number, data: key(number, 5) + data, numbers, st.binary(min_size=4, max_size=4))
    | st.builds(piece, numbers, st.text(max_size=4).map(str.encode) | st.binary(max_size=12))
    | st.builds(key, numbers, st.integers(0, 7))
    | st.builds(lambda number, values: piece(number, b"".join(values)), numbers, st.lists(odd_varints, max_size=4)),
    lambda inner: st.builds(lambda number, parts: piece(number, b"".join(parts)), numbers, st.lists(inner, max_size=4))
    | st.builds(
        lambda number, parts, end: key(number, 3) + b"".join(parts) + key(end or number, 4),
        numbers, st.lists(inner, max_size=3), st.just(0) | numbers,
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.lists(fields, max_size=6).map(b"".join))
@example(piece(11, piece(1, b"k") + piece(2, b"v")) + piece(11, piece(1, b"k")))
@example(piece(11, key(1, 0) + b"\x05" + piece(2, b"v")))
def test_any_fields_are_read_as_the_oracle_reads_them(data: bytes) -> None:
    agrees(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_as_the_oracle_reads_them(data: bytes) -> None:
    agrees(data)


@settings(max_examples=300, deadline=None)
@given(protos.instances(Everything), st.data())
def test_damaged_messages_are_read_as_the_oracle_reads_them(message: Message, data: st.DataObject) -> None:
    found = bytearray(message.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        if found:
            at = data.draw(st.integers(0, len(found) - 1))
            found[at] = data.draw(st.integers(0, 255))
    agrees(bytes(found))
    agrees(bytes(found[: data.draw(st.integers(0, len(found)))]))


@settings(max_examples=200, deadline=None)
@given(protos.instances(Everything), protos.instances(Everything))
def test_two_messages_in_a_row_merge(first: Message, second: Message) -> None:
    agrees(first.encode() + second.encode())


@given(st.lists(st.integers(0, 2**64 - 1), max_size=5), st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_numbers_in_a_list_come_packed_or_one_by_one(one_by_one: list[int], packed: list[int]) -> None:
    data = b"".join(key(17, 0) + varint(value) for value in one_by_one)
    data += piece(17, b"".join(varint(value) for value in packed))
    assert Everything.decode(data).u64s == one_by_one + packed


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=5))
def test_maps(marks: dict[str, str]) -> None:
    data = Everything(marks=marks).encode()
    assert dict(WRITER.FromString(data).marks) == marks
    assert Everything.decode(data).marks == marks


def test_a_field_has_a_number() -> None:
    for data in (key(0, 0) + b"\0", key(2**29, 0) + b"\0"):
        assert protos.parse(READER, data) is None
        with pytest.raises(ProtobufError, match="no field's number"):
            Everything.decode(data)
    with pytest.raises(ProtobufError, match="0 is no field's number"):
        Everything.decode(key(99, 3) + key(0, 0) + b"\0" + key(99, 4))


def test_known_bytes() -> None:
    message = Everything(text="é", i32=-1, u64s=[3, 270], message=Branch(leaf=Leaf()))
    expected = b"\x0a\x02\xc3\xa9" + b"\x30" + b"\xff" * 9 + b"\x01" + b"\x52\x02\x0a\x00" + b"\x8a\x01\x03\x03\x8e\x02"
    assert message.encode() == expected
    assert Everything.decode(expected) == message


def test_defaults() -> None:
    message = Everything()
    assert message.encode() == b""
    assert Everything.decode(b"") == message
    assert (message.text, message.binary, message.boolean, message.u64, message.double) == ("", b"", False, 0, 0.0)
    assert (message.message, message.marks, message.texts) == (None, {}, [])
    message.texts.append("mine")
    assert Everything().texts == []


def test_a_field_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="Leaf has no field nmae, size"):
        Leaf(nmae="x", size=1)


def test_equality_and_text() -> None:
    assert Leaf(name="a") == Leaf(name="a")
    assert Leaf(name="a") != Leaf(name="b")
    assert Leaf() != Branch()
    assert repr(Branch(leaf=Leaf(name="a"))) == "Branch(leaf=Leaf(name='a'))"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Leaf())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", b"x"), ("text", None), ("text", "\udc80"), ("binary", "x"), ("binary", None), ("boolean", 1),
        ("u32", -1), ("u32", 2**32), ("u64", -1), ("u64", 2**64), ("i32", 2**31), ("i32", -(2**31) - 1),
        ("i64", 2**63), ("enum", 2**31), ("u64", 1.0), ("u64", "1"), ("u64", None), ("double", "x"),
        ("message", Leaf()), ("message", b""), ("messages", [Leaf()]), ("messages", None), ("u64s", [-1]),
        ("u64s", 5), ("texts", [1]), ("marks", {1: "a"}), ("marks", {"a": None}), ("marks", None),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(name: str, value: Any) -> None:
    with pytest.raises(ProtobufError, match=name):
        Everything(**{name: value}).encode()


def nested(depth: int, wrap: Callable[[bytes], bytes]) -> bytes:
    data = b""
    for _ in range(depth):
        data = wrap(data)
    return data


def test_unknown_groups_may_be_deep_but_not_too_deep() -> None:
    def group(data: bytes) -> bytes:
        return key(99, 3) + data + key(99, 4)

    assert Everything.decode(nested(MAX_DEPTH - 1, group)) == Everything()
    for depth in (MAX_DEPTH, 5000):
        with pytest.raises(ProtobufError, match="in each other"):
            Everything.decode(nested(depth, group))


def test_groups_inside_messages_count_from_the_outside() -> None:
    inside = nested(MAX_DEPTH - 2, lambda data: key(99, 3) + data + key(99, 4))
    assert Everything.decode(piece(10, inside)) == Everything(message=Branch())
    with pytest.raises(ProtobufError, match="in each other"):
        Everything.decode(piece(10, piece(1, inside)))


@pytest.mark.parametrize("size", [1, 2**31 - 1, 2**63, 2**64 - 1])
def test_a_length_beyond_the_end(size: int) -> None:
    for number in (1, 2, 10, 11, 17, 99):
        with pytest.raises(ProtobufError, match="are left"):
            Everything.decode(key(number, 2) + varint(size))
