"""Frames: their bytes, and a decoder that gives frames or FrameError for anything it is fed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako.wire import frames
from hako.wire.frames import Decoder, Frame, FrameError, encode

LIMIT = 64

whole_frames = st.builds(
    Frame,
    stream=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([frames.REQUEST, frames.RESPONSE, frames.DATA, frames.CREDIT]),
    flags=st.integers(0, 255),
    data=st.binary(max_size=LIMIT),
)


def feed_bytewise(data: bytes, *, tolerant: bool = False) -> list[Frame]:
    decoder = Decoder(LIMIT, tolerant=tolerant)
    found: list[Frame] = []
    for index in range(len(data)):
        found += decoder.feed(data[index : index + 1])
    return found


def test_the_bytes_of_a_frame() -> None:
    data = encode(0x01020304, frames.DATA, b"abc", frames.FLAG_REMOTE_CLOSED)
    assert data == b"\x00\x00\x00\x03\x01\x02\x03\x04\x03\x01abc"


@given(st.lists(whole_frames, max_size=8), st.randoms(use_true_random=False))
def test_frames_come_back_in_pieces_of_any_size(sent: list[Frame], chance: random.Random) -> None:
    data = b"".join(encode(one.stream, one.kind, one.data, one.flags) for one in sent)
    decoder, found = Decoder(LIMIT), list[Frame]()
    while data:
        size = chance.randint(1, len(data))
        found += decoder.feed(data[:size])
        data = data[size:]
    assert found == sent
    assert decoder.pending == 0


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_give_frames_or_an_error_within_the_limit(pieces: list[bytes]) -> None:
    decoder = Decoder(LIMIT)
    for piece in pieces:
        before = decoder.pending
        try:
            found = decoder.feed(piece)
        except FrameError:
            assert decoder.pending == 0
            return
        assert all(isinstance(one, Frame) and len(one.data) <= LIMIT for one in found)
        assert decoder.pending < LIMIT + frames.HEADER.size
        assert decoder.pending <= before + len(piece)


@given(st.binary(max_size=300))
def test_whole_and_byte_by_byte_agree(data: bytes) -> None:
    try:
        expected = Decoder(LIMIT).feed(data)
    except FrameError:
        with pytest.raises(FrameError):
            feed_bytewise(data)
    else:
        assert feed_bytewise(data) == expected


@pytest.mark.parametrize("length", [LIMIT + 1, frames.MAX_DATA, 0xFFFFFFFF])
def test_a_length_beyond_the_limit_is_refused_before_its_data_comes(length: int) -> None:
    decoder = Decoder(LIMIT)
    with pytest.raises(FrameError, match=f"{length} bytes exceeds the limit of {LIMIT}"):
        decoder.feed(frames.HEADER.pack(length, 1, frames.DATA, 0))


@pytest.mark.parametrize("kind", [0, 5, 255])
def test_frames_of_unknown_type_are_dropped(kind: int) -> None:
    known = encode(7, frames.REQUEST, b"x")
    assert Decoder().feed(encode(1, kind, b"dropped") + known) == [Frame(7, frames.REQUEST, 0, b"x")]


def test_the_limit_itself_is_allowed() -> None:
    assert len(Decoder(LIMIT).feed(encode(1, frames.DATA, bytes(LIMIT)))[0].data) == LIMIT


def test_the_limit_of_ttrpc() -> None:
    decoder = Decoder()
    assert decoder.feed(encode(1, frames.DATA, bytes(frames.MAX_DATA)))
    with pytest.raises(FrameError):
        decoder.feed(frames.HEADER.pack(frames.MAX_DATA + 1, 1, frames.DATA, 0))


def test_a_tolerant_decoder_drops_what_is_too_long_and_goes_on() -> None:
    small = encode(3, frames.REQUEST, b"x")
    long = encode(1, frames.REQUEST, bytes(LIMIT + 1), 2) + encode(9, 99, bytes(LIMIT + 1))
    expected = [Frame(1, frames.REQUEST, 2, b"", LIMIT + 1), Frame(3, frames.REQUEST, 0, b"x")]
    assert Decoder(LIMIT, tolerant=True).feed(long + small) == expected
    assert feed_bytewise(long + small, tolerant=True) == expected


def test_a_tolerant_decoder_tells_before_the_data_has_come_and_keeps_none_of_it() -> None:
    decoder = Decoder(LIMIT, tolerant=True)
    length = 0xFFFFFFFF
    assert decoder.feed(frames.HEADER.pack(length, 5, frames.DATA, 0)) == [Frame(5, frames.DATA, 0, b"", length)]
    piece = bytes(1 << 24)
    for _ in range(length // len(piece)):
        assert decoder.feed(piece) == []
        assert decoder.pending == 0
    rest = encode(7, frames.REQUEST, b"x")
    assert decoder.feed(bytes(length % len(piece)) + rest) == [Frame(7, frames.REQUEST, 0, b"x")]


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_a_tolerant_decoder_takes_any_bytes(pieces: list[bytes]) -> None:
    decoder, found = Decoder(LIMIT, tolerant=True), list[Frame]()
    for piece in pieces:
        found += decoder.feed(piece)
        assert decoder.pending < LIMIT + frames.HEADER.size
    assert all(len(one.data) <= LIMIT and (not one.dropped or not one.data) for one in found)
    assert feed_bytewise(b"".join(pieces), tolerant=True) == found
