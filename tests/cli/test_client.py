"""The client as a user runs it, with recordings: against our server, and against what published servers do."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from aiohttp import web
from paths import DIGITS, ROOT
from published import LAG, Server, published
from served import serving
from test_remote import Ours, over_opus

from msh_mlx.cli.main import main, parser
from msh_mlx.cli.options import sampling
from msh_mlx.conversation.load import load_session
from msh_mlx.conversation.recordings import Plan, converse_with
from msh_mlx.events import Heard, Said, Spoke
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import find_demo
from msh_mlx.net.messages import Error, Handshake, encode
from msh_mlx.net.parameters import ChatParameters
from msh_mlx.net.tls import folder_fingerprint, known_file, server_context
from msh_mlx.sound.recordings import open_recording, to_int16

TAIL = 20  # frames of silence
LIMIT = 10  # seconds, against hanging
SAMPLING = ["--temperature", "0.6", "--text-temperature", "0.5", "--top-k", "100", "--text-top-k", "20", "--seed", "7"]


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MSH_TOKEN", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of our server with the demo model."""
    with serving(tmp_path_factory.mktemp("server")) as port:
        yield port


def words(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tone(seconds):
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


@pytest.fixture
def recording(tmp_path):
    """17.5 frames, as a file."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(1.4), SAMPLE_RATE, subtype="FLOAT")
    return path


def start(*args, **environment):
    command = [sys.executable, str(ROOT / "client_opus.py"), *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, env={**os.environ, **environment})


def program(*args, **environment):
    """Run the client to its end, and return that."""
    process = start(*args, **environment)
    output, errors = process.communicate(timeout=6 * LIMIT)
    assert "Traceback" not in errors
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


# ---- our server ----------------------------------------------------------------------------------------------------------


def local_reply(arrived, transcript):
    """What `local_mlx.py` says to a recording, `[frames, 1920]`, before it becomes a file."""
    args = parser().parse_args(["--demo", *SAMPLING])
    session = load_session(find_demo(), None, **sampling(args))
    replies = []

    def hold(frames):
        for index, pcm in enumerate(frames):
            frame = session.push(pcm)
            replies.append(frame.pcm)
            yield Heard(index, pcm)
            yield Spoke(index, frame.text)
            yield Said(index, frame.pcm)

    with open_recording(str(arrived)) as recording:
        converse_with(hold, recording, Plan(transcript=transcript), lambda event: None)
    return np.array(replies)


def test_the_reply_is_that_of_the_local_program(server, tmp_path):
    """Words and sound are equal to what it says to the recording as it arrives, its voice sent in the same way."""
    arrived, reply = tmp_path / "arrived.wav", tmp_path / "reply.wav"
    local, remote = tmp_path / "local.jsonl", tmp_path / "remote.jsonl"
    pcm = soundfile.read(DIGITS, dtype="float32")[0]
    frames = -(-len(pcm) // FRAME_SIZE) + TAIL
    pcm = np.pad(pcm, (0, frames * FRAME_SIZE - len(pcm))).reshape(frames, FRAME_SIZE)
    soundfile.write(arrived, over_opus(pcm).ravel(), SAMPLE_RATE, subtype="FLOAT")
    said = local_reply(arrived, local)
    options = ["--tail", TAIL * 0.08, "--output", reply, "--transcript", remote, "--plain", *SAMPLING]
    done = program("--port", server, "--input", DIGITS, *options)
    assert done.returncode == 0, done.stderr
    assert words(remote) == words(local)
    assert [word["text"] for word in words(remote)][:2] == ["four", "one"]
    assert np.array_equal(soundfile.read(reply, dtype="int16")[0], to_int16(over_opus(said).ravel()))


# ---- published servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["R", "T", "M", "W"])
def test_a_recording_in_real_time(kind, recording, tmp_path):
    """Published servers answer less than they hear, and the reply is as long as the recording all the same."""
    reply, transcript = tmp_path / "reply.wav", tmp_path / "reply.jsonl"
    with Server(published(kind)) as server:
        options = ["--tail", "0.4", "--realtime", "--output", reply, "--transcript", transcript]
        done = program("--port", server.port, "--input", recording, *options)
    assert done.returncode == 0, done.stderr
    assert "realtime" not in server.requests[0].query
    heard, rate = soundfile.read(reply, dtype="int16")
    sent = np.pad(tone(1.4), (0, 30 * FRAME_SIZE)).reshape(-1)[: (23 + 3) * FRAME_SIZE].reshape(-1, FRAME_SIZE)
    expected = over_opus(over_opus(sent)[LAG[kind] :])[:23]
    assert rate == SAMPLE_RATE
    assert np.array_equal(heard, to_int16(expected.ravel()))
    expected = [{"start": round(i * 0.08, 3), "text": f"word{i}"} for i in range(0, 23, 5)]
    assert words(transcript) == expected
    assert "Said: word0 word5 word10 word15 word20" in done.stdout


# ---- the command line ----------------------------------------------------------------------------------------------------


def test_a_token_that_is_missing(recording, tmp_path):
    def refuse(_):
        return web.Response(status=401, text="No token. Ask.", headers={"WWW-Authenticate": "Bearer"})

    with Server(Ours(), refuse=refuse) as server:
        address = ["--host", "localhost", "--port", server.port]
        done = program(*address, "--input", recording, "--output", tmp_path / "reply.wav")
        assert done.returncode == 2
        assert done.stderr == f"localhost:{server.port} refuses: No token. Ask; give the token with --token.\n"


def test_what_is_asked_for(recording, tmp_path):
    """Only what is given is in the address; the token comes from the environment, or the command line before that."""
    asked = []

    def refuse(request):
        asked.append(dict(request.query))
        return web.Response(status=403, text="Not you.")

    command = ["--input", recording, "--output", tmp_path / "reply.wav"]
    given = ["--param", "text_prompt=Be a = wise\nfriend.", "--param", "voice_prompt=", "--param", "text_topk=3"]
    sampling = ["--temperature", "0.5", "--text-temperature", "0", "--top-k", "9", "--text-top-k", "8"]
    more = ["--repetition-penalty", "1.1", "--repetition-words", "50", "--padding-bonus", "-0.5", "--seed", "0"]
    role = tmp_path / "role.txt"
    role.write_text("You are wise.\nBe brief.\n")
    more += ["--voice", "NATF0.pt", "--prompt", f"@{role}"]
    with Server(Ours(), refuse=refuse) as server:
        address = ["--host", "localhost", "--port", server.port]
        done = program(*address, *command, *sampling, *more, "--token", "hush", MSH_TOKEN="other")
        assert done.returncode == 2
        assert done.stderr == f"localhost:{server.port} refuses: Not you.\n"
        assert done.stdout.startswith("Voice NATF0.pt, role “You are wise. Be brief.”\n")
        assert program(*address, *command, "--realtime", MSH_TOKEN="hush").returncode == 2
        url = f"http://localhost:{server.port}/?email=a@b.c"
        assert program("--url", url, *command, "--prompt", "").returncode == 2
        assert program(*address, *command, "--text-top-k", "8", "--realtime", *given).returncode == 2
    assert asked == [
        {
            "audio_temperature": "0.5",
            "text_temperature": "0.0",
            "audio_topk": "9",
            "text_topk": "8",
            "repetition_penalty": "1.1",
            "repetition_penalty_context": "50",
            "pad_mult": "-0.5",
            "audio_seed": "0",
            "text_seed": "0",
            "voice_prompt": "NATF0.pt",
            "text_prompt": "You are wise.\nBe brief.",
            "stats": "1",
            "realtime": "0",
            "worker_auth_id": "hush",
        },
        {"worker_auth_id": "hush", "stats": "1"},
        {"email": "a@b.c", "text_prompt": "", "realtime": "0", "stats": "1"},
        {"text_topk": "3", "text_prompt": "Be a = wise\nfriend.", "voice_prompt": "", "stats": "1"},
    ]
    for query in asked:
        ChatParameters.from_query(query)
    assert {path.name for path in tmp_path.iterdir()} == {"tone.wav", "role.txt"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--url", "ws://a", "--port", "1"], "leave --port out"),
        (["--url", "ws://a", "--host", "b"], "leave --host out"),
        (["--url", "ws://a", "--https"], "leave --https out"),
        (["--url", "moshi"], "--url is not a whole address"),
        (["--host", "ws://moshi"], "goes with --url"),
        (["--port", "0"], "--port"),
        (["--output", "x.wav"], "give one with --input"),
        (["--realtime"], "give one with --input"),
        (["--input", "x.wav"], "Nothing would be written"),
        (["--input", "x.wav", "--output", "y.wav", "--record", "z"], "for live conversations"),
        (["--input", "x.wav", "--output", "y.wav", "--json"], "for live conversations"),
        (["--input", "x.wav", "--output", "y.flac"], "--output writes a WAV file; name it y.wav, say."),
        (["--input", "nowhere.wav", "--output", "y.wav"], "nowhere.wav"),
        (["--top-p", "0.5"], "Unrecognized arguments: --top-p"),
        (["--param", "voice_prompt"], "--param: 'voice_prompt' is not KEY=VALUE"),
        (["--param", "=x"], "--param: '=x' is not KEY=VALUE"),
        (["--param", ""], "--param: '' is not KEY=VALUE"),
        (["--param", "a=1", "--param", "b=\udcff"], "is not KEY=VALUE"),
    ],
)
def test_options_that_do_not_go_together(options, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["client", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*"))


def test_a_new_certificate_is_shown(recording, tmp_path):
    context = server_context(tmp_path / "tls")
    with Server(published("T"), ssl=context) as server:
        options = ["--input", recording, "--output", tmp_path / "reply.wav", "--realtime"]
        done = program("--https", "--port", server.port, *options)
    assert done.returncode == 0, done.stderr
    assert f"127.0.0.1:{server.port} is new: {folder_fingerprint(tmp_path / 'tls')}" in " ".join(done.stdout.split())
    assert known_file().exists()


# ---- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["R", "T"])
def test_a_recording_faster_than_real_time(kind, recording, tmp_path):
    """A published server, which answers less than it hears: the reply is whole."""
    reply, transcript = tmp_path / "reply.wav", tmp_path / "reply.jsonl"
    with Server(published(kind)) as server:
        done = program("--port", server.port, "--input", recording, "--output", reply, "--transcript", transcript)
    assert done.returncode == 0, done.stderr
    heard, _ = soundfile.read(reply, dtype="int16")
    sent = np.pad(tone(1.4), (0, 30 * FRAME_SIZE)).reshape(-1)[: (18 + LAG[kind]) * FRAME_SIZE].reshape(-1, FRAME_SIZE)
    assert np.array_equal(heard, to_int16(over_opus(over_opus(sent)[LAG[kind] :]).ravel()))
    assert [word["text"] for word in words(transcript)] == ["word0", "word5", "word10", "word15"]


def test_half_a_conversation_is_kept(recording, tmp_path):
    """The reply and the words as far as they came, where they are, why there is no more, and an exit code that says so."""
    reply, transcript = tmp_path / "reply.wav", tmp_path / "reply.jsonl"

    def breaks(count, pcm):
        if count == 7:
            raise ConnectionError
        return pcm, f" word{count}"

    with Server(published("W", breaks)) as server:
        options = ["--realtime", "--output", reply, "--transcript", transcript]
        done = program("--port", server.port, "--input", recording, *options)
    assert done.returncode == 1
    assert done.stderr.startswith(f"The connection to 127.0.0.1:{server.port} was lost after 1 s: ")
    assert done.stderr.endswith("; what was said until then is kept.\n")
    assert done.stderr.count("\n") == 1
    for path in (reply, transcript):
        assert str(path) in "".join(done.stdout.split("\n"))
    heard, _ = soundfile.read(reply, dtype="int16")
    sent = np.pad(tone(1.4), (0, 30 * FRAME_SIZE))[: 7 * FRAME_SIZE].reshape(-1, FRAME_SIZE)
    assert np.array_equal(heard, to_int16(over_opus(over_opus(sent)).ravel()))
    assert [word["text"] for word in words(transcript)] == [f"word{i}" for i in range(7)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reply.jsonl", "reply.wav", "tone.wav"]


def test_nothing_is_left_of_a_conversation_without_an_answer(recording, tmp_path):
    """A server that breaks at once, one that complains, and one that goes away."""
    reply = tmp_path / "reply.wav"

    async def breaks(websocket, request):
        await websocket.send_bytes(bytes(9))
        for _ in range(5):
            await websocket.receive()
        if request.query["text_seed"] == "1":
            await websocket.send_bytes(encode(Error("The model broke.")))
        await websocket.close()

    with Server(breaks) as server:
        options = ["--port", server.port, "--input", recording, "--output", reply, "--seed"]
        complained, gone = program(*options, "1"), program(*options, "2")
    assert (complained.returncode, gone.returncode) == (1, 1)
    assert complained.stderr == f"127.0.0.1:{server.port} ended the conversation: The model broke.\n"
    assert gone.stderr.startswith(f"The connection to 127.0.0.1:{server.port} was lost after 0 s: the server ended it")
    assert len(server.requests) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tone.wav"]


def test_it_is_stopped(recording, tmp_path):
    """At any moment, within a second or so of a busy machine, and without a trace."""
    for messages in ((), (Handshake(),)):
        ours = Ours(*messages) if messages else silent
        with Server(ours) as server:
            command = [
                "--port",
                server.port,
                "--input",
                recording,
                "--output",
                tmp_path / "r.wav",
                "--tail",
                "60",
                "--realtime",
            ]
            process = start(*command)
            deadline = time.monotonic() + LIMIT
            while not server.requests:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 130, output
        assert errors == "Stopped.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tone.wav"]


async def silent(websocket, _):
    async for _ in websocket:
        pass
