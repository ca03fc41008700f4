"""Personas over the network: the voice and the role that a client asks for, with the demo model that takes them."""

import asyncio
import contextlib
import json
import socket
from functools import partial

import aiohttp
import numpy as np
import pytest
import soundfile
from published import client
from talker import Talker, talk

from msh_mlx.cli import serve
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.personas import Persona, Personas
from msh_mlx.conversation.served import ServedPersonas
from msh_mlx.conversation.shared import SharedModel
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import demo_folder, find_demo
from msh_mlx.net.messages import Control, Handshake, MetaData, Text, decode
from msh_mlx.net.server import Server

FILE = {"realtime": 0, "text_temperature": 0, "audio_temperature": 0}
EXPECTED = json.loads((demo_folder() / "persona/expected.json").read_text())
WORDS = {case["prompt"]: case["words"] for case in EXPECTED["cases"]}


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """A folder with one voice, which the demo's recording makes."""
    folder = tmp_path_factory.mktemp("voices")
    pcm, rate = soundfile.read(demo_folder() / "digits.flac", dtype="float32")
    soundfile.write(folder / "Anna.wav", pcm[: 2 * rate], rate)
    return folder


@pytest.fixture(scope="module")
def model(voices):
    shared = SharedModel()

    def begin(parts):
        named = lambda: {path.stem: path for path in voices.iterdir()}  # noqa: E731
        return ServedPersonas(Personas(parts), Persona(), named)

    shared.load(lambda: load_parts(find_demo("persona")), begin)
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def digits():
    pcm, _ = soundfile.read(demo_folder() / "digits.flac", dtype="float32")
    pcm = np.concatenate([pcm, np.zeros(3 * SAMPLE_RATE, np.float32)])
    return pcm[: len(pcm) // FRAME_SIZE * FRAME_SIZE]


@contextlib.asynccontextmanager
async def serving(model, *options):
    args = serve.parser().parse_args(["--demo", *options])
    serve.check(args)
    log = []
    server = Server(model, serve.settings(args, find_demo("persona")), partial(serve.samplers, args), log.append)
    server.log = log
    sock = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    await server.listen(sock)
    server.ready = True
    try:
        yield server
    finally:
        await server.close("The test is over.")


async def asked(server, path="/api/chat", method="POST", **query):
    """Ask without a websocket; for a conversation, 426 means that it would begin."""
    async with aiohttp.ClientSession() as http, http.request(method, server.url + path, params=query) as response:
        return response.status, await response.text()


@pytest.mark.parametrize("prompt", ["say each digit plus one", "backwards"])
async def test_a_role_is_played(model, digits, prompt):
    async with serving(model) as server:
        heard = await talk(server.url, digits, text_prompt=f" {prompt}\n", **FILE)
    assert heard.text.split() == WORDS[{"say each digit plus one": "next"}.get(prompt, prompt)]
    assert "ignored" not in heard.metadata[0]


async def test_without_a_role_it_plays_the_servers(digits, voices):
    shared = SharedModel()
    shared.load(
        lambda: load_parts(find_demo("persona")),
        lambda parts: ServedPersonas(Personas(parts), Persona(text="next")),
    )
    try:
        async with serving(shared) as server:
            default = await talk(server.url, digits, **FILE)
            own = await talk(server.url, digits, text_prompt="repeat", **FILE)
    finally:
        shared.close()
    assert default.text.split() == WORDS["next"]
    assert own.text.split() == WORDS["repeat"]
