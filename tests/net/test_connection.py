"""What one client sends to the server, good and bad, over real sockets, with the demo model."""

import asyncio
import time

import aiohttp
import numpy as np
import ogg
import pytest
from talker import Talker
from test_opus import case, damaged, packets, stream
from test_server import FILE, GREEDY, digits, eventually, model, serving

from msh_mlx.conversation.session import step_together
from msh_mlx.events import Said, Spoke
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.net.address import Address
from msh_mlx.net.connection import Limits, NetworkSource
from msh_mlx.net.messages import Audio, Error, Handshake, encode
from msh_mlx.net.opus import OpusDecoder, OpusEncoder
from msh_mlx.net.upload import answers
from msh_mlx.sound.ogg import OggSplitter

__all__ = ["digits", "model"]

ASKS = {"stats": 1}


async def send_pages(talker, pages):
    await talker.until(Handshake)
    for page in pages:
        await talker.send(Audio(page))


async def heard_frames(talker, count):
    while len(talker.heard.sound) < count * FRAME_SIZE:
        assert await talker.receive(), talker.heard.error
    return talker.heard


async def refused(talker, messages):
    """Send bytes as long as the server listens, wait until it closes the connection, and return its one error."""
    await talker.until(Handshake)
    for message in messages:
        if talker.ws.closed:
            break
        await talker.ws.send_bytes(message)
    while await talker.receive():
        pass
    (error,) = talker.heard.of(Error)
    assert talker.heard.code == aiohttp.WSCloseCode.UNSUPPORTED_DATA
    return error.text


async def test_pages_with_large_headers_are_heard(model):
    """65 kB of tags, page by page: what is said to it is what is said to the same sound."""
    pages = case("tags66k.opus")
    pcm = np.concatenate([OpusDecoder().decode(b"".join(pages))])
    async with serving(model) as server:
        async with Talker(server.url, **FILE, **ASKS) as talker:
            await send_pages(talker, pages)
            heard = await heard_frames(talker, len(pcm) // FRAME_SIZE)
        await eventually(lambda: server.log)
    assert len(heard.sound) == len(pcm) // FRAME_SIZE * FRAME_SIZE
    assert not heard.error
    assert server.log[0]["damaged_pages"] == 0


async def test_a_damaged_page_is_counted_told_and_logged(model):
    """As much is answered as if nothing had been damaged."""
    async with serving(model) as server:
        async with Talker(server.url, **FILE, **ASKS) as talker:
            await send_pages(talker, case("bad_crc.opus"))
            heard = await heard_frames(talker, 72240 // FRAME_SIZE)
            while not any("damaged_s" in values for values in heard.metadata):
                assert await talker.receive()
        await eventually(lambda: server.log)
    (summary,) = server.log
    told = [values for values in heard.metadata if "damaged_s" in values][-1]
    assert (told["damaged_pages"], told["damaged_s"]) == (1, pytest.approx(0.98, abs=0.03))
    assert (summary["damaged_pages"], summary["damaged_s"]) == (1, told["damaged_s"])
    assert server.errors()["pages"] == 1


async def test_a_channel_that_is_left_out_is_told_and_logged(model):
    async with serving(model) as server:
        async with Talker(server.url, **FILE, **ASKS) as talker:
            await send_pages(talker, case("stereo_opposite_phase.opus"))
            while not any("notice" in values for values in talker.heard.metadata):
                assert await talker.receive(), talker.heard.error
        await eventually(lambda: server.log)
    (notice,) = [values["notice"] for values in talker.heard.metadata if "notice" in values]
    assert "in opposite phase" in notice
    assert server.log[0]["notes"] == notice


def bare():
    return packets(80)


def surround():
    head = b"OpusHead" + bytes([1, 6, 0, 0, 0x80, 0xBB, 0, 0, 0, 0, 1, 4, 2, 0, 4, 1, 2, 3, 5])
    return [ogg.whole([head], flags=2), *stream(packets(75))[1:]]


def headless():
    return stream(packets(75))[2:]


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        (lambda: case("live_vorbis.ogg"), "The audio in Ogg is Vorbis; send Opus."),
        (surround, "The audio is Opus of 6 channels; send one, or two."),
        (bare, "The audio comes as bare packets of Opus; send them in Ogg pages."),
        (headless, "The audio has no beginning: its header (OpusHead) did not come; begin a new stream."),
        (lambda: [b"\x1aE\xdf\xa3" + bytes(100)], "The audio is WebM or Matroska; send Opus in Ogg pages."),
        (lambda: [b"RIFF\0\0\0\0WAVE" + bytes(3840)] + [bytes(3840)] * 10, "The audio is WAV; send Opus in Ogg pages."),
        (lambda: [b"\1\2" * 1920] * 40, "The audio is not an Ogg stream: no page was found in "),
    ],
)
async def test_what_cannot_be_decoded_gets_one_sentence(model, pages, said):
    """All of it has less than three seconds of sound."""
    async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
        assert (await refused(talker, (encode(Audio(page)) for page in pages()))).startswith(said)


async def test_a_page_that_is_lost_in_the_midst_keeps_the_time(model, digits):
    """The words behind it come in their steps."""
    pcm = digits[: 45 * FRAME_SIZE]
    encoder = OpusEncoder()
    pages = [page.data for page in OggSplitter().feed(encoder.encode(pcm))]

    async def hear(server, sent):
        async with Talker(server.url, **FILE) as talker:
            await send_pages(talker, sent)
            await heard_frames(talker, 44)
            words, frames = [], 0
            for message in talker.heard.messages:
                if isinstance(message, Audio):
                    frames += 1
                elif text := getattr(message, "text", None):
                    words.append((frames, text))
            return words

    async with serving(model) as server:
        whole = await hear(server, pages)
        without = await hear(server, [*pages[:8], damaged(pages[8]), *pages[10:]])
    assert [text for _, text in whole] == [text for _, text in without] == [" four", " one"]
    assert all(abs(one - other) <= 1 for (one, _), (other, _) in zip(whole, without, strict=True))


async def test_what_is_dropped_is_told_and_the_words_keep_their_times(model, digits, monkeypatch):
    """A model that stands still for a second while a client speaks: the client says so, and the words behind are not early."""
    steps = []

    def slow_once(together):
        steps.append(1)
        if len(steps) == 36:  # after two words; what is dropped is silence
            time.sleep(1.2)
        return step_together(together)

    pcm = digits[: 76 * FRAME_SIZE].reshape(-1, FRAME_SIZE)
    told = []

    def client(port, realtime):
        query = {name: str(value) for name, value in {**GREEDY, **ASKS, "realtime": int(realtime)}.items()}
        address = Address("127.0.0.1", port, query=query)
        return list(answers(address, iter(pcm), realtime=realtime, notify=told.append, check=lambda: None))

    async with serving(model) as server:
        expected = await asyncio.to_thread(client, server.port, False)
        assert told == []
        monkeypatch.setattr("msh_mlx.conversation.shared.step_together", slow_once)
        said = await asyncio.to_thread(client, server.port, True)
    assert [sum(isinstance(event, Said) for event in each) for each in (said, expected)] == [len(pcm)] * 2
    places = [[(event.index, event.text) for event in each if isinstance(event, Spoke)] for each in (expected, said)]
    assert [text for _, text in places[0]] == [text for _, text in places[1]] == [" four", " one", " three"]
    for (one, _), (other, _) in zip(*places, strict=True):
        assert abs(one - other) <= 2
    assert told[-1].endswith(" s of the recording.")
    assert "was too slow and did not hear" in told[-1]


# ---- sound that comes in long pieces, or at once -------------------------------------------------------------------------


def spoken(pcm):
    """Sound in packets of 40 ms."""
    return [packet for page in OggSplitter().feed(OpusEncoder().encode(pcm)) for packet in page.packets]


def long_pages(pcm, seconds, channels):
    """A stream as programs write it that put so many seconds on a page."""
    begin, *pages = stream(spoken(pcm), round(seconds / 0.04))
    if channels == 2:
        head = ogg.HEAD[:9] + bytes([channels]) + ogg.HEAD[10:]
        begin = ogg.whole([head], flags=2)
    return [begin, *pages]


async def heard_in(model, pieces, words, *, every=0.0):
    """Send pieces as published clients do, one each `every` seconds, until the model has said all words."""
    async with serving(model) as server, Talker(server.url, stats=None, **GREEDY) as talker:
        await talker.until(Handshake)

        async def say():
            for piece in pieces:
                await talker.send(Audio(piece))
                await asyncio.sleep(every)

        sending = asyncio.ensure_future(say())
        try:
            while talker.heard.text.split() != words:
                assert await talker.receive(), talker.heard.error
        finally:
            sending.cancel()


@pytest.mark.parametrize("channels", [1, 2])
async def test_live_sound_in_long_pages_is_heard(model, digits, channels):
    """At speaking rate: a page comes when it is full, and nothing on it is late."""
    for seconds in (1.0, 0.52):
        pages = long_pages(digits[: 50 * FRAME_SIZE], seconds, channels)
        await heard_in(model, pages, ["four", "one"], every=seconds)


@pytest.mark.parametrize("together", [False, True])
async def test_live_sound_that_comes_at_once_is_heard(model, digits, together):
    """A file that is sent at once, without realtime=0: page by page, or in one message."""
    pages = long_pages(digits[: 76 * FRAME_SIZE], 0.52, 1)
    pieces = [b"".join(pages)] if together else pages
    await heard_in(model, pieces, ["four", "one", "three"])


@pytest.mark.parametrize("name", ["tags66k.opus", "bad_crc.opus"])
async def test_files_that_come_at_once_without_a_query_are_answered(model, name):
    """Their pages hold a second each."""
    async with serving(model) as server:
        async with Talker(server.url, stats=None) as talker:
            await send_pages(talker, case(name))
            await heard_frames(talker, 72240 // FRAME_SIZE)
        await eventually(lambda: server.log)
    assert server.log[0]["dropped_s"] == 0


class Arrivals:
    """Sound from the network, by a clock that is moved by hand, for a model that hears twice as fast as one speaks."""

    def __init__(self):
        self.now = 0.0
        self.source = NetworkSource(60.0, lambda: self.now)

    def come(self, *pieces):
        """Let pieces of so many seconds come together."""
        for seconds in pieces:
            self.source.write(np.zeros(round(seconds * SAMPLE_RATE), np.float32))

    def wait(self, seconds):
        """Let time pass while the model hears."""
        for _ in range(round(seconds / 0.08)):
            self.now += 0.08
            for _ in range(2):
                self.source.read(FRAME_SIZE, 0)

    @property
    def late(self):
        return self.source.backlog() - self.source.early(0.0)


def test_what_comes_together_again_and_again_is_not_late():
    """Ten messages every 0.8 s, for ten minutes, from a clock that is a little fast."""
    arrivals = Arrivals()
    for _ in range(750):
        arrivals.come(*[0.0801] * 10)
        assert arrivals.late <= 0.01
        arrivals.wait(0.8)
    assert arrivals.source.early() < 0.2


def test_what_comes_at_once_from_the_beginning_is_not_late():
    arrivals = Arrivals()
    arrivals.come(*[0.02] * 250)
    for _ in range(50):
        assert arrivals.late <= 0.01
        arrivals.wait(0.08)


@pytest.mark.parametrize("piece", [0.02, 0.08, 0.4])
def test_what_was_held_up_on_its_way_is_late(piece):
    """All but a piece of three seconds that a network gives after three seconds of nothing; and then all is as before."""
    arrivals = Arrivals()
    for _ in range(round(2 / piece)):
        arrivals.come(piece)
        arrivals.now += piece
        while arrivals.source.read(FRAME_SIZE, 0) is not None:
            pass
    arrivals.now += 3
    arrivals.come(*[piece] * round(3 / piece))
    assert 3 - 2 * piece - 0.08 < arrivals.late <= 3
    arrivals.source.trim(arrivals.source.early())
    for _ in range(5):
        arrivals.wait(0.8)
        arrivals.come(*[0.08] * 10)
    assert arrivals.late <= 0.1


def test_what_comes_after_a_pause_begins_anew():
    arrivals = Arrivals()
    arrivals.come(1.0)
    arrivals.wait(5)
    arrivals.source.trim(0)
    arrivals.come(*[0.08] * 30)
    assert arrivals.late <= 0


async def test_what_is_dropped_is_in_the_log_for_clients_that_hear_nothing_of_it(model, digits, monkeypatch):
    """Published clients take no message that would not stand in the conversation."""

    def slow(together):
        time.sleep(0.15)
        return step_together(together)

    monkeypatch.setattr("msh_mlx.conversation.shared.step_together", slow)
    async with serving(model) as server:
        async with Talker(server.url, stats=None) as talker:
            await talker.until(Handshake)
            await talker.say(digits[: 25 * FRAME_SIZE], pause=0.08)
        await eventually(lambda: server.log)
    (summary,) = server.log
    assert summary["dropped_s"] > 0
    assert f"{summary['dropped_s']:.1f} s of the sound came too late and were not heard" in summary["notes"]
    assert len(talker.heard.metadata) == 1


# ---- damaged pages -------------------------------------------------------------------------------------------------------


async def test_damage_in_the_midst_does_not_end_a_conversation(model, digits):
    """Two seconds of page after page that cannot be read: silence, and the words behind it are heard."""
    said = spoken(digits[: 76 * FRAME_SIZE])
    pages = stream([*said[:76], *said[:50], *said[76:]])
    async with serving(model) as server:
        async with Talker(server.url, **FILE, **ASKS) as talker:
            await send_pages(talker, [*pages[:78], *map(damaged, pages[78:128]), *pages[128:]])
            await heard_frames(talker, 100)
        await eventually(lambda: server.log)
    (summary,) = server.log
    assert talker.heard.text.split() == ["four", "one", "three"]
    assert (summary["damaged_pages"], summary["damaged_s"]) == (50, pytest.approx(2.0))


async def test_wrong_checksums_everywhere_are_said(model):
    async with serving(model) as server, Talker(server.url, stats=None) as talker:
        error = await refused(talker, [encode(Audio(damaged(page))) for page in stream(packets(60))])
    assert error.startswith("The checksums of the audio's pages are wrong")


async def test_damaged_pages_keep_no_connection(model):
    """Neither as they come, nor because the model answers the silence in their place."""
    pages = stream(packets(100))
    async with serving(model, limits=Limits(idle=1.0)) as server, Talker(server.url, stats=None) as talker:
        await send_pages(talker, pages[:6])

        async def spoil():
            for page in pages[6:]:
                await talker.send(Audio(damaged(page)))
                await asyncio.sleep(0.1)

        spoiling = asyncio.ensure_future(spoil())
        try:
            while await talker.receive():
                pass
        finally:
            spoiling.cancel()
    assert talker.heard.error == "No sound came for 1 s, so the conversation is over."
    assert len(talker.heard.sound) > 4 * FRAME_SIZE


# ---- sound that does not come as sound -----------------------------------------------------------------------------------


def typed(kind, pieces):
    return [bytes([kind]) + piece for piece in pieces]


UNTYPED = "Sound comes without its type: a message with sound is the byte 1 and then Ogg pages."


@pytest.mark.parametrize(
    ("messages", "said", "at_most"),
    [
        (stream(packets(75)), UNTYPED, 1),
        *(
            (typed(kind, stream(packets(75))), f"Sound comes as a message of type {kind}; its type is 1.", 1)
            for kind in (0, 2, 3, 9)
        ),
        ([b"\x78" + piece for piece in packets(75)], "Only messages without a meaning here have come", 75),
        (typed(9, packets(75)), "Only messages without a meaning here have come", 75),
        (typed(0, packets(75)), "Only messages without a meaning here have come", 75),
        (typed(6, packets(75)), "Only messages without a meaning here have come", 75),
        ([bytes(4) + bytes(1920)] * 4, "Only messages without a meaning here have come", 4),
    ],
)  # fmt: skip
async def test_sound_that_does_not_come_as_sound_gets_one_sentence(model, messages, said, at_most, monkeypatch):
    """At once where it is certain, and else if no sound follows within two seconds."""
    monkeypatch.setattr("msh_mlx.net.connection._NO_SOUND", 0.2)
    async with serving(model) as server, Talker(server.url, stats=None) as talker:
        assert (await refused(talker, messages[:at_most])).startswith(said)


async def test_messages_that_mean_nothing_are_passed_over(model, digits):
    """Of other types, or without anything in them: as many as one likes, as long as sound follows soon."""
    others = [b"", b"\x00" + bytes(8), b"\x02word", b"\x04{}", b"\x06", b"\x09", b"\xff\x00", b"\x03\x09", b"\x03\x01"]
    async with serving(model) as server, Talker(server.url, **FILE) as talker:
        await talker.until(Handshake)
        encoder = OpusEncoder()
        for begin in range(0, 20 * FRAME_SIZE, FRAME_SIZE):
            for other in others * (1 if begin else 4):
                await talker.ws.send_bytes(other)
            await talker.send(Audio(encoder.encode(digits[begin : begin + FRAME_SIZE])))
        assert not (await heard_frames(talker, 19)).error
