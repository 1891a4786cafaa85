"""Frames through a pipe: what goes in comes out, however it is cut on its way, and an end in the middle is noticed."""

import itertools
import multiprocessing
import os
import threading

import pytest

from flowkit.engine.workers import processes, wire
from flowkit.engine.workers.wire import Channel

LIMIT = wire._LARGEST_WRITE
PATIENCE = 20.0


def no_wait():
    """Reading blocks by itself."""


@pytest.fixture
def pipe():
    """Both ends of a pipe."""
    ends = [Channel(connection) for connection in multiprocessing.Pipe()]
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def in_background():
    """Return a function that calls another one in a thread, which must end."""
    threads = []

    def start(call, *args):
        thread = threading.Thread(target=call, args=args, daemon=True)
        thread.start()
        threads.append(thread)

    yield start
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def raw(connection, data, step=None):
    """Write *data* as the other end would, *step* bytes at a time."""
    step = step or max(1, len(data))
    for start in range(0, len(data), step):
        connection._write(data[start : start + step])


def frame_bytes(head, parts=()):
    """Return what a frame is on its way."""
    ours, theirs = (Channel(connection) for connection in multiprocessing.Pipe())
    written = []
    ours_write, Channel._write = Channel._write, lambda self, data: written.append(bytes(data))
    try:
        ours.send(head, parts)
    finally:
        Channel._write = ours_write
        ours.close()
        theirs.close()
    return b"".join(written)


def same(received, head, parts):
    return received[0] == head and [bytes(part) for part in received[1]] == [bytes(part) for part in parts]


# ---------------------------------------------------------------- round trips


SIZES = [0, 1, 4_095, 4_096, LIMIT - 1, LIMIT, LIMIT + 1, 65_535, 65_536, 65_537, 1_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_a_part_of_any_size_arrives(pipe, in_background, size):
    ours, theirs = pipe
    part = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    in_background(ours.send, [(1, "name", None)], [part])
    assert same(theirs.receive(no_wait), [(1, "name", None)], [part])


def test_20_megabytes_arrive(pipe, in_background):
    ours, theirs = pipe
    part = b"0123456789" * 2_000_000
    in_background(ours.send, "head", [part])
    _, (arrived,) = theirs.receive(no_wait)
    assert arrived == part


@pytest.mark.parametrize(
    "sizes",
    [
        [], [0], [0, 0, 0], [1] * 1000, [LIMIT // 2, LIMIT // 2], [LIMIT // 2, LIMIT // 2 + 1], [0, LIMIT, 0, 1],
        [100_000, 0, 100_000, 5], [1, 200_000], [200_000, 1],
    ],
    ids=str,
)  # fmt: skip
def test_many_parts_arrive_in_their_order(pipe, in_background, sizes):
    ours, theirs = pipe
    parts = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
    in_background(ours.send, {"sizes": sizes}, parts)
    assert same(theirs.receive(no_wait), {"sizes": sizes}, parts)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))[1:-1]])
def test_parts_may_be_any_block_of_bytes(pipe, in_background, kind):
    ours, theirs = pipe
    for size in (100, 100_000):
        part = kind(b"ab" * size)
        in_background(ours.send, 0, [part, part])
        assert same(theirs.receive(no_wait), 0, [part, part])


@pytest.mark.parametrize("head", [None, 0, -(2**70), "", "ü\ud800", (), [[("a", 1.5, True, b"x")]], "x" * 200_000])
def test_a_head_may_be_any_plain_data(pipe, in_background, head):
    ours, theirs = pipe
    in_background(ours.send, head, [b"part"])
    assert same(theirs.receive(no_wait), head, [b"part"])


def test_a_head_that_is_no_plain_data_is_refused_before_anything_is_sent(pipe):
    ours, theirs = pipe
    with pytest.raises(ValueError, match="unmarshallable"):
        ours.send(object())
    ours.send("next")
    assert theirs.receive(no_wait)[0] == "next"


def test_frames_arrive_one_by_one_however_many_are_on_their_way(pipe, in_background):
    """Small and large ones in turn: what is read of one may belong to the next."""
    ours, theirs = pipe
    frames = [(n, [b"x" * size]) for n, size in enumerate([0, 10, 100_000, 1, LIMIT, LIMIT + 1, 0, 300_000, 5] * 5)]

    def send_all():
        for head, parts in frames:
            ours.send(head, parts)

    in_background(send_all)
    for head, parts in frames:
        assert same(theirs.receive(no_wait), head, parts)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_frame_that_arrives_in_pieces_is_put_together(pipe, in_background, step):
    ours, theirs = pipe
    frames = [("small", [b"abc", b"de"]), ("large", [b"x" * (LIMIT + 1), b"y"]), ("last", [])]
    if step == 1:
        frames = [frames[0], frames[2]]
    data = b"".join(frame_bytes(head, parts) for head, parts in frames)
    in_background(raw, ours, data, step)
    for head, parts in frames:
        assert same(theirs.receive(no_wait), head, parts)


@pytest.mark.skipif(os.name != "posix", reason="connections are no files there")
def test_a_write_that_is_cut_short_goes_on_where_it_stopped(pipe, in_background, monkeypatch):
    """As one that a signal interrupts is"""
    ours, theirs = pipe
    write = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:7]))
    parts = [bytes(range(256)) * 8, b"x"]
    in_background(ours.send, "head", parts)
    assert same(theirs.receive(no_wait), "head", parts)


def test_both_ends_may_send_at_once(pipe, in_background):
    """Neither reads before it has written: what is written must fit into the pipe."""
    ours, theirs = pipe
    ours.send("to them", [b"1" * 1000])
    theirs.send("to us", [b"2" * 1000])
    assert theirs.receive(no_wait)[0] == "to them"
    assert ours.receive(no_wait)[0] == "to us"


# ---------------------------------------------------------------- memory


def test_a_large_part_is_read_into_the_memory_in_which_it_is_used(pipe, in_background):
    """It can be written to, as arrays upon it are, and each can be let go alone."""
    ours, theirs = pipe
    in_background(ours.send, 0, [b"a" * 100_000, b"b" * 100_000])
    _, (first, second) = theirs.receive(no_wait)
    assert (type(first), type(second)) == (bytearray, bytearray)
    first[:] = b"c" * 100_000
    assert second == b"b" * 100_000


# ---------------------------------------------------------------- the end


FRAME = ("head", [b"a" * 10, b"b" * 20])
LARGE = ("head", [b"a" * (LIMIT + 1), b"b" * 20])


@pytest.mark.parametrize("frame", [FRAME, LARGE], ids=["small", "large"])
def test_an_end_in_the_middle_of_a_frame_is_noticed_wherever_it_is(frame):
    data = frame_bytes(*frame)
    cuts = {0, 1, 3, 4, 5, len(data) // 2, len(data) - 21, len(data) - 20, len(data) - 1}
    for cut in sorted(cuts):
        ours, theirs = (Channel(connection) for connection in multiprocessing.Pipe())
        raw(ours, data[:cut])
        ours.close()
        with pytest.raises((EOFError, OSError)):
            theirs.receive(no_wait)
        theirs.close()


def test_frames_before_the_end_still_arrive(pipe):
    ours, theirs = pipe
    ours.send("one")
    ours.send("two", [b"part"])
    raw(ours, frame_bytes("three")[:-1])
    ours.close()
    assert theirs.receive(no_wait)[0] == "one"
    assert same(theirs.receive(no_wait), "two", [b"part"])
    with pytest.raises((EOFError, OSError)):
        theirs.receive(no_wait)


def test_sending_to_nobody_raises(pipe):
    ours, theirs = pipe
    theirs.close()
    with pytest.raises(OSError):  # noqa: PT011 - its text is the platform's
        ours.send("head", [b"x" * 1_000_000])


def test_an_end_while_a_large_frame_is_sent_raises(pipe, in_background):
    """The other end reads a little and goes away, as a process that is killed does."""
    ours, theirs = pipe

    def read_a_little():
        theirs._read()
        theirs.close()

    in_background(read_a_little)
    with pytest.raises(OSError):  # noqa: PT011 - its text is the platform's
        ours.send("head", [b"x" * 50_000_000])


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_waiting_may_end_the_reading(pipe, whole):
    """It is called before each read, and raises when the other end has ended without closing the pipe."""
    ours, theirs = pipe
    data = frame_bytes("head", [b"x" * 10])
    raw(ours, data * whole + data[:-1])
    calls = itertools.count()

    def wait():
        if next(calls) and not theirs.connection.poll(0):
            raise EOFError

    for _ in range(whole):
        assert theirs.receive(wait)[0] == "head"
    with pytest.raises(EOFError):
        theirs.receive(wait)


def test_waiting_is_not_called_for_what_is_there_already(pipe):
    """A wait for a frame that was read together with the one before would last for ever."""
    ours, theirs = pipe
    ours.send("one")
    ours.send("two")
    waits = []
    assert theirs.receive(lambda: waits.append(1))[0] == "one"
    assert theirs.receive(lambda: waits.append(2))[0] == "two"
    assert waits == [1]


# ---------------------------------------------------------------- marks


def test_marks_are_counted_since_the_last_look(pipe):
    ours, theirs = pipe
    assert theirs.count_marks() == 0
    for _ in range(3):
        ours.mark()
    assert theirs.count_marks() == 3
    assert theirs.count_marks() == 0


def test_as_many_marks_as_a_batch_has_calls_need_no_reader(pipe):
    """Twice as many, at least: a write blocks when a few hundred bytes that were sent one by one wait in a socket."""
    ours, theirs = pipe
    for _ in range(2 * processes._LARGEST_BATCH):
        ours.mark()
    assert theirs.count_marks() == 2 * processes._LARGEST_BATCH


def test_marks_are_counted_although_the_other_end_is_gone(pipe):
    ours, theirs = pipe
    for _ in range(3):
        ours.mark()
    ours.close()
    assert theirs.count_marks() == 3
    assert theirs.count_marks() == 0
