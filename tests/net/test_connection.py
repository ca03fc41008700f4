"""What one client sends to the server, good and bad, over real sockets, with the demo model."""

import asyncio
import time

import aiohttp
import numpy as np
import ogg
import pytest
from talker import FRAME, Talker
from test_opus import case, damaged, packets, stream
from test_server import FILE, GREEDY, digits, eventually, model, run, serving

from msh_mlx.conversation.session import Session
from msh_mlx.events import Said, Spoke
from msh_mlx.net.address import Address
from msh_mlx.net.messages import Audio, Error, Handshake
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
    while len(talker.heard.sound) < count * FRAME:
        assert await talker.receive(), talker.heard.error
    return talker.heard


def test_pages_with_large_headers_are_heard(model):
    """65 kB of tags, page by page: what is said to it is what is said to the same sound."""
    pages = case("tags66k.opus")
    pcm = np.concatenate([OpusDecoder().decode(b"".join(pages))])

    async def scenario():
        async with serving(model) as server:
            async with Talker(server.url, **FILE, **ASKS) as talker:
                await send_pages(talker, pages)
                first = await heard_frames(talker, len(pcm) // FRAME)
            await eventually(lambda: server.log)
            return first, server.log[0]

    heard, summary = run(scenario())
    assert len(heard.sound) == len(pcm) // FRAME * FRAME
    assert not heard.error
    assert summary["damaged_pages"] == 0


def test_a_damaged_page_is_counted_told_and_logged(model):
    """As much is answered as if nothing had been damaged."""

    async def scenario():
        async with serving(model) as server:
            async with Talker(server.url, **FILE, **ASKS) as talker:
                await send_pages(talker, case("bad_crc.opus"))
                heard = await heard_frames(talker, 72240 // FRAME)
                while not any("damaged_s" in values for values in heard.metadata):
                    assert await talker.receive()
            await eventually(lambda: server.log)
            return heard, server.log[0], server.errors()["pages"]

    heard, summary, counted = run(scenario())
    told = [values for values in heard.metadata if "damaged_s" in values][-1]
    assert (told["damaged_pages"], told["damaged_s"]) == (1, pytest.approx(0.98, abs=0.03))
    assert (summary["damaged_pages"], summary["damaged_s"]) == (1, told["damaged_s"])
    assert counted == 1


def test_a_channel_that_is_left_out_is_told_and_logged(model):
    async def scenario():
        async with serving(model) as server:
            async with Talker(server.url, **FILE, **ASKS) as talker:
                await send_pages(talker, case("stereo_opposite_phase.opus"))
                while not any("notice" in values for values in talker.heard.metadata):
                    assert await talker.receive(), talker.heard.error
            await eventually(lambda: server.log)
            return talker.heard.metadata, server.log[0]

    told, summary = run(scenario())
    (notice,) = [values["notice"] for values in told if "notice" in values]
    assert "in opposite phase" in notice
    assert summary["notes"] == notice


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
        (lambda: [b"\1\2" * 1920] * 40, "The audio is no Ogg stream: no page was found in "),
    ],
)
def test_what_cannot_be_decoded_gets_one_sentence(model, pages, said):
    """All of it has less than three seconds of sound."""

    async def scenario():
        async with serving(model) as server, Talker(server.url, **GREEDY) as talker:
            await talker.until(Handshake)
            for page in pages():
                if talker.ws.closed:
                    break
                await talker.send(Audio(page))
            while await talker.receive():
                pass
            return talker.heard

    heard = run(scenario())
    (error,) = heard.of(Error)
    assert error.text.startswith(said)
    assert heard.code == aiohttp.WSCloseCode.UNSUPPORTED_DATA


def test_a_page_that_is_lost_in_the_midst_keeps_the_time(model, digits):
    """The words behind it come in their steps."""
    pcm = digits[: 45 * FRAME]
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

    async def scenario():
        async with serving(model) as server:
            whole = await hear(server, pages)
            without = await hear(server, [*pages[:8], damaged(pages[8]), *pages[10:]])
            return whole, without

    whole, without = run(scenario())
    assert [text for _, text in whole] == [text for _, text in without] == [" four", " one"]
    assert all(abs(one - other) <= 1 for (one, _), (other, _) in zip(whole, without, strict=True))


def test_what_is_dropped_is_told_and_the_words_keep_their_times(model, digits, monkeypatch):
    """A model that stands still for a second while a client speaks: the client says so, and the words behind are not early."""
    step, steps = Session.step, []

    def slow_once(self, codes):
        steps.append(1)
        if len(steps) == 36:  # after two words; what is dropped is silence
            time.sleep(1.2)
        return step(self, codes)

    pcm = digits[: 76 * FRAME].reshape(-1, FRAME)
    told = []

    def client(port, realtime):
        query = {name: str(value) for name, value in {**GREEDY, **ASKS, "realtime": int(realtime)}.items()}
        address = Address("127.0.0.1", port, query=query)
        return list(answers(address, iter(pcm), realtime=realtime, notify=told.append, check=lambda: None))

    async def scenario():
        async with serving(model) as server:
            expected = await asyncio.to_thread(client, server.port, False)
            assert told == []
            monkeypatch.setattr(Session, "step", slow_once)
            return expected, await asyncio.to_thread(client, server.port, True)

    expected, said = run(scenario())
    assert [sum(isinstance(event, Said) for event in each) for each in (said, expected)] == [len(pcm)] * 2
    places = [[(event.index, event.text) for event in each if isinstance(event, Spoke)] for each in (expected, said)]
    assert [text for _, text in places[0]] == [text for _, text in places[1]] == [" four", " one", " three"]
    for (one, _), (other, _) in zip(*places, strict=True):
        assert abs(one - other) <= 2
    assert told[-1].endswith(" s of the recording.")
    assert "was too slow and did not hear" in told[-1]
