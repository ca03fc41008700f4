"""Several conversation models on one server: the demo model, and the one that takes a role."""

import json
import shutil

import aiohttp
import hosts
import pytest
import soundfile
from paths import DEMO
from served import serving
from talker import Talker, talk

from msh_mlx.cli.also import also_options, check_memory_together, choose_also
from msh_mlx.conversation.shared import SharedModel
from msh_mlx.errors import InputError, MshError
from msh_mlx.format import FRAME_SIZE
from msh_mlx.net.messages import Handshake
from msh_mlx.net.parameters import ChatParameters
from msh_mlx.net.talking_models import Duplex, TalkingModels
from msh_mlx.system.signals import Signals

FILE = {"realtime": 0, "text_temperature": 0, "audio_temperature": 0}
EXPECTED = json.loads((DEMO / "persona" / "expected.json").read_text())
WORDS = {case["prompt"]: case["words"][:2] for case in EXPECTED["cases"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of one's own with all its files, named as its folder: persona."""
    made = tmp_path_factory.mktemp("models") / "persona"
    shutil.copytree(DEMO / "persona", made)
    (made / "model.q8.safetensors").rename(made / "model.safetensors")
    shutil.copy(DEMO / "mimi.safetensors", made / "mimi-demo.safetensors")
    return made


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    options = ("--also", str(folder), "--sessions", "2", "--stt", "none", "--tts", "none")
    with serving(tmp_path_factory.mktemp("server"), *options) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def digits():
    pcm, _ = soundfile.read(DEMO / "digits.flac", dtype="float32")
    return pcm[: 45 * FRAME_SIZE]


async def get(url, path, method="GET", **query):
    async with aiohttp.ClientSession() as http, http.request(method, url + path, params=query) as response:
        return response.status, await response.text()


async def test_a_conversation_is_with_the_model_that_the_address_names(url, digits):
    default = await talk(url, digits, **FILE)
    named = await talk(url, digits, model="demo", **FILE)
    other = await talk(url, digits, model="persona", text_prompt="next", stats=1, **FILE)
    assert default.text.split() == named.text.split() == ["four", "one"]
    assert other.text.split() == WORDS["next"]
    assert other.metadata[0]["lm_model_file"] == "model.safetensors"
    assert "ignored" not in other.metadata[0]


async def test_both_are_talked_with_at_once(url, digits):
    async with Talker(url, **FILE) as first, Talker(url, model="persona", **FILE) as second:
        assert await first.until(Handshake)
        assert await second.until(Handshake)
        figures = (await get(url, "/metrics"))[1]
    assert "msh_sessions 2.0" in figures
    assert "msh_step_seconds_count" in figures


async def test_an_unknown_model_is_refused_by_a_sentence_that_names_those_there_are(url):
    sentence = "There is no model 'nobody' here; there is demo and persona."
    assert await get(url, "/api/chat", "POST", model="nobody") == (400, sentence + "\n")
    assert await get(url, "/api/voices", model="nobody") == (400, sentence + "\n")
    assert (await get(url, "/api/chat", "POST", model="persona"))[0] == 426


async def test_models_and_their_voices_are_listed(url):
    names = {"models": ["demo", "persona"]}
    plain = {"prompt": False, "voices": [], "voice": "", **names, "model": "demo"}
    assert json.loads((await get(url, "/api/voices"))[1]) == plain
    assert json.loads((await get(url, "/api/voices", model="demo"))[1]) == plain
    roles = json.loads((await get(url, "/api/voices", model="persona"))[1])
    assert roles == {"prompt": True, "voices": [], "voice": "", **names, "model": "persona"}
    listed = json.loads((await get(url, "/v1/models"))[1])["data"]
    assert [each["id"] for each in listed] == ["demo", "persona"]


@pytest.mark.parametrize(("asked", "told"), [("persona", "persona"), ("demo", "demo"), ("gpt-realtime", "demo")])
async def test_openais_protocol_takes_the_model_if_it_is_served_and_else_the_default(url, asked, told):
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/v1/realtime", params={"model": asked}) as ws:
        created = await ws.receive_json(timeout=10)
        assert (created["type"], created["session"]["model"]) == ("session.created", told)
        # Only the one takes a role.
        await ws.send_json({"type": "session.update", "session": {"type": "realtime", "instructions": "next"}})
        while (answer := await ws.receive_json(timeout=10))["type"] == "conversation.created":
            pass
    assert answer["type"] == ("session.updated" if asked == "persona" else "error")


def test_there_is_room_for_what_all_models_take_together():
    shared = [SharedModel() for _ in range(2)]
    for one, cost in zip(shared, (0.025, 0.015), strict=True):
        for _ in range(250):
            one.costs.add(1, cost)
    about = ("", "", "")
    models = [Duplex(name, one, lambda _: {}, ChatParameters(), about) for name, one in zip("ab", shared, strict=True)]
    a, b = models
    all_of_them = TalkingModels(models)
    # 60 ms are there.
    talking = [[], [a], [b], [a, b], [a, a], [b, b], [b, b, b]]
    assert [all_of_them.has_room(a, each) for each in talking] == [True, True, True, False, False, True, False]
    assert [all_of_them.has_room(b, each) for each in talking] == [True, True, True, True, False, True, True]
    assert [all_of_them.places(each, 100) for each in talking] == [2, 2, 2, 2, 2, 3, 3]
    # Those who talk with the other model wait too long already.
    for _ in range(250):
        shared[0].replies.add(0.05)
    assert [all_of_them.has_room(b, each) for each in ([], [a], [b])] == [True, False, True]
    for one in shared:
        one.close()


def checked(*options):
    return hosts.checked("--demo", "--plain", *map(str, options))


def test_the_options_of_the_default_model_alone_are_not_for_the_others(folder, monkeypatch):
    args = checked("--also", folder, "--prompt", "next", "--temperature", "0.3")
    (other,) = also_options(args)
    assert (other.prompt, other.demo, other.temperature) == (None, False, 0.3)
    with Signals() as signals:
        talking = choose_also([other], "demo", signals)
        assert [(each.name, each.choice.files.model.parent) for each in talking] == [("persona", folder)]
        with pytest.raises(InputError, match="would be a second model named persona"):
            choose_also([other], "persona", signals)
    assert check_memory_together(talking * 2) is None
    monkeypatch.setattr("msh_mlx.system.memory.machine_memory", lambda: 1 << 20)
    with pytest.raises(MshError, match=r"What holds conversations \(persona and persona\) takes"):
        check_memory_together(talking * 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--also", ""], "--also is empty"),
        (["--also", "x", "--no-conversations"], "--also and --no-conversations do not go together"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        checked(*options)
