"""Standard streams of processes: order, flow control both ways, and what becomes of each end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from hako.agent import channel as channel_module
from hako.agent.stdio import Stdio
from hako.agent.streams import Input, Output
from hako.wire import calls
from support.agentside import Bench, open_fds

WINDOW = calls.WINDOW


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


def make_output(bench: Bench, number: int) -> int:
    """An Output on stream ``number`` that has been started; returns the process's end."""
    read, write = os.pipe2(os.O_CLOEXEC)
    Output(bench.loop, bench.channel, number, read).start()
    return write


def make_input(bench: Bench, number: int) -> tuple[Input, int]:
    """An Input on stream ``number``, and the process's end."""
    read, write = os.pipe2(os.O_CLOEXEC)
    return Input(bench.loop, bench.channel, number, write), read


def write_until_full(fd: int) -> int:
    """Write into a pipe until it takes no more; returns how much that was."""
    os.set_blocking(fd, False)
    count = 0
    while True:
        try:
            count += os.write(fd, b"x" * 4096)
        except BlockingIOError:
            return count


def fill(bench: Bench, fd: int) -> int:
    """Write like a process that never stops until nothing moves any more; returns how much got away."""
    total = 0
    while more := write_until_full(fd):
        total += more
        bench.settle()
        bench.receive()
    return total


def test_nothing_is_sent_before_the_start(bench: Bench) -> None:
    """What crun writes to the pipe when it fails is not the container's output."""
    read, write = os.pipe2(os.O_CLOEXEC)
    output = Output(bench.loop, bench.channel, 1, read)
    os.write(write, b"early")
    bench.settle()
    assert bench.output(1) == b""
    output.start()
    bench.run(lambda: bench.output(1) == b"early")
    os.close(write)
    bench.run(lambda: bench.ended(1))


def test_output_ends_after_its_last_byte(bench: Bench) -> None:
    write = make_output(bench, 1)
    os.write(write, b"last words")
    os.close(write)
    bench.run(lambda: bench.ended(1))
    assert bench.output(1) == b"last words"
    assert bench.frames[-1].flags & 1


def test_a_slow_reader_stops_its_own_process_only(bench: Bench) -> None:
    slow, quick = make_output(bench, 1), make_output(bench, 3)
    stuck = fill(bench, slow)
    assert len(bench.output(1)) == WINDOW
    assert stuck - WINDOW <= 64 << 10, "more than a pipe full was read beyond the window"
    for round_ in range(20):
        text = b"round %d\n" % round_ * 1000
        size = len(bench.output(3)) + len(text)
        os.write(quick, text)
        bench.run(lambda size=size: len(bench.output(3)) == size)
        bench.credit(3, len(text))
    bench.request(5, "Hello")
    assert bench.answer(5)
    assert len(bench.output(1)) == WINDOW
    bench.credit(1, 1000)
    bench.run(lambda: len(bench.output(1)) == WINDOW + 1000)
    os.close(slow)
    os.close(quick)


def test_credit_never_adds_up_to_more_than_the_window(bench: Bench) -> None:
    write = make_output(bench, 1)
    for _ in range(100):
        bench.credit(1, 0xFFFFFFFF)
    bench.settle()
    fill(bench, write)
    assert len(bench.output(1)) == WINDOW
    os.close(write)


def test_100_megabytes_keep_their_order_and_the_queue_stays_small(bench: Bench) -> None:
    total = 100 << 20
    write = make_output(bench, 1)
    block = bytes(range(256)) * 1024

    def produce() -> None:
        for _ in range(total // len(block)):
            view = memoryview(block)
            while view:
                view = view[os.write(write, view) :]
        os.close(write)

    producer = threading.Thread(target=produce)
    producer.start()
    received = granted = largest = 0
    while not bench.ended(1):
        for frame in bench.frames:
            start = received % len(block)
            assert frame.data == (block + block)[start : start + len(frame.data)]
            received += len(frame.data)
        bench.frames.clear()
        largest = max(largest, bench.channel._data_size)
        if received > granted:
            bench.credit(1, received - granted)
            granted = received
        bench.settle(1)
    producer.join()
    assert received + sum(len(frame.data) for frame in bench.frames) == total
    assert largest <= channel_module._HIGH_WATER + calls.CHUNK + 100


def test_the_end_mark_of_the_host_closes_the_pipe(bench: Bench) -> None:
    write = make_output(bench, 1)
    bench.data(1, end=True)
    bench.settle()
    with pytest.raises(BrokenPipeError):
        os.write(write, b"nobody reads")
    assert bench.output(1) == b""
    assert not bench.ended(1)
    os.close(write)


def test_data_for_an_output_is_ignored(bench: Bench) -> None:
    write = make_output(bench, 1)
    bench.data(1, b"what?")
    bench.settle()
    os.write(write, b"going on")
    bench.run(lambda: bench.output(1) == b"going on")
    os.close(write)


def test_a_reset_tells_processes(bench: Bench) -> None:
    write = make_output(bench, 1)
    _, read = make_input(bench, 3)
    bench.channel._reset()
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    assert os.read(read, 10) == b""
    os.close(write)
    os.close(read)


def test_input_arrives_in_order_and_ends(bench: Bench) -> None:
    _, read = make_input(bench, 1)
    for text in (b"one ", b"two ", b"", b"three"):
        bench.data(1, text)
    bench.data(1, b"!", end=True)
    bench.settle()
    assert os.read(read, 100) == b"one two three!"
    assert os.read(read, 100) == b""
    os.close(read)


def test_input_for_a_process_that_does_not_read_waits_and_then_goes_on(bench: Bench) -> None:
    given, read = make_input(bench, 1)
    text = os.urandom(WINDOW)
    for start in range(0, WINDOW, calls.CHUNK):
        bench.data(1, text[start : start + calls.CHUNK])
    bench.settle()
    assert len(given._held) == WINDOW - (64 << 10)
    got = b""
    while len(got) < WINDOW:
        got += os.read(read, 64 << 10)
        bench.settle()
    assert got == text
    credits = [int.from_bytes(one.data, "big") for one in bench.receive() if one.kind == 4]
    assert sum(credits) == WINDOW
    assert len(credits) == 2, "credit is given in large pieces"
    os.close(read)


def test_many_tiny_pieces_cost_no_more_than_their_bytes(bench: Bench) -> None:
    given, read = make_input(bench, 1)
    bench.data(1, b"x" * (64 << 10))
    for _ in range(1000):
        bench.data(1, b"y")
    bench.settle()
    assert isinstance(given._held, bytearray)
    assert len(given._held) == 1000
    os.close(read)


@pytest.mark.parametrize("excess", ["too much", "after the end"])
def test_a_host_that_does_not_keep_to_the_rules_loses_the_stream(bench: Bench, excess: str) -> None:
    given, read = make_input(bench, 1)
    room = WINDOW + (64 << 10)  # what is held, and what is in the pipe
    for start in range(0, room, calls.CHUNK):
        bench.data(1, bytes(min(calls.CHUNK, room - start)))
    if excess == "after the end":
        bench.data(1, end=True)
    bench.settle()
    assert not bench.ended(1)
    bench.data(1, b"1")
    bench.settle()
    assert bench.ended(1)
    assert given._fd == -1
    bench.request(3, "Hello")
    assert bench.answer(3)
    os.close(read)


@pytest.mark.parametrize("held", [0, 100 << 10])
def test_a_process_that_closes_its_input(bench: Bench, held: int) -> None:
    """The host is told, so that it does not wait for credit that never comes."""
    _, read = make_input(bench, 1)
    for start in range(0, held, calls.CHUNK):
        bench.data(1, bytes(min(calls.CHUNK, held - start)))
    bench.settle()
    os.close(read)
    if not held:
        bench.data(1, b"x")
    bench.run(lambda: bench.ended(1))
    bench.data(1, b"late")
    bench.settle()
    assert len([one for one in bench.receive() if one.stream == 1]) == 1


# --- Stdio ---


def test_pipes_for_what_is_wanted_and_null_for_the_rest(bench: Bench) -> None:
    before = open_fds()
    stdio = Stdio(bench.loop, bench.channel, {"stdout": 1}, terminal=False)
    fds = stdio.child_fds()
    assert fds is not None
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
    assert [name.split(":")[0] for name in names] == ["/dev/null", "pipe", "/dev/null"]
    os.write(fds[1], b"hello")
    stdio.after_spawn()
    stdio.start()
    bench.run(lambda: bench.ended(1))
    assert bench.output(1) == b"hello"
    stdio.close()
    assert open_fds() == before


@pytest.mark.parametrize(
    "numbers",
    [
        {"stdin": 0},
        {"stdin": -1},
        {"stdin": 1 << 32},
        {"stdin": True},
        {"stdin": "1"},
        {"stdin": 1.5},
        {"stdin": 1, "stdout": 1},
        {"stdout": 3, "stderr": 3},
        {"stdin": 1, "stdout": 3, "stderr": 99},
    ],
)
def test_bad_stream_numbers_leave_nothing_open(bench: Bench, numbers: dict[str, object]) -> None:
    taken = make_output(bench, 99)
    before, streams = open_fds(), dict(bench.channel._streams)
    with pytest.raises(calls.CallError) as raised:
        Stdio(bench.loop, bench.channel, numbers, terminal=False)
    assert raised.value.code == calls.INVALID_ARGUMENT
    assert open_fds() == before
    assert bench.channel._streams == streams
    os.close(taken)


def test_after_the_exit_input_ends_and_output_goes_on(bench: Bench) -> None:
    stdio = Stdio(bench.loop, bench.channel, {"stdin": 1, "stdout": 3}, terminal=False)
    fds = stdio.child_fds()
    assert fds is not None
    os.write(fds[1], b"x" * 1000)
    stdio.start()
    stdio.on_exit()
    bench.run(lambda: bench.ended(1))
    bench.run(lambda: len(bench.output(3)) == 1000)
    assert not bench.ended(3)
    stdio.after_spawn()
    bench.run(lambda: bench.ended(3))


def test_close_ends_output_that_is_under_way(bench: Bench) -> None:
    before = open_fds()
    stdio = Stdio(bench.loop, bench.channel, {"stdout": 3, "stderr": 5}, terminal=False)
    stdio.close()
    assert open_fds() == before
    bench.run(lambda: bench.ended(3) and bench.ended(5))
