"""Conversations with a language model on the server: the demo's ears and mouth, and a language model whose answers are known.

The client's microphone and loudspeaker go by one clock, that of the sound: for each frame that comes, it sends one.
"""

import asyncio
import contextlib
import gc
import json
import threading
from functools import partial

import hosts
import numpy as np
import pytest
import soundfile
from engines import demo_voices
from paths import DIGITS
from talker import Talker
from test_chat_completions import ADD, ODD, Server, breaks_off, delta, piece, say, stream, turns
from test_server import eventually, get

from msh_mlx import Transcriber
from msh_mlx.cli import server_program
from msh_mlx.conversation import cascade
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.served_cascade import ServedCascade, SharedCascade
from msh_mlx.conversation.shared_speaker import SharedSpeaker
from msh_mlx.conversation.shared_transcriber import SharedTranscriber
from msh_mlx.conversation.tools import Tools
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import find_demo
from msh_mlx.net.audio_service import AudioService
from msh_mlx.net.chat_completions import ChatCompletions, LanguageServer
from msh_mlx.net.messages import Audio, Control, Handshake
from msh_mlx.net.opus import OpusEncoder
from msh_mlx.net.talking_models import LanguageModel

SOUND = soundfile.read(DIGITS, dtype="float32")[0]
FOUR_ONE = SOUND[: round(2.1 * SAMPLE_RATE)]
THREE = SOUND[round(2.1 * SAMPLE_RATE) : 6 * SAMPLE_RATE]
ONSET = int(np.argmax(np.abs(FOUR_ONE) > 0.01)) / SAMPLE_RATE
NUMBERS = "one two three four five six seven eight nine"
VOICES = "calm", "brisk"
LOUD = 0.01
FADED = 0.25  # seconds from the user's voice to the end of the other one, with what is on its way
PATIENCE = 10.0
SILENCE = np.zeros(FRAME_SIZE, np.float32)


@pytest.fixture(scope="module")
def parts():
    return load_parts(find_demo("transcription"), engine="native")


@pytest.fixture(scope="module")
def audio(parts):
    """The models for all tests. The ears have two places."""
    transcriber, speaker = SharedTranscriber(rows=2), SharedSpeaker()
    transcriber.load(lambda: parts)
    speaker.load(lambda: demo_voices("native"))
    yield AudioService(transcriber, "demo-stt", speaker, "demo-tts", "small")
    transcriber.close()
    speaker.close()


@contextlib.asynccontextmanager
async def serving(audio, llm, *options, silent=PATIENCE, tools=None, **shared):
    """A server as `msh-mlx serve --llm` makes it, which asks `llm`."""
    args = hosts.checked("--demo", "--llm", llm.url, *options)
    settings = server_program.settings(args, find_demo())
    with contextlib.closing(ChatCompletions(LanguageServer(llm.url, "small"), tools, silent=silent)) as thinker:
        cascade = SharedCascade(audio.transcriber, audio.speaker, 2, thinker, **shared)
        model = LanguageModel("small", cascade, settings.defaults, ("small", "", "here"))
        async with hosts.serving_models([model], settings, audio) as server:
            yield server
    await eventually(lambda: audio.transcriber.figures() == audio.speaker.figures() == (0, 0))


class Room(Talker):
    """A client with a clock. `user` are the frames that it sent, as many as came."""

    def __init__(self, server, **parameters):
        super().__init__(server.url, **parameters)
        self.user, self._queue, self._encoder = [], [], OpusEncoder()

    async def __aenter__(self):
        await super().__aenter__()
        assert await self.until(Handshake)
        return self

    def speak(self, pcm):
        """Say something from now on, and then nothing."""
        self._queue += list(pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE].reshape(-1, FRAME_SIZE))

    async def dump(self, pcm):
        """Send something at once."""
        for frame in pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE].reshape(-1, FRAME_SIZE):
            await self.send(Audio(self._encoder.encode(frame)))

    async def listen(self, true):
        """Go on until something is true, a second of sound at least."""

        async def go_on():
            while not true():
                if isinstance(await self.receive(), Audio):
                    frame = self._queue.pop(0) if self._queue else SILENCE
                    self.user.append(frame)
                    await self.send(Audio(self._encoder.encode(frame)))

        await asyncio.wait_for(go_on(), 3 * PATIENCE)

    async def pause(self, seconds):
        end = self.seconds + seconds
        await self.listen(lambda: self.seconds >= end)

    @property
    def seconds(self):
        return len(self.user) * FRAME_SECONDS

    def told(self, name):
        return [values[name] for values in self.heard.metadata if name in values]

    def loud(self, begin, end):
        """Whether there is a voice between two seconds."""
        part = self.heard.sound[round(begin * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        return float(np.sqrt(np.mean(part**2))) > LOUD

    def last_loud(self, end):
        """When there was a voice last before some second."""
        return float(np.flatnonzero(np.abs(self.heard.sound[: round(end * SAMPLE_RATE)]) > LOUD)[-1]) / SAMPLE_RATE


def words(parts, sound):
    ears = Transcriber(parts.lm, parts.mimi, parts.tokenizer)
    return [word.text for word in ears.push(sound) + ears.flush()]


def spoken(audio, voice, text):
    """What a voice makes of a text, frame by frame: it speaks greedily, and so always in the same way."""
    return list(audio.speaker.voices.speakers[voice].say(text))


def sound_of(frames):
    return np.concatenate([frame.pcm for frame in frames])


def likeness(sound, other):
    """How alike two sounds are at best, from 0 to 1, wherever the second one lies in the first."""
    size = 1 << (len(sound) + len(other)).bit_length()
    products = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(other, size)), size)[: len(sound)]
    return float(products.max() / np.sqrt(np.square(sound).sum() * np.square(other).sum()))


# ---- /api/chat -------------------------------------------------------------------------------------------------------------


async def test_what_is_said_is_answered(audio, parts):
    with Server(stream("two ", "seven ")) as llm:
        async with serving(audio, llm, instructions="Be brief.") as server, Room(server, text_seed=3) as room:
            room.speak(FOUR_ONE)
            await room.listen(lambda: room.heard.text == " two seven")
            await room.pause(1)
            voices = (await get(f"{server.url}/api/voices"))[1]
    assert llm.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "four one"},
    ]
    offer = {"prompt": True, "voices": ["brisk", "calm"], "voice": "calm", "sampling": False}
    assert json.loads(voices) == {**offer, "models": ["small"], "model": "small"}
    assert (room.told("heard"), room.told("turn")) == (["four", "one"], ["four one"])
    assert words(parts, room.heard.sound) == ["two", "seven"]
    assert len(room.heard.sound) == len(room.user) * FRAME_SIZE  # silence, too, is sent
    assert (room.told("lm_model_file"), room.told("ignored")) == (["small"], [["text_seed"]])
    (summary,) = (event for event in server.log if event["event"] == "session")
    assert (summary["end"], summary["words"]) == ("closed", 2)


async def test_tools_are_called_and_shown(audio):
    calls = stream(delta(piece('{"a": 4, "b": 1}', "add", index=0, id="c1")))
    with Server(turns(calls, stream("five "))) as llm:
        async with serving(audio, llm, tools=Tools([ADD])) as server, Room(server) as room:
            room.speak(FOUR_ONE)
            await room.listen(lambda: room.heard.text == " five")
    (call,) = room.told("tool")
    assert call.pop("seconds") < PATIENCE
    assert call == {"name": "add", "arguments": '{"a": 4, "b": 1}', "result": "5", "failed": False}
    assert [message["role"] for message in llm.bodies[1]["messages"]] == ["user", "assistant", "tool"]


async def test_who_only_listens_is_told_that_the_words_are_over(audio, monkeypatch):
    monkeypatch.setattr(cascade, "_LISTENING", {"three"})
    monkeypatch.setattr(cascade, "_INTERRUPTED", 2.0)  # the demo's voice is slow
    with Server(stream(*(f"{word} " for word in 2 * NUMBERS.split()))) as llm:
        async with serving(audio, llm) as server, Room(server) as room:
            await room.dump(FOUR_ONE)
            await room.listen(lambda: "two" in room.heard.text)
            room.speak(THREE)
            await room.listen(lambda: len(room.told("turn")) == 2)
    assert room.told("turn") == ["four one", "three"]
    assert len(llm.bodies) == 1


async def test_who_interrupts_is_let_speak(audio):
    # The words come faster than they are said, so that there are no gaps in the voice.
    with Server(stream(*(f"{word} " for word in 9 * NUMBERS.split()), pause=0.1)) as llm:
        async with serving(audio, llm) as server, Room(server) as room:
            await room.dump(FOUR_ONE)
            await room.listen(lambda: "three" in room.heard.text)
            begin = room.seconds + ONSET
            room.speak(FOUR_ONE)
            await room.listen(lambda: len(llm.bodies) == 2)
            assert await asyncio.to_thread(llm.gone.wait, PATIENCE)  # the request has ended
            end = room.seconds
    kept = llm.bodies[1]["messages"][1]["content"].split()
    assert 3 <= len(kept) <= 5
    assert kept == NUMBERS.split()[: len(kept)]
    assert room.heard.text.split()[: len(kept)] == kept
    assert room.loud(begin - 0.4, begin)
    assert room.last_loud(end) - begin < FADED
    assert room.told("hush")[0] is True  # what is still on its way to the loudspeaker is not to be heard
    # What was heard is what the voice says of all this, up to where it stops; and its words are those that are kept.
    voice = spoken(audio, "calm", " ".join(3 * NUMBERS.split()))
    heard, sound = room.heard.sound[: round(room.last_loud(end) * SAMPLE_RATE)], sound_of(voice)
    first, at = (int(np.argmax(np.abs(each) > LOUD)) for each in (heard, sound))
    stops = (at + len(heard) - first) / SAMPLE_RATE
    assert likeness(heard, sound[: round(stops * SAMPLE_RATE)]) > 0.9
    assert len(kept) - sum(word.start < stops for each in voice for word in each.words) in (0, 1)


async def test_after_a_short_noise_the_answer_goes_on_where_it_was_heard_last(audio, parts):
    """What clients have silenced is said again: two frames."""
    rng = np.random.default_rng(1)
    noise = (0.2 * rng.standard_normal(round(0.16 * SAMPLE_RATE))).astype(np.float32)
    with Server(stream(*(f"{word} " for word in NUMBERS.split()))) as llm:
        async with serving(audio, llm) as server, Room(server) as room:
            await room.dump(FOUR_ONE)
            await room.listen(lambda: "three" in room.heard.text)
            room.speak(noise)
            await room.listen(lambda: "nine" in room.heard.text)
            await room.pause(1)
    assert len(llm.bodies) == 1
    assert room.heard.text.split() == NUMBERS.split()
    assert len(room.told("hush")) == 1
    frames = room.heard.sound.reshape(-1, FRAME_SIZE)
    said = [frame for frame in frames if np.abs(frame).max() > LOUD]
    once = [each for each in spoken(audio, "calm", NUMBERS) if np.abs(each.pcm).max() > LOUD]
    assert len(said) - len(once) in (1, 2, 3)  # a coder smears the edges


async def test_a_server_that_breaks_off_or_is_gone_is_told_and_asked_again_when_it_is_back(audio):
    async with contextlib.AsyncExitStack() as stack:
        with Server(breaks_off) as llm:
            server = await stack.enter_async_context(serving(audio, llm))
            room = await stack.enter_async_context(Room(server))
            await room.dump(FOUR_ONE)
            await room.listen(lambda: room.told("notice"))
        await room.dump(FOUR_ONE)
        await room.listen(lambda: len(room.told("notice")) == 2)
        with Server(stream("six "), port=llm.port) as back:
            await room.dump(FOUR_ONE)
            await room.listen(lambda: "six" in room.heard.text)
    broken, gone = room.told("notice")
    assert broken.startswith(f"The connection to the language model at {llm.url} broke off")
    assert gone == f"Nothing answers at {llm.url}; start the language model's server."
    assert back.bodies[0]["messages"][-1]["content"] == "four one four one"


@pytest.mark.parametrize(
    ("handle", "sentence"),
    [
        (
            stream("one ", pause=3.0),
            "The language model at URL said nothing for too long; ask again, or take a smaller model.",
        ),
        (say(hello="there"), ODD),
        (say(401), "The server URL refuses the key (401); give its key in MSH_LLM_KEY."),
    ],
    ids=["slow", "nonsense", "key"],
)
async def test_what_is_wrong_with_the_server_is_told(audio, handle, sentence):
    with Server(handle) as llm:
        async with serving(audio, llm, silent=0.5) as server, Room(server) as room:
            await room.dump(FOUR_ONE)
            await room.listen(lambda: room.told("notice"))
            await room.pause(0.5)  # it goes on
    assert room.told("notice") == [sentence.replace("URL", llm.url)]
    assert room.heard.error == ""


async def test_conversations_do_not_mix(audio):
    """Each has its own system prompt, history and voice."""

    async def answer(request):
        (system,) = (each["content"] for each in llm.bodies[-1]["messages"] if each["role"] == "system")
        return await stream(f"{system} ", pause=0.05)(request)

    async def talk(server, system, voice, pause):
        async with Room(server, text_prompt=system, voice_prompt=voice) as room:
            await room.pause(pause)
            await room.dump(FOUR_ONE)
            await room.listen(lambda: len(room.heard.text.split()) == len(system.split()))
            await room.pause(0.5)
            return room

    systems = "one two three four", "nine eight seven six"
    with Server(answer) as llm:
        async with serving(audio, llm, "--sessions", "2") as server:
            rooms = await asyncio.gather(*map(partial(talk, server), systems, VOICES, (0.1, 0.3)))
    for number, (room, system) in enumerate(zip(rooms, systems, strict=True)):
        assert room.heard.text == f" {system}"
        assert room.told("turn") == ["four one"], server.log
        likenesses = [
            likeness(room.heard.sound, sound_of(spoken(audio, *each))) for each in zip(VOICES, systems, strict=True)
        ]
        assert max(likenesses) == likenesses[number]
        assert likenesses[number] > 0.9
    assert [len(body["messages"]) for body in llm.bodies] == [2, 2]


async def test_a_restart_begins_anew(audio):
    with Server(stream(*(f"{word} " for word in NUMBERS.split()))) as llm:
        async with serving(audio, llm) as server, Room(server) as room:
            await room.dump(FOUR_ONE)
            await room.listen(lambda: "two" in room.heard.text)
            await room.send(Control.RESTART)
            assert await room.until(Handshake)
            said, seconds = room.heard.text, len(room.heard.sound) / SAMPLE_RATE
            await room.pause(1)
            assert room.heard.text == said
            assert not room.loud(seconds, seconds + 0.9)
            await room.dump(FOUR_ONE)
            await room.listen(lambda: len(llm.bodies) == 2)
    assert llm.bodies[1]["messages"] == [{"role": "user", "content": "four one"}]


async def test_there_are_as_many_conversations_as_the_ears_have_places(audio):
    """What a conversation had is free when it is over."""

    def threads():
        names = {thread.name for thread in threading.enumerate()}
        return names & {"msh-model", "msh-mouth", "msh-clock"}

    def kept():
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, ServedCascade)]

    with Server(stream("two ")) as llm:
        async with serving(audio, llm, "--sessions", "9") as server:
            assert server.places()["places"] == 2
            async with Room(server), Room(server):
                third = Talker(server.url)
                async with third:
                    await third.receive()
                    assert third.heard.metadata == [{"waiting": 1}]
                    assert audio.transcriber.figures() == (2, 0)
            async with Room(server) as room:
                await room.dump(FOUR_ONE)
                await room.listen(lambda: "two" in room.heard.text)
                assert threads() == {"msh-model", "msh-mouth", "msh-clock"}
            await eventually(lambda: not threads())
            await eventually(lambda: not kept())


def test_there_is_room_for_as_many_as_are_heard_in_time():
    """60 of the 80 ms are there."""
    shared = SharedCascade(SharedTranscriber(rows=4), SharedSpeaker(), 4, None)
    assert [shared.has_room(others) for others in range(5)] == [True, True, True, True, False]
    assert (shared.places(0, most=9), shared.places(2, most=3)) == (4, 3)
    for _ in range(250):
        shared.transcriber.frames.add(0.025)
    assert [shared.has_room(others) for others in range(3)] == [True, True, False]
    assert (shared.places(0, most=9), shared.places(3, most=9)) == (2, 3)
    for _ in range(250):
        shared.transcriber.frames.add(0.2)
    assert shared.has_room(0)


async def test_it_speaks_up_in_a_silence(audio):
    with Server(stream("six ")) as llm:
        async with serving(audio, llm, speak_up=0.5) as server, Room(server) as room:
            await room.listen(lambda: "six" in room.heard.text)
    assert llm.bodies[0]["messages"] == [{"role": "user", "content": "..."}]
    assert room.told("turn") == []


async def test_who_leaves_in_the_middle_ends_the_request(audio):
    with Server(stream(*(f"{word} " for word in NUMBERS.split()), pause=0.3)) as llm:
        async with serving(audio, llm) as server:
            async with Room(server) as room:
                await room.dump(FOUR_ONE)
                await room.listen(lambda: "two" in room.heard.text)
            assert await asyncio.to_thread(llm.gone.wait, PATIENCE)
            assert (await get(f"{server.url}/health"))[0] == 200


async def test_voices_that_are_not_there_are_refused(audio):
    with Server() as llm:
        async with serving(audio, llm) as server:
            status, said, _ = await get(f"{server.url}/api/chat?voice_prompt=nobody")
    assert (status, said) == (400, "There is no voice 'nobody' here; there are brisk and calm.\n")
