"""`msh-mlx serve --llm` from the outside."""

import asyncio
import json
import urllib.request

import pytest
import soundfile
from paths import DIGITS
from talker import Talker
from test_chat_completions import Server, stream
from test_serve import Program, complaint

from msh_mlx.cli import serve
from msh_mlx.cli.cascade import thinking
from msh_mlx.errors import InputError
from msh_mlx.format import SAMPLE_RATE
from msh_mlx.net.messages import Handshake, MetaData

FOUR_ONE = soundfile.read(DIGITS, dtype="float32")[0][: round(2.1 * SAMPLE_RATE)]
URL = "http://127.0.0.1:1"
NOT_FOR = "is not for --llm; leave one of them out."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--llm-model a", "--llm-model is for a conversation with a language model; add --llm."),
        ("--speak-up 3", "--speak-up is for a conversation with a language model; add --llm."),
        (f"--llm {URL} --also demo", f"--also {NOT_FOR}"),
        (f"--llm {URL} --no-conversations", f"--no-conversations {NOT_FOR}"),
        (f"--llm {URL} --ray", f"--ray {NOT_FOR}"),
        (f"--llm {URL} --keep-prompts 0", f"--keep-prompts {NOT_FOR}"),
        (f"--llm {URL} --temperature 0", f"--temperature {NOT_FOR}"),
        (f"--llm {URL} --seed 1", f"--seed {NOT_FOR}"),
        (f"--llm {URL} --guidance 2", f"--guidance {NOT_FOR}"),
        (f"--llm {URL} --stt none", "--llm needs a model for --stt; give one, or leave it out."),
        (f"--llm {URL} --tts none", "--llm needs a model for --tts; give one, or leave it out."),
        (
            f"--llm {URL} --voice calm --tts-voice brisk",
            "--voice and --tts-voice name the same voice with --llm; leave one of them out.",
        ),
        ("--llm ftp://here", "ftp://here is not the address of a server; give one like http://127.0.0.1:11434/v1."),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    args = serve.parser().parse_args(["--demo", *options.split()])
    with pytest.raises(InputError) as raised:
        serve.check(args)
    assert str(raised.value) == sentence


def test_a_language_model_that_is_not_there_is_told():
    sentence = f"Nothing answers at {URL}/v1; start the language model's server.\n"
    assert complaint("--demo", "--llm", URL, "--port", "0") == (1, sentence)
    with Server() as llm:
        status, said = complaint("--demo", "--llm", llm.url, "--llm-model", "none", "--port", "0")
    assert (status, said) == (
        2,
        f"The server {llm.url} has no model none; it has small and large; name one with --llm-model.\n",
    )


def test_with_json_every_line_is_an_object():
    with (
        Server() as llm,
        Program("--demo", "--llm", llm.url, "--port", "0", "--static", "none", "--json") as program,
    ):
        while "listening on" not in program.until(""):
            pass
    told = [json.loads(line)["message"] for line in program.lines]
    assert told[0] == f"The language model is small of {llm.url} (there is also large: --llm-model)."


def test_the_key_is_of_one_line(monkeypatch):
    with Server() as llm:
        args = serve.parser().parse_args(["--llm", llm.url])
        monkeypatch.setenv("MSH_LLM_KEY", " secret\n")  # as from a file
        with thinking(args) as (thinker, _):
            assert thinker.server.key == "secret"
        monkeypatch.setenv("MSH_LLM_KEY", "sec\nret")
        with pytest.raises(InputError) as raised, thinking(args):
            pass
    assert str(raised.value) == "MSH_LLM_KEY has characters that no key has; set it to the server's key."


def test_it_serves_conversations_with_the_model(tmp_path):
    async def talk(port):
        async with Talker(f"http://127.0.0.1:{port}") as talker:
            assert await talker.until(Handshake)
            await talker.say(FOUR_ONE)
            while "six" not in talker.heard.text:
                assert await talker.receive()
            return talker.heard

    options = "--llm-model", "large", "--prompt", "Be brief.", "--voice", "brisk", "--log-dir", str(tmp_path)
    with (
        Server(stream("six ")) as llm,
        Program("--demo", "--llm", llm.url, "--port", "0", "--static", "none", "--plain", *options) as program,
    ):
        port = program.until("standalone worker listening on ").rpartition(":")[2]
        heard = asyncio.run(talk(port))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/voices") as response:
            offer = json.load(response)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as response:
            names = [each["id"] for each in json.load(response)["data"]]
        status, err = program.end()
    assert (status, err) == (143, "Stopped.\n")
    assert program.lines[0] == f"The language model is large of {llm.url}."
    assert llm.bodies[0] == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "four one"}],
        "stream": True,
        "model": "large",
    }
    assert [message.values["turn"] for message in heard.of(MetaData) if "turn" in message.values] == ["four one"]
    assert (offer["voice"], offer["models"], names) == ("brisk", ["large"], ["large", "demo-stt", "demo-tts"])
    (summary,) = tmp_path.glob("*.json")
    kept = json.loads(summary.read_text())
    assert (kept["words"], kept["voice"]) == (1, "brisk")
    assert "brief" not in summary.read_text()
