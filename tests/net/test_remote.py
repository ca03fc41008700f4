"""Conversations with servers of all kinds, on the loopback: with ends that do what a test wants."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from published import LAG, Server, Voice, published, replay, said_by, send, sounds
from test_pipeline import Reel, Tape, eventually

from msh_mlx.conversation.recordings import BrokenOffError
from msh_mlx.errors import InputError, MshError, WriteError, write_error
from msh_mlx.events import (
    Dropped,
    Failed,
    Heard,
    HeardWord,
    Loading,
    Notice,
    Ready,
    Said,
    Spoke,
    SpokeWord,
    Turned,
    Word,
)
from msh_mlx.format import FRAME_SECONDS, FRAME_SIZE
from msh_mlx.net import remote, upload
from msh_mlx.net.address import Address
from msh_mlx.net.messages import Audio, Control, Error, Handshake, MetaData, Ping, Text, decode, encode
from msh_mlx.net.opus import OpusDecoder, OpusEncoder
from msh_mlx.net.remote import Remote
from msh_mlx.net.tls import folder_fingerprint, known_file, server_context
from msh_mlx.net.upload import answers

PATIENT = 10  # seconds, against hanging


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def quick(monkeypatch):
    """No long pauses between attempts."""
    monkeypatch.setattr(remote, "_PAUSES", (0.05, 0.1))


class Run:
    """A conversation with a server, and what came of it."""

    def __init__(self, port, tape=None, *, secure=False, query=(), **options):
        self.events = []
        self.tape, self.reel = tape or Tape(), Reel()
        address = Address("127.0.0.1", port, secure, query=dict(query))
        self.remote = Remote(address, self.tape, self.reel, self.events.append, **options)

    def __enter__(self):
        self.remote.start()
        return self

    def __exit__(self, *_):
        begin = time.monotonic()
        assert self.remote.stop(PATIENT)
        assert time.monotonic() - begin < PATIENT / 2
        assert not [thread for thread in threading.enumerate() if thread.name == "msh-remote"]

    def say(self, frames):
        """Speak, as fast as it is heard."""
        for pcm in frames:
            eventually(lambda: self.tape.backlog() < 2 * FRAME_SECONDS)
            self.tape.give(pcm)

    def of(self, *kinds):
        return [event for event in self.events if isinstance(event, kinds)]

    def notices(self, kind):
        return [event.message for event in self.of(Notice) if event.kind == kind]

    def ready(self, conversation=1):
        eventually(lambda: Ready(conversation) in self.events or self.remote.failure)
        assert self.remote.failure is None, self.remote.failure

    def answered(self, count):
        eventually(lambda: len(self.of(Said)) >= count)

    def failed(self):
        """Wait until it has failed, and return why."""
        eventually(lambda: self.remote.failure)
        assert eventually(lambda: self.of(Failed)) == [self.remote.failure]
        return self.remote.failure.error


def tone(frames, seed=0):
    """[frames, 1920] of sound that an ear could tell from other sound."""
    chance = np.random.default_rng(seed)
    steps = np.repeat(chance.uniform(200, 2000, frames), FRAME_SIZE)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(steps) / 24000)).astype(np.float32).reshape(frames, FRAME_SIZE)


def over_opus(frames):
    """What the other side hears of frames."""
    encoder, decoder = OpusEncoder(), OpusDecoder()
    return np.concatenate([decoder.decode(encoder.encode(pcm)) for pcm in frames]).reshape(-1, FRAME_SIZE)


# ---- published servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["R", "T", "M", "W"])
def test_a_conversation_with_a_published_server(kind):
    """What is said arrives; what comes back is played, a frame at a time, and the words have the times of their frames."""
    said = tone(20)
    with Server(published(kind)) as server, Run(server.port) as run:
        run.ready()
        run.say(said)
        run.answered(20 - LAG[kind])
        eventually(lambda: len(run.of(Spoke)) == 4)
    expected = over_opus(over_opus(said)[LAG[kind] :])
    assert np.array_equal(run.reel.frames, expected)
    assert [event.index for event in run.of(Said)] == list(range(20 - LAG[kind]))
    assert np.array_equal([event.pcm for event in run.of(Heard)], said)
    assert [(event.index, event.text) for event in run.of(Spoke)] == [(i, f" word{i}") for i in (0, 5, 10, 15)]
    words = [event.word for event in run.of(SpokeWord)]
    assert words == [Word(round(i * FRAME_SECONDS, 3), f"word{i}") for i in (0, 5, 10, 15)]
    metrics = run.remote.metrics
    assert (metrics.frames, metrics.words, metrics.drops, metrics.underruns) == (20 - LAG[kind], 4, 0, 0)
    assert metrics.encode.all().count == 20
    assert metrics.delay.all().count == 20 - LAG[kind]
    assert run.remote.failure is None
    stages = [(event.stage, event.seconds is None) for event in run.of(Loading)]
    assert stages == [(name, begins) for name in ("connecting", "waiting") for begins in (True, False)]
    assert run.events.index(run.of(Loading)[-1]) == run.events.index(Ready(1)) - 1
    assert server.requests[0].query_string == ""


def test_what_the_torch_server_sent_is_heard():
    """A recorded conversation: the words, and every sample that another decoder finds in it."""
    messages = said_by(1)
    decoder = OpusDecoder()
    sound = np.concatenate([decoder.decode(data[1:]) for data in messages if data[0] == 1])
    with Server(replay(messages)) as server, Run(server.port) as run:
        run.ready()
        run.answered(len(sound) // FRAME_SIZE)
    assert np.array_equal(np.concatenate(run.reel.frames), sound[: len(sound) // FRAME_SIZE * FRAME_SIZE])
    assert [event.word.text for event in run.of(SpokeWord)] == ["four", "one", "three", "eight", "nine", "zero"]


# ---- a server like ours --------------------------------------------------------------------------------------------------


class Ours:
    """A server that says hello, remembers what comes, and sends what a test wants, `messages` first."""

    def __init__(self, *messages, restarts=True):
        self.heard, self.messages, self.restarts = [], messages or (Handshake(),), restarts
        self.sockets, self.controls = [], []
        self._loop = None
        self.talks = 0

    async def __call__(self, websocket, _):
        self._loop = asyncio.get_running_loop()
        self.talks += 1
        self.sockets.append(websocket)
        decoder, voice = OpusDecoder(), Voice("T")
        await send(websocket, *self.messages)
        async for message in websocket:
            known = decode(message.data) if message.type is aiohttp.WSMsgType.BINARY else None
            if isinstance(known, Audio):
                pcm = decoder.decode(known.data)
                self.heard.append(pcm)
                await send(websocket, *voice.messages(pcm))
            elif isinstance(known, Control):
                self.controls.append(known)
                if self.restarts:
                    await websocket.send_bytes(encode(Handshake()))

    def send(self, *messages):
        """Send something more to the client that came last."""
        asyncio.run_coroutine_threadsafe(send(self.sockets[-1], *messages), self._loop).result(PATIENT)

    def close(self, code=1000, reason=b""):
        asyncio.run_coroutine_threadsafe(self.sockets[-1].close(code=code, message=reason), self._loop).result(PATIENT)


@contextlib.contextmanager
def talking(*messages, **options):
    """A server like ours, and a conversation with it that has begun."""
    ours = Ours(*messages, **options)
    with Server(ours) as ours.server, Run(ours.server.port) as run:
        run.ready()
        yield ours, run


def test_a_new_conversation_on_the_same_connection():
    said = tone(6)
    with talking() as (ours, run):
        run.say(said[:3])
        run.answered(3)
        ours.send(Text(" half"))
        eventually(lambda: run.of(Spoke))
        run.remote.reset()
        run.ready(2)
        assert run.reel.calls[-1] == "clear"
        run.say(said[3:])
        run.answered(6)
    assert ours.controls == [Control.RESTART]
    assert ours.talks == 1
    # A new stream, which has no past.
    assert np.array_equal(ours.heard[3:], over_opus(said[3:]))
    assert [event.index for event in run.of(Said)] == [0, 1, 2] * 2
    assert [event.word for event in run.of(SpokeWord)] == [Word(0.24, "half")]
    assert run.events.index(Ready(2)) > run.events.index(run.of(SpokeWord)[0])


def test_a_new_conversation_with_a_server_that_knows_no_restart(monkeypatch):
    monkeypatch.setattr(remote, "_ANSWER", 0.4)
    with talking(restarts=False) as (ours, run):
        run.remote._talk.begun -= 60  # how long it was connected says nothing about the new conversation
        run.remote.reset()
        run.ready(2)
        assert ours.talks == 2
        run.say(tone(1))
        run.answered(1)
    assert not run.of(Notice)


def test_the_microphone_is_muted():
    ours = Ours()
    with Server(ours) as server, Run(server.port) as run:
        run.remote.muted = True
        run.ready()
        run.say(tone(1))
        run.answered(1)
        run.remote.muted = False
        run.say(tone(1))
        run.answered(2)
    assert np.abs(ours.heard[0]).max() < 1e-4
    assert np.abs(ours.heard[1]).max() > 0.1
    assert [float(np.abs(event.pcm).max()) > 0 for event in run.of(Heard)] == [False, True]


def test_the_users_words_are_told_by_a_server_that_hears_them():
    told = MetaData({"heard": "four"}), MetaData({"heard": "one"}), MetaData({"turn": "four one"})
    ours = Ours(Handshake(), *told, MetaData({"notice": "Nothing answers."}), MetaData({"heard": 4, "turn": None}))
    with Server(ours) as server, Run(server.port) as run:
        eventually(lambda: run.notices("channels"))
    assert [event.word.text for event in run.of(HeardWord)] == ["four", "one"]
    assert [event.text for event in run.of(Turned)] == ["four one"]
    assert run.notices("channels") == ["Nothing answers."]


def test_in_line():
    """The place is told when it changes; what is heard meanwhile is not for the conversation; nor is sound that comes early."""
    ours = Ours(MetaData({"waiting": 2}), Ping(), MetaData({"waiting": 2}), MetaData({"waiting": 1}))
    with Server(ours) as server, Run(server.port) as run:
        run.tape.give(tone(1, seed=7)[0])
        eventually(lambda: len(run.notices("waiting")) == 2)
        ours.send(*Voice("T").messages(tone(1)[0]), Text(" early"), Handshake())
        run.ready()
        run.say(tone(1))
        run.answered(1)
    assert [message[-19:] for message in run.notices("waiting")] == [
        "we are number 2 in line."[-19:],
        "we are number 1 in line."[-19:],
    ]
    assert np.array_equal(ours.heard, over_opus(tone(1)))
    assert not run.of(Spoke)
    assert len(run.reel.frames) == 1


def test_a_server_that_does_not_begin(monkeypatch):
    monkeypatch.setattr(remote, "_PATIENT", 0.1)
    with Server(Ours(Ping())) as server, Run(server.port) as run:
        eventually(lambda: run.notices("waiting"))
    assert len(run.notices("waiting")) == 1
    assert "busy" in run.notices("waiting")[0]


def test_what_the_server_tells_about_itself():
    with talking() as (ours, run):
        assert run.remote.metrics.step.recent(50) == 0
        facts = {"step_p50_ms": 31.5, "step_p95_ms": 44.0, "delay_ms": 120, "backlog_ms": 0, "drops": 1, "sessions": 1}
        ours.send(MetaData({**facts, "dropped_s": 0.16}), MetaData({**facts, "dropped_s": 0.16}), MetaData({"x": [1]}))
        ours.send(MetaData({"step_p50_ms": "x", "step_p95_ms": None, "dropped_s": {}, "waiting": [1]}))
        ours.send(Text(" end"))
        eventually(lambda: run.of(Spoke))
        step = run.remote.metrics.step
        assert (step.recent(50), step.recent(95)) == (0.0315, 0.044)
        assert step.all().count == 0  # these times are not ours
    assert [event.seconds for event in run.of(Dropped)] == [pytest.approx(0.16)]
    assert run.remote.metrics.dropped == pytest.approx(0.16)


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"\x09\x01", b"\x02\xff", b"\x04[", b"\x04[]", b"\x03\x03", b"\x07", b"\x01", b"\x01no page", "text"],
)
def test_nonsense_is_passed_over(nonsense):
    with talking() as (ours, run):
        if isinstance(nonsense, str):
            asyncio.run_coroutine_threadsafe(ours.sockets[0].send_str(nonsense), ours._loop).result(PATIENT)
        else:
            ours.send(nonsense)
        run.say(tone(1))
        run.answered(1)
    assert not run.of(Notice, Failed)
    assert len(run.of(Ready)) == 1


def test_a_server_that_sends_no_opus():
    with talking() as (ours, run):
        ours.send(Audio(bytes(1 << 16)))
        assert "sends sound that cannot be heard: The audio is not an Ogg stream" in str(run.failed())


# ---- limits --------------------------------------------------------------------------------------------------------------


def test_what_is_late_is_dropped_and_counted():
    """A microphone that gives more than there is time for."""
    ours = Ours(Ping())
    with Server(ours) as server, Run(server.port, delay_limit=0.3) as run:
        eventually(lambda: ours.sockets)
        ours.send(Handshake())
        run.ready()
        run.tape.give(tone(40).ravel())
        eventually(lambda: run.of(Dropped))
        eventually(lambda: run.tape.backlog() == 0)
    dropped = run.remote.metrics.dropped
    assert dropped > 2
    assert run.remote.metrics.drops == len(run.of(Dropped))
    assert sum(event.seconds for event in run.of(Dropped)) == pytest.approx(dropped)
    assert len(run.of(Heard)) * FRAME_SECONDS + dropped == pytest.approx(40 * FRAME_SECONDS)


def test_a_server_that_takes_nothing():
    """What was sent and not taken is bounded; from then on the microphone's sound is given up."""
    stop = threading.Event()

    async def deaf(websocket, _):
        await websocket.send_bytes(bytes(9))
        for _ in range(3):  # and the ping behind the second
            await websocket.receive()
        while not stop.is_set():
            await asyncio.sleep(0.01)

    with Server(deaf) as server, Run(server.port) as run:
        run.ready()
        run.say(tone(3))
        eventually(lambda: run.remote._talk.arrived == 2)
        run.say(tone(remote._UNHEARD - 1))
        eventually(lambda: run.remote._talk.taken == 2 + remote._UNHEARD)
        run.tape.give(tone(6).ravel())
        eventually(lambda: run.of(Dropped))
        assert len(run.of(Heard)) == 2 + remote._UNHEARD
        stop.set()


# ---- connections that are lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "closed", "away"])
def test_a_connection_that_is_lost_is_made_anew(how, quick):
    said = tone(4)
    with talking() as (ours, run):
        run.say(said[:2])
        run.answered(2)
        if how == "cut":
            ours.server.hang_up()
        else:
            ours.close(1001 if how == "away" else 1000)
        run.ready(2)
        run.say(said[2:])
        run.answered(4)
        eventually(lambda: run.notices("connection-back"))
    kinds = [event.kind if isinstance(event, Notice) else event for event in run.of(Notice, Ready)]
    assert kinds == [Ready(1), "connection-lost", Ready(2), "connection-back"]
    assert [event.level for event in run.of(Notice)] == ["warning", "info"]
    assert "pause" in run.reel.calls
    assert np.array_equal(ours.heard[2:], over_opus(said[2:]))
    assert run.remote.failure is None


def test_a_server_that_is_gone_for_a_while(quick):
    ours = Ours()
    with contextlib.ExitStack() as first:
        server = first.enter_context(Server(ours))
        with Run(server.port) as run:
            run.ready()
            first.close()
            eventually(lambda: run.notices("connection-lost"))
            time.sleep(0.3)
            with Server(ours, port=server.port):
                eventually(lambda: run.notices("connection-back"))
                assert run.of(Ready)[1:] == [Ready(2)]
                assert len(run.notices("connection-lost")) == 1


def test_a_server_that_falls_silent(quick, monkeypatch):
    monkeypatch.setattr(remote, "_SILENT", 0.5)
    talks = []

    async def silent(websocket, _):
        talks.append(websocket)
        await websocket.send_bytes(bytes(9))
        async for _ in websocket:
            pass

    with Server(silent) as server, Run(server.port) as run:
        run.ready()
        time.sleep(1)  # nothing was said: there is nothing to answer
        assert len(talks) == 1
        run.say(tone(1))
        run.ready(2)
    assert "nothing came" in run.notices("connection-lost")[0]


def test_a_complaint_and_the_end():
    """A server that says what is wrong and closes is not asked again."""
    with talking() as (ours, run):
        ours.send(Error("The model\nbroke;\x1b[31m start it again."))
        ours.close()
        error = run.failed()
    assert str(error).endswith("ended the conversation: The model broke;\ufffd[31m start it again.")
    assert error.exit_code == 1
    assert [event.level for event in run.of(Notice)] == ["error"]
    assert ours.talks == 1


def test_a_server_that_is_started_again(quick):
    """It says why it goes, and that it may come back."""
    with talking() as (ours, run):
        ours.send(Error("The server is shutting down."))
        ours.close(1001, b"The server is shutting down.")
        run.ready(2)
    assert "(the server ended it: The server is shutting down)" in run.notices("connection-lost")[0]


def test_a_complaint_and_no_end(quick):
    with talking() as (ours, run):
        ours.send(Error("One page was damaged."))
        run.say(tone(1))
        run.answered(1)
        ours.close()
        run.ready(2)  # it was not for this
    assert "One page was damaged." in run.notices("server-error")[0]


# ---- recordings ----------------------------------------------------------------------------------------------------------


def hear(server, frames, *, realtime=False, **query):
    """The answers to a recording, what the user was told meanwhile, and what was raised in the end."""
    address = Address("127.0.0.1", server.port, query=query if realtime else {"realtime": "0", **query})
    said, told = [], []
    try:
        for event in answers(address, iter(frames), realtime=realtime, notify=told.append, check=lambda: None):
            match event:
                case Heard(index, pcm):
                    assert index == len(said)
                    said.append(SimpleNamespace(heard=pcm, pcm=None, text=""))
                case Spoke(index, text):
                    said[index].text += text
                case Said(index, pcm):
                    said[index].pcm = pcm
    except MshError as error:
        return said, told, error
    return said, told, None


def words_of(said):
    """The words, each with the number of its frame."""
    return [(index, answer.text) for index, answer in enumerate(said) if answer.text]


@pytest.fixture
def brisk(monkeypatch):
    """What takes long is not waited for."""
    for module in (remote, upload):
        monkeypatch.setattr(module, "STALLED", 0.1)
    monkeypatch.setattr(remote, "_SILENT", 1.0)


@pytest.mark.parametrize("kind", ["R", "T", "M", "W"])
def test_a_recording_and_a_published_server(kind, brisk):
    """One that answers less than it hears, and does not know realtime=0: the reply is whole, as in real time."""
    frames = tone(60)
    with Server(published(kind)) as server:
        said, told, error = hear(server, frames)
    assert (error, told) == (None, [])
    assert np.array_equal([answer.heard for answer in said], frames)
    sent = np.concatenate([frames, np.zeros((LAG[kind], FRAME_SIZE), np.float32)])
    assert np.array_equal([answer.pcm for answer in said], over_opus(over_opus(sent)[LAG[kind] :]))
    assert words_of(said) == [(i, f" word{i}") for i in range(0, 60, 5)]


@pytest.mark.parametrize("every", [2, 3])
def test_a_server_that_does_not_answer_every_frame(every, brisk):
    """However much is not answered: all is sent, and what comes is kept."""
    frames = tone(60)

    async def talk(websocket, _):
        voice = Voice("T")
        async for index, pcm in sounds(websocket):
            if index < 60 and (index + 1) % every == 0:
                await send(websocket, *voice.messages(pcm), Text(f" {index + 1}"))

    with Server(talk) as server:
        said, told, error = hear(server, frames)
    assert error is None
    assert len(said) == 60
    assert [text for _, text in words_of(said)] == [f" {i}" for i in range(every, 61, every)]
    assert all(answer.pcm.any() for answer in said[: 60 // every])
    # The last word, behind its sound, has a frame of its own.
    seconds = (60 - 60 // every - 1) * FRAME_SECONDS
    assert told == [f"127.0.0.1:{server.port} answered {seconds:.2f} s less than it heard; the reply ends in silence."]


@pytest.mark.parametrize("realtime", [False, True])
@pytest.mark.parametrize("how", ["silent", "pings", "closes"])
def test_a_server_that_does_not_answer_the_last_frames(how, realtime, brisk, monkeypatch):
    monkeypatch.setattr(remote, "_STUCK", 1.0)
    frames = tone(12)

    async def talk(websocket, _):
        voice = Voice("T")
        async for index, pcm in sounds(websocket):
            if index < 9:
                await send(websocket, *voice.messages(pcm), Text(f" {index + 1}"))
            elif how == "pings":
                await send(websocket, Ping())
            elif how == "closes" and index >= 12:
                await websocket.close()

    with Server(talk) as server:
        said, told, error = hear(server, frames, realtime=realtime)
    assert error is None
    assert told == [f"127.0.0.1:{server.port} answered 0.16 s less than it heard; the reply ends in silence."]
    assert np.array_equal([answer.pcm for answer in said[:9]], over_opus(over_opus(frames)[:9]))
    assert not any(answer.pcm.any() for answer in said[9:])
    # The word that comes behind its frame is counted to the next.
    assert words_of(said) == [(i, f" {i}") for i in range(1, 10)]
    assert np.array_equal([answer.heard for answer in said], frames)


def test_the_last_word_may_come_behind_its_sound():
    frames = tone(5)

    async def talk(websocket, _):
        voice = Voice("T")
        async for _, pcm in sounds(websocket):
            await send(websocket, *voice.messages(pcm))
            await asyncio.sleep(0.05)
            await send(websocket, Text(" x"))

    with Server(talk) as server:
        said, told, error = hear(server, frames)
    assert (error, told, len(said)) == (None, [], 5)
    assert "".join(answer.text for answer in said) == " x x x x x"


@pytest.mark.parametrize("how", ["cut", "closed", "complaint", "explained", "nonsense", "silent"])
def test_what_a_server_said_before_the_end_is_kept(how, brisk):
    frames = tone(100)

    async def talk(websocket, request):
        voice = Voice("T")
        async for index, pcm in sounds(websocket):
            if index < 20:
                await send(websocket, Text(f" {index + 1}"), *voice.messages(pcm))
            elif how != "silent":
                await send(websocket, Text(" last"))
                if how == "complaint":
                    await send(websocket, Error("The model broke."))
                if how == "nonsense":
                    await send(websocket, Audio(bytes(100_000)))
                    async for _ in websocket:
                        pass
                elif how == "cut":
                    await asyncio.sleep(0.1)
                    request.transport.abort()
                elif how == "explained":
                    await websocket.close(code=1011, message=b"The model broke.")
                else:
                    await websocket.close()
                return

    with Server(talk) as server:
        said, told, error = hear(server, frames)
    assert isinstance(error, BrokenOffError)
    assert error.exit_code == 1
    sentence = {
        "complaint": "ended the conversation: The model broke;",
        "explained": "was lost after 2 s: the server ended it: The model broke;",
        "nonsense": "sends sound that cannot be heard: The audio is not an Ogg stream: no page was found in 100000 bytes",
        "silent": "was lost after 2 s: nothing came for 1 s; some servers need --realtime",
    }.get(how, "was lost after 2 s: ")
    assert sentence in str(error)
    assert str(error).endswith("; what was said until then is kept.")
    expected = [(i, f" {i + 1}") for i in range(20)] + ([] if how == "silent" else [(20, " last")])
    assert words_of(said) == expected
    assert np.array_equal([answer.pcm for answer in said[:20]], over_opus(over_opus(frames)[:20]))
    assert len(said) == len(expected)
    assert [sentence for sentence in told if "says" not in sentence] == []


def test_a_conversation_in_which_nothing_was_said_is_none(brisk):
    with Server(Ours(Handshake(), Error("Nobody is at home."))) as server:
        pass
    with Server(mute) as server:
        said, _, error = hear(server, tone(3))
    assert said == []
    assert not isinstance(error, BrokenOffError)
    assert "nothing came for 1 s" in str(error)


async def mute(websocket, _):
    await websocket.send_bytes(b"\0")
    async for _ in websocket:
        pass


@pytest.mark.parametrize("realtime", [False, True])
def test_what_a_server_did_not_hear_keeps_its_place(realtime, brisk):
    """It tells that it dropped half a second: the words behind that have their times, and the user hears of it."""
    frames = tone(40)

    async def talk(websocket, _):
        voice = Voice("T")
        async for index, pcm in sounds(websocket):
            if not 10 <= index < 16:
                await send(websocket, Text(f" {index}"), *voice.messages(pcm))
            elif index == 15:
                await send(websocket, MetaData({"dropped_s": 0.48, "drops": 6}))

    with Server(talk) as server:
        said, told, error = hear(server, frames, realtime=realtime)
    assert error is None
    assert told == [f"127.0.0.1:{server.port} was too slow and did not hear 0.48 s of the recording."]
    assert len(said) == 40
    assert words_of(said) == [(i, f" {i}") for i in range(40) if not 10 <= i < 16]
    assert not any(answer.pcm.any() for answer in said[10:16])
    assert all(answer.pcm.any() for answer in [*said[1:10], *said[16:]])


def test_the_times_of_a_live_conversation_keep_their_places():
    """What is said lies beside what was heard, also behind what the server dropped."""
    with talking() as (ours, run):
        run.say(tone(3))
        run.answered(3)
        ours.send(MetaData({"dropped_s": 0.4}), Text(" late"))
        run.say(tone(1))
        run.answered(4)
        ours.send(Text(" end"))
        eventually(lambda: len(run.of(Spoke)) == 2)
    assert [event.index for event in run.of(Said)] == [0, 1, 2, 8]
    assert [(event.index, event.text) for event in run.of(Spoke)] == [(8, " late"), (9, " end")]
    assert [event.word for event in run.of(SpokeWord)] == [Word(0.64, "late"), Word(0.72, "end")]


# ---- what is damaged on the way ------------------------------------------------------------------------------------------


def test_damage_in_a_reply_is_silent_and_told(monkeypatch):
    monkeypatch.setattr(remote, "_DAMAGE_EVERY", 100.0)
    frames = tone(12)

    async def talk(websocket, _):
        voice, count = Voice("M"), 0
        async for _, pcm in sounds(websocket):
            for data in voice.messages(pcm):
                count += 1
                await send(websocket, data[:-1] + bytes([data[-1] ^ 1]) if count in (5, 9, 11) else data)

    with Server(talk) as server:
        said, told, error = hear(server, frames)
    assert error is None
    assert len(said) == 12
    reply = np.concatenate([answer.pcm for answer in said]).reshape(-1, FRAME_SIZE // 2)
    assert [i for i, part in enumerate(reply) if not part.any()] == [4, 8, 10]
    assert told == [
        f"Sound from 127.0.0.1:{server.port} has damaged or missing pages: {count}, {0.04 * count:.2f} s so far, "
        "which are silent."
        for count in (1, 3)
    ]


def test_damage_on_the_way_to_the_server_is_told():
    with talking() as (ours, run):
        for damaged in (0.0, 0.12, 0.12, 0.2):
            ours.send(MetaData({"damaged_s": damaged, "damaged_pages": 1}))
        ours.send(Text(" end"))
        eventually(lambda: run.of(Spoke))
    assert [message.rpartition("could not read ")[2] for message in run.notices("damaged")] == [
        f"{seconds} s of your sound so far: pages arrived damaged." for seconds in ("0.12", "0.20")
    ]


def test_parameters_that_mean_nothing_are_named():
    with talking(
        MetaData({"ignored": ["voice_prompt", "text\x1b[31m_prompt"]}), Handshake(), MetaData({"ignored": []})
    ) as (ours, run):
        ours.send(Text(" end"))
        eventually(lambda: run.of(Spoke))
    assert run.notices("ignored") == [
        f"127.0.0.1:{ours.server.port} does not know these parameters: voice_prompt, text\ufffd[31m_prompt."
    ]


def test_silence_keeps_a_conversation_whose_microphone_has_gone(monkeypatch):
    monkeypatch.setattr("msh_mlx.net.remote._IDLE", 0.05)
    with talking() as (ours, _):
        eventually(lambda: len(ours.heard) >= 3)
    assert all(np.abs(pcm).max() < 1e-3 for pcm in ours.heard)


def test_what_the_server_says_of_channels_is_told():
    with talking(Handshake(), MetaData({"notice": "Channel 2 is left out."})) as (ours, run):
        ours.send(Text(" end"))
        eventually(lambda: run.of(Spoke))
    assert run.notices("channels") == ["Channel 2 is left out."]


# ---- servers that cannot be reached --------------------------------------------------------------------------------------


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refusing(status, text):
    return lambda _: web.Response(status=status, text=text)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (400, InputError, "refuses: The sentence."),
        (401, InputError, "refuses: The sentence."),
        (403, InputError, "refuses: The sentence."),
        (
            500,
            MshError,
            "failed before it began (The sentence); if it is PersonaPlex's server, give --param voice_prompt=… and "
            "--param text_prompt=….",
        ),
        (503, MshError, "cannot talk now: The sentence."),
        (404, MshError, "not a server of conversations (The sentence.)"),
        (200, MshError, "not a server of conversations"),
    ],
)
def test_a_server_that_refuses(status, kind, said):
    with (
        Server(Ours(), refuse=refusing(status, "The sentence.\n")) as server,
        Run(server.port, query={"worker_auth_id": "hush"}) as run,
    ):
        error = run.failed()
    assert type(error) is kind or kind is MshError
    assert isinstance(error, kind)
    assert said in str(error)
    assert "hush" not in str(error)
    assert len(server.requests) == 1
    assert server.requests[0].query["worker_auth_id"] == "hush"


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("recording", [False, True])
def test_a_server_that_wants_more_in_the_address(opens, recording):
    """PersonaPlex's opens the websocket and then fails; or it answers 500."""

    async def talk(websocket, request):
        request.transport.abort()

    query = {"voice_prompt": "NATF0.pt", "text_prompt": ""}
    for given, said in [
        ({}, "; if it is PersonaPlex's server, give --param voice_prompt=… and --param text_prompt=…."),
        (
            {"text_prompt": "x"},
            "; if it is PersonaPlex's server, give --param voice_prompt=… and --param text_prompt=….",
        ),
        (query, "; look at the server's own messages, and check that it has this voice_prompt."),
    ]:
        refuse = None if opens else refusing(500, "Broken.")
        with (
            Server(talk, refuse=refuse) as server,
            Run(server.port, query=given, recording=recording) as run,
        ):
            error = str(run.failed())
        assert error.startswith(f"127.0.0.1:{server.port} failed before it began (")
        assert error.endswith(said)
        assert dict(server.requests[0].query) == given


def test_a_refusal_on_the_way_back_ends_it(quick):
    refused = []
    with Server(Ours(), refuse=lambda _: refused[0] if refused else None) as server, Run(server.port) as run:
        run.ready()
        refused.append(web.Response(status=403, text="Not you."))
        server.hang_up()
        assert "Not you." in str(run.failed())


def test_nobody_is_there():
    port = unused_port()
    with Run(port) as run:
        error = run.failed()
    assert str(error).startswith(f"Nothing can be reached at 127.0.0.1:{port} (Connection refused); start the server")
    assert error.exit_code == 1


def test_no_such_host():
    events = []
    remote_end = Remote(Address("no-such-host.invalid", 9998), Tape(), Reel(), events.append)
    remote_end.start()
    eventually(lambda: remote_end.failure)
    assert "no-such-host.invalid" in str(remote_end.failure.error)
    assert isinstance(remote_end.failure.error, MshError)
    assert remote_end.stop(PATIENT)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_something_else_is_there(answer):
    async def serve(reader, writer):
        await reader.read(1000)
        writer.write(answer)
        writer.close()

    async def talk():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
            with Run(listener.sockets[0].getsockname()[1]) as run:
                while not run.remote.failure:
                    await asyncio.sleep(0.01)
                return run.remote.failure.error

    assert "--https" in str(asyncio.run(asyncio.wait_for(talk(), PATIENT)))


def test_it_ends_at_once_at_any_moment(quick):
    """While it connects, shakes hands, waits in line, talks, and tries again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # never accepts
        for secure in (False, True):
            with Run(listener.getsockname()[1], secure=secure) as run:
                eventually(lambda: run.of(Loading))
                time.sleep(0.1)
    for ours in (Ours(Ping()), Ours()):
        with Server(ours) as server, Run(server.port) as run:
            eventually(lambda: ours.sockets)  # noqa: B023
    with Server(ours) as server, Run(server.port) as run:
        run.ready()
        server._refuse = refusing(503, "Full.")
        server.hang_up()
        eventually(lambda: run.notices("connection-lost"))
    run = Run(1)
    assert run.remote.stop()  # before it began


def test_it_ends_when_told_to_just_as_the_connection_is_made():
    class Told(Remote):
        async def _open(self, session):
            connection = await super()._open(session)
            self._task.cancel()
            return connection

    with Server(Ours()) as server:
        told = Told(Address("127.0.0.1", server.port), Tape(), Reel(), lambda _: None)
        told.start()
        assert told.join(PATIENT)
    assert told.failure is None


# ---- certificates --------------------------------------------------------------------------------------------------------


def test_a_certificate_is_shown_remembered_and_expected(tmp_path):
    context = server_context(tmp_path / "one")
    known = known_file()
    with Server(Ours(), ssl=context) as server:
        with Run(server.port, secure=True) as run:
            run.ready()
        (said,) = run.notices("certificate")
        assert folder_fingerprint(tmp_path / "one") in said
        assert str(known) in said
        with Run(server.port, secure=True) as run:
            run.ready()
            run.say(tone(1))
            run.answered(1)
        assert not run.of(Notice)
        port = server.port
    before = known.read_text()
    with Server(Ours(), ssl=server_context(tmp_path / "two"), port=port) as server:
        with Run(server.port, secure=True, query={"worker_auth_id": "hush"}) as run:
            error = run.failed()
        assert not server.requests  # the token did not go there
    assert isinstance(error, InputError)
    for part in (folder_fingerprint(tmp_path / "one"), folder_fingerprint(tmp_path / "two"), "line 1"):
        assert part in str(error)
    assert known.read_text() == before


def test_a_certificate_that_cannot_be_remembered(tmp_path, monkeypatch):
    """The error is that of the file, though the network's errors are errors of the system, too."""

    def full(path):
        raise write_error(str(path), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    context = server_context(tmp_path)
    monkeypatch.setattr("msh_mlx.net.tls.NewFile", full)
    with Server(Ours(), ssl=context) as server, Run(server.port, secure=True) as run:
        error = run.failed()
    assert isinstance(error, WriteError)
    assert error.what == f"{known_file()} cannot be written: {os.strerror(errno.ENOSPC)}"
    assert not server.requests


@pytest.mark.parametrize("secure", [False, True])
def test_a_certificate_of_another_server_is_not_taken_for_this_ones(tmp_path, monkeypatch, secure):
    """A server sends its clients to one whose certificate nobody vouches for."""
    context = server_context(tmp_path / "one")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "one" / "cert.pem"))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    with Server(Ours(), ssl=server_context(tmp_path / "two")) as other:
        there = web.Response(status=302, headers={"Location": f"https://127.0.0.1:{other.port}/api/chat"})
        sends = Server(Ours(), ssl=context if secure else None, refuse=lambda _: there)
        with sends as server, Run(server.port, secure=secure) as run:
            assert "does not speak TLS as it should" in str(run.failed())
        assert not other.requests
    assert not run.notices("certificate")
    assert not known_file().exists()


def test_without_tls_no_folder_is_needed_to_remember_certificates_in(tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with Server(Ours()) as server, Run(server.port) as run:
        run.ready()
    with Server(Ours(), ssl=server_context(tmp_path)) as server, Run(server.port, secure=True) as run:
        assert "There is no home folder to remember the server's certificate in" in str(run.failed())


def test_a_certificate_that_the_system_trusts(tmp_path, monkeypatch):
    context = server_context(tmp_path)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    with Server(Ours(), ssl=context) as server, Run(server.port, secure=True) as run:
        run.ready()
    assert len(server.requests) == 1
    assert not run.notices("certificate")
    assert not known_file().exists()


def test_tls_where_there_is_none(tmp_path):
    with Server(Ours()) as server, Run(server.port, secure=True) as run:
        assert "leave --https out" in str(run.failed())
    with Server(Ours(), ssl=server_context(tmp_path)) as server, Run(server.port) as run:
        assert "give --https" in str(run.failed())


# ---- addresses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://moshi", "ws://moshi/api/chat?a=1"),
        ("http://moshi:9998/", "ws://moshi:9998/api/chat?a=1"),
        ("https://moshi.example/api/chat", "wss://moshi.example/api/chat?a=1"),
        ("wss://[fe80::1]:80/there/?b=2&a=0", "wss://[fe80::1]:80/there/api/chat?b=2&a=1"),
        ("wss://moshi:443/api/chat/", "wss://moshi/api/chat?a=1"),
    ],
)
def test_whole_addresses(url, expected):
    assert str(Address.from_url(url, {"a": "1"}).url()) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "moshi:9998",
        "ftp://moshi",
        "ws://",
        "ws://moshi:99999",
        "ws://me:hush@moshi",
        "ws://[fe80::1",
        "ws://mo shi",
    ],
)
def test_what_is_not_an_address(url):
    with pytest.raises(InputError) as caught:
        Address.from_url(url, {})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("host", ["", "ws://moshi", "moshi/", "a b", "[::1", "me@moshi", "moshi?x"])
def test_what_is_not_a_host(host):
    with pytest.raises(InputError, match="is not the name of a host"):
        Address.of(host, 9998, secure=False, query={})


def test_a_token_is_in_no_error():
    """Aiohttp's own sentences may have the address in them."""
    end = Remote(Address("moshi", 1, query={"worker_auth_id": "hush"}), Tape(), Reel(), print)
    url = end._address.url()
    assert "hush" in str(url)
    info = aiohttp.RequestInfo(url, "GET", {}, url)
    errors = [aiohttp.InvalidURL(url), aiohttp.TooManyRedirects(info, ()), ValueError(str(url)), OSError(str(url))]
    for error in [*errors, aiohttp.ClientPayloadError(str(url)), aiohttp.WSServerHandshakeError(info, (), status=400)]:
        assert "moshi:1" in str(end._sorry(error))
        assert "hush" not in str(end._sorry(error))


def test_hosts():
    assert str(Address.of("[::1]", 1, secure=False, query={}).url()) == "ws://[::1]:1/api/chat"
    assert str(Address.of("::1", 1, secure=True, query={}).url()) == "wss://[::1]:1/api/chat"
    address = Address.of("Moshi", 1, secure=False, query={"worker_auth_id": "hush"})
    assert str(address) == "moshi:1"
    assert "hush" not in repr(address)
