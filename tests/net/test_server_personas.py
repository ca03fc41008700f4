"""Personas over the network: the voice and the role that a client asks for, with the demo model that takes them."""

import asyncio
import contextlib
import json

import aiohttp
import hosts
import numpy as np
import pytest
import soundfile
from published import client
from safetensors.numpy import save_file
from talker import Talker, talk

from msh_mlx.conversation.kept import KeptPrompts
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.personas import Persona, Personas, read_persona, read_sound
from msh_mlx.conversation.served import ServedPersonas, read_voices
from msh_mlx.conversation.shared import SharedModel
from msh_mlx.format import FRAME_SIZE, SAMPLE_RATE
from msh_mlx.library.files import demo_folder, find_demo
from msh_mlx.model.prefill import prefill_in_turns
from msh_mlx.net.messages import Control, Handshake, MetaData, Text, decode

FILE = {"realtime": 0, "text_temperature": 0, "audio_temperature": 0}
EXPECTED = json.loads((demo_folder() / "persona/expected.json").read_text())
WORDS = {case["prompt"]: case["words"][:2] for case in EXPECTED["cases"]}


@pytest.fixture(scope="module")
def digits():
    """The first turn of the demo's recording, of two digits, and time for the answer."""
    pcm, _ = soundfile.read(demo_folder() / "digits.flac", dtype="float32")
    return pcm[: 45 * FRAME_SIZE]


@contextlib.contextmanager
def loaded(begin):
    shared = SharedModel()
    shared.load(lambda: load_parts(find_demo("persona")), begin)
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory, digits):
    path = tmp_path_factory.mktemp("voices") / "some one.wav"
    soundfile.write(path, digits[:SAMPLE_RATE], SAMPLE_RATE)
    return path


@pytest.fixture(scope="module")
def model(recording):
    """A model with one voice, Anna. Two files that are named do not become voices."""
    left_out = []

    def begin(parts):
        personas = Personas(parts)
        other = recording.with_name("other.safetensors")
        narrow = {"embeddings": np.zeros((3, 1, 1, 8), np.float32), "cache": np.zeros((1, 17, 4), np.int64)}
        save_file(narrow, other)
        files = {"Anna": recording, "Ben": demo_folder() / "config.json", "Cleo": other}
        return ServedPersonas(personas, None, read_voices(files, personas, lambda *said: left_out.append(said)))

    with loaded(begin) as shared:
        assert [name for name, _ in left_out] == ["Ben", "Cleo"]
        yield shared


@pytest.fixture(scope="module")
def plain():
    """A model without voices."""
    with loaded(lambda parts: ServedPersonas(Personas(parts))) as shared:
        yield shared


def serving(model, *options):
    return hosts.serving(model, hosts.checked("--demo", *options), find_demo("persona"))


async def eventually(true):
    while not true():
        await asyncio.sleep(0.01)


async def get(server, headers=None, **query):
    url = f"{server.url}/api/voices"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers, params=query) as response:
        return response.status


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


async def test_who_names_no_role_hears_the_servers(digits, recording):
    persona = read_persona(recording, "next")
    with loaded(lambda parts: ServedPersonas(Personas(parts), persona)) as shared:
        async with serving(shared) as server:
            default = await talk(server.url, digits, **FILE)
            own = await talk(server.url, digits, text_prompt="repeat", **FILE)
            voices = json.loads((await asked(server, "/api/voices", "GET"))[1])
    assert default.text.split() == WORDS["next"]
    assert own.text.split() == WORDS["repeat"]
    only = {"models": [find_demo().model.name], "model": find_demo().model.name}
    assert voices == {"prompt": True, "voices": ["some one"], "voice": "some one", **only}


async def test_a_prompt_is_read_once_and_the_texts_of_clients_are_not_on_disk(digits, tmp_path, monkeypatch):
    read = []

    def prefill(lm, prompt, **options):
        read.append(len(prompt.columns))
        return prefill_in_turns(lm, prompt, **options)

    monkeypatch.setattr("msh_mlx.conversation.personas.prefill_in_turns", prefill)
    sounds = []
    for _ in range(2):  # the server is started, and started again
        kept = KeptPrompts(tmp_path)
        with loaded(lambda p, k=kept: ServedPersonas(Personas(p, kept=k), Persona(text="next"))) as shared:
            async with serving(shared) as server:
                for role in (None, "backwards", "backwards"):
                    heard = await talk(server.url, digits[: 32 * FRAME_SIZE], text_prompt=role, **FILE)
                    sounds.append(heard.sound)
    assert [kept.about["text"] for kept in kept.all()] == ["next"]
    assert len(read) == 3  # "next" once, and "backwards" once by each server
    for index, sound in enumerate(sounds):  # what was kept changes nothing
        np.testing.assert_array_equal(sound, sounds[min(index % 3, 1)])
    assert not np.array_equal(sounds[0], sounds[1])


async def test_conversations_with_different_roles_do_not_disturb_each_other(model, digits, tmp_path):
    async with serving(model, "--sessions", "3", "--log-dir", str(tmp_path)) as server:
        roles = ["next", "<system> backwards <system>", "repeat"]
        asked = [{"text_prompt": role, "voice_prompt": "Anna" if role == "next" else None} for role in roles]
        heard = await asyncio.gather(*(talk(server.url, digits, **each, **FILE) for each in asked))
        await eventually(lambda: len(list(tmp_path.glob("*.json"))) == 3)
    assert [each.text.split() for each in heard] == [WORDS[role] for role in ("next", "backwards", "repeat")]
    logged = json.dumps(server.log) + "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert "Anna" in logged
    assert not any(role in logged for role in WORDS if role)  # roles are nobody's business


async def test_a_new_conversation_on_the_connection_has_the_same_role(model, digits):
    async with serving(model) as server, Talker(server.url, text_prompt="next", **FILE) as talker:
        await talker.converse(digits)
        await talker.send(Control.RESTART)
        first = len(talker.heard.messages)
        await talker.converse(digits)
    texts = [message.text for message in talker.heard.messages[first:] if isinstance(message, Text)]
    assert "".join(texts).split() == WORDS["next"]


@pytest.mark.parametrize("named", ["Anna", "Anna.pt"])
async def test_a_voice_is_chosen_by_its_name(model, recording, digits, named):
    async with serving(model) as server:
        heard = await talk(server.url, digits, voice_prompt=named, text_prompt="next", **FILE)
        await eventually(lambda: server.log)
    assert heard.text.split() == WORDS["next"]
    assert "ignored" not in heard.metadata[0]
    assert server.log[0]["voice"] == "Anna"
    persona = model.personas.choose(named, "next")
    assert (persona.name, persona.text) == ("Anna", "next")
    np.testing.assert_array_equal(persona.voice, read_sound(str(recording)))


async def test_letters_that_the_model_does_not_know_are_left_out_and_that_is_told(model, digits):
    async with serving(model) as server:
        heard = await talk(server.url, digits, text_prompt="Say, each digit PLUS 1 one!", **FILE)
        exact = await talk(server.url, digits[:FRAME_SIZE], text_prompt="next", **FILE)
        none = await talk(server.url, digits[:FRAME_SIZE], text_prompt="?!", **FILE)
    assert heard.text.split() == WORDS["next"]
    told = "The model does not know all letters of the role; it reads “say each digit plus one”."
    assert heard.metadata[0]["notice"] == told
    assert "notice" not in exact.metadata[0]
    (told,) = [values["notice"] for values in none.metadata if "notice" in values]  # it may have waited before
    assert told == "The model does not know all letters of the role; it has no role."


WRONG = [
    ({"voice_prompt": "NATF0.pt"}, "There is no voice 'NATF0.pt' here; the only one is Anna."),
    ({"voice_prompt": "Anna.wav"}, "There is no voice 'Anna.wav' here"),
    ({"voice_prompt": "../voices/Anna"}, "There is no voice '../voices/Anna' here"),
    ({"voice_prompt": str(demo_folder() / "digits.flac")}, "There is no voice '/"),
    ({"voice_prompt": "x\n"}, "The parameter voice_prompt is not a text"),
    ({"text_prompt": "x" * 1001}, "The parameter text_prompt is not a text of up to 1000 characters"),
    ({"text_prompt": "x" * 990}, "The prompt takes "),
    ({"voice_prompt": "Cleo"}, "There is no voice 'Cleo' here"),
]


@pytest.mark.parametrize(("query", "sentence"), WRONG)
async def test_what_cannot_be_had_is_refused_before_the_conversation(model, query, sentence):
    async with serving(model) as server:
        status, said = await asked(server, **query)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="400"):
            await talk(server.url, None, **query)
        assert (await asked(server, voice_prompt="Anna", text_prompt="repeat"))[0] == 426
    assert status == 400
    assert said.startswith(sentence)
    assert said.endswith(".\n")
    assert len(said) < 250
    assert server.errors()["parameters"] == 2


async def test_the_published_page_talks_with_a_model_that_has_no_voices(plain, digits):
    """What NVIDIA's page sends, and what its server would say, but for the metadata."""
    query = "text_temperature=0&text_topk=25&audio_temperature=0&audio_topk=250&pad_mult=0&text_seed=5&audio_seed=7"
    query += "&repetition_penalty_context=64&repetition_penalty=1&text_prompt=next&voice_prompt=NATF0.pt"
    async with serving(plain) as server:
        texts = lambda messages: [x.text for data in messages if isinstance(x := decode(data), Text)]  # noqa: E731
        url = f"{server.url}/api/chat?{query}"
        messages = await client("T", url, digits, until=lambda received: len(texts(received)) >= 2, pace=0.08)
        await eventually(lambda: server.log)
    kinds = [type(decode(data)) for data in messages]
    assert kinds[: kinds.index(Handshake)] == [MetaData]
    assert [text.strip() for text in texts(messages)] == WORDS["next"][:2]
    assert server.log[0]["ignored"] == "voice_prompt"


async def test_the_voices_are_listed(model, plain):
    moshi = SharedModel()  # without personas, as with Moshi
    listed = []
    for each in (model, plain, moshi):
        async with serving(each) as server:
            status, text = await asked(server, "/api/voices", "GET")
            listed.append((status, json.loads(text)))
    moshi.close()
    only = {"models": [find_demo().model.name], "model": find_demo().model.name}
    assert listed == [
        (200, {"prompt": True, "voices": ["Anna"], "voice": "", **only}),
        (200, {"prompt": True, "voices": [], "voice": "", **only}),
        (200, {"prompt": False, "voices": [], "voice": "", **only}),
    ]


async def test_only_those_who_may_talk_see_the_voices(model):
    async with serving(model, "--token", "s3cret") as server:
        secret = {"worker_auth_id": "s3cret"}
        answers = [
            await get(server, **secret),
            await get(server),
            await get(server, headers={"Origin": "https://evil.example"}, **secret),
            await get(server, headers={"Host": "evil.example"}, **secret),
            await get(server, headers={"Authorization": "Bearer s3cret"}),
        ]
        server.ready = False
        answers.append(await get(server, **secret))
    assert answers == [200, 401, 403, 421, 200, 503]


def test_others_have_their_turns_while_a_prompt_is_read():
    shared, order = SharedModel(), []

    def work():
        order.append("part 1")
        shared.later(lambda: order.append("a step of another"))
        yield None
        order.append("part 2")
        yield "done"

    assert shared.in_turns(work()) == "done"
    shared.close()
    assert order == ["part 1", "a step of another", "part 2"]
