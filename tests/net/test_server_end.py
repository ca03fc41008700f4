"""How the server ends, as a process: asked to, by a failure of the model, and before it has begun."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import soundfile
from paths import ROOT
from talker import Talker

from msh_mlx.format import FRAME_SIZE
from msh_mlx.library.files import demo_folder
from msh_mlx.net.messages import Audio, Handshake, MetaData

sys.path.append(str(ROOT / "benchmarks"))

from server_soak import ServerProcess

LONG = 10  # seconds, after which something hangs

# The server, but its model fails when it is asked for a certain thing so many times: "step" or "prime", counted from loading.
FAILING = """
import sys
from msh_mlx.conversation import shared
from msh_mlx.model import generate
from msh_mlx.cli.main import main

name, times, *arguments = sys.argv[1:]
where = shared if name == "step_together" else generate.LmGen
work, left = getattr(where, name), [int(times)]

def fail(*given):
    left[0] -= 1
    if left[0] < 0:
        raise RuntimeError("the weights have melted")
    return work(*given)

setattr(where, name, fail)
sys.exit(main(["serve", *arguments]))
"""


@pytest.fixture(scope="module")
def pcm():
    sound, _ = soundfile.read(demo_folder() / "digits.flac", dtype="float32")
    return sound[: len(sound) // FRAME_SIZE * FRAME_SIZE]


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """Return how to run a server whose model fails; logs are kept in the test's folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    return lambda name, times: (str(program), name, str(times))


async def all_told(server, pcm, end):
    """Talk, listen, and wait in line, while `end` makes the server end; return what all three heard, and how long it took."""
    url = f"http://127.0.0.1:{server.port}"
    async with Talker(url) as talking, Talker(url) as silent, Talker(url) as waiting:
        await talking.until(Handshake)
        speech = asyncio.ensure_future(talking.say(np.tile(pcm, 10), 0.08))
        for _ in range(3):
            await talking.until(Audio)
        clients = [talking, silent, waiting]
        await waiting.until(MetaData)
        end()
        begin = perf_counter()

        async def listen(client):
            while await client.receive(LONG):
                pass

        await asyncio.gather(*map(listen, clients))
        await asyncio.to_thread(server.process.wait, LONG)
        took = perf_counter() - begin
        speech.cancel()
        await asyncio.gather(speech, return_exceptions=True)
    return [client.heard for client in clients], took


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_tells_everybody_and_ends_it(number, pcm):
    with ServerProcess("--sessions", 2) as server:
        heard, took = asyncio.run(all_told(server, pcm, lambda: server.process.send_signal(number)))
        print(f"From {number.name} to the end of the process: {took:.2f} s")
        for one in heard:
            assert one.error == "The server is shutting down."
            assert one.code == 1001
        assert server.process.returncode == 128 + number
        assert server.complained() == "Stopped.\n"
        assert took < LONG
        ends = [event["end"] for event in server.events() if event["event"] in ("session", "visit")]
        assert ends == ["shutdown"] * 3


def test_a_signal_while_it_loads_ends_it(failing):
    with subprocess.Popen(
        [sys.executable, str(ROOT / "server_opus.py"), "--demo", "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
        process.terminate()
        assert process.communicate(timeout=LONG)[1] in ("", "Stopped.\n")
        assert process.returncode in (143, -signal.SIGTERM)


@pytest.mark.parametrize(("name", "times"), [("step_together", 30), ("prime", 1)])
def test_a_failure_of_the_model_tells_everybody_and_ends_it(name, times, pcm, failing):
    with ServerProcess("--sessions", 2, program=failing(name, times)) as server:
        if name == "step_together":
            heard, _ = asyncio.run(all_told(server, pcm, lambda: None))
        else:  # at the beginning of a conversation
            heard = [asyncio.run(only_told(server))]
        for one in heard:
            assert one.error == "The model failed; the conversation is over."
            assert one.code == 1011
        assert server.process.wait(LONG) == 1
        (line,) = server.complained().splitlines()
        assert line.startswith(
            "The model failed (RuntimeError: the weights have melted), and so the server ends; details"
        )
        log = Path(line.rpartition(" in ")[2].rstrip("."))
        assert "in fail" in log.read_text()


async def only_told(server):
    async with Talker(f"http://127.0.0.1:{server.port}") as talker:
        while await talker.receive(LONG):
            pass
        return talker.heard


def test_a_model_that_fails_in_loading_ends_it(failing):
    program = [sys.executable, *failing("step", 10), "--demo", "--port", "0"]
    result = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "the weights have melted" in line
    assert "Traceback" not in result.stdout


# ---- before it has begun -------------------------------------------------------------------------------------------------


def complaint(*options):
    """Return the only line that the server says before it ends with exit code 2."""
    command = [sys.executable, str(ROOT / "server_opus.py"), *map(str, options)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_a_port_in_use_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert complaint("--demo", "--port", port) == (f"Port {port} is in use already; take another one with --port.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "no.such.name.invalid"], "There is no address 'no.such.name.invalid' on this machine"),
        (["--sessions", "0"], "--sessions"),
        (["--idle", "never"], "--idle"),
        (["--idle", "0"], "--idle 0 is too short to say anything; give at least 1."),
        (["--host", ""], "--host is empty; give a value, or leave it out."),
        (["--token", ""], "--token is empty; give a value, or leave it out."),
        (["--allow-host", ""], "--allow-host is empty; give a name, or leave it out."),
        (["--token", "with spaces"], "The token has spaces"),
        (["--allow-origin", "example.org"], "--allow-origin example.org is not an origin"),
        (["--static", "no/such/folder"], "has no index.html"),
        (["--config", "no-such.json"], "no-such.json"),
        (["--what"], "--what"),
    ],
)
def test_a_wrong_option_is_a_sentence(options, said):
    assert said in complaint("--demo", *options)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        (json.dumps({"port": "9998"}), "port has the wrong value '9998'"),
        (json.dumps({"port": 1 << 16}), "port has the wrong value 65536"),
        (json.dumps({"speed": 2}), "this server does not have 'speed'"),
        (json.dumps({"mimi_num_codebooks": 32}), "mimi_num_codebooks is 32"),
        (json.dumps({"static_dir": "$MSH_NO_SUCH_NAME/x"}), "$MSH_NO_SUCH_NAME"),
        (json.dumps({"lm_model_file": "model.gguf"}), "GGUF"),
        ("\ud800", "is not valid JSON"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_a_sentence(tmp_path, content, said):
    path = tmp_path / "config.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    assert said in complaint("--config", path)
