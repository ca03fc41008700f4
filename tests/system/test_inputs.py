"""Text that comes piece by piece from a pipe, against the whole decoded at once."""

import contextlib
import os
import random
import threading
import time

import pytest

from msh_mlx.errors import InputError
from msh_mlx.system.inputs import decode_text, text_pieces


def pieces_of(chunks, wait=lambda: None):
    """What is read from a pipe into which another thread writes the chunks, each when the one before was taken."""
    reading, writing = os.pipe()
    taken = threading.Semaphore(0)

    def write():
        with contextlib.suppress(BrokenPipeError):  # nobody reads on
            for chunk in chunks:
                os.write(writing, chunk)
                taken.acquire(timeout=0.01)  # a part of a letter gives no piece
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for piece in text_pieces(reading, "It", wait):
            taken.release()
            yield piece
    finally:
        os.close(reading)
        thread.join()


def split(rng, data):
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if begin < end]


def test_pieces_are_the_whole():
    rng = random.Random(5)
    for _ in range(60):
        text = "".join(rng.choice(["a", "é", "日", "\U0001f600", " ", "\n", "\ufeff"]) for _ in range(rng.randrange(6)))
        mark, encoding = rng.choice([(b"", "utf-8"), (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le")])
        data = mark + text.encode(encoding)
        assert "".join(pieces_of(split(rng, data))) == decode_text(data)


def test_a_piece_comes_at_once():
    waits = []
    pieces = text_pieces(*(pipe := os.pipe())[:1], "It", lambda: waits.append(time.monotonic()))
    os.write(pipe[1], b"a")  # which no mark begins with
    assert next(pieces) == "a"
    assert not waits
    os.write(pipe[1], "é".encode()[:1])
    timer = threading.Timer(0.3, os.write, (pipe[1], "é".encode()[1:]))
    timer.start()
    assert next(pieces) == "é"
    assert waits, "the caller was not asked meanwhile"
    timer.join()
    os.close(pipe[1])
    assert list(pieces) == []
    os.close(pipe[0])


@pytest.mark.parametrize("data", [b"\xff", b"one \xe9t", b"\xe9", b"\xef\xbb", b"\xff\xfea", b"\xff\xfe\x00\xd8"])
def test_other_encodings(data):
    for chunks in ([data], [data[:1], data[1:]] if len(data) > 1 else [data]):
        with pytest.raises(InputError, match="It is not text in UTF-8"):
            list(pieces_of(chunks))


def test_what_cannot_be_read(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(InputError, match="It cannot be read: Is a directory"):
        list(text_pieces(folder, "It", lambda: None))
    os.close(folder)


def test_what_is_raised_meanwhile_ends_the_reading():
    def stop():
        raise KeyboardInterrupt

    reading, writing = os.pipe()
    with pytest.raises(KeyboardInterrupt):
        next(text_pieces(reading, "It", stop))
    os.close(reading)
    os.close(writing)
