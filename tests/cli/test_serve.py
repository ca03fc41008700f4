"""`msh-mlx serve` from the outside: what it prints, its configuration, its troubles."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from paths import DEMO, ROOT

from msh_mlx.cli import serve, server_program
from msh_mlx.cli.options import settle_sampling
from msh_mlx.errors import InputError
from msh_mlx.library.files import find_demo
from msh_mlx.model.config import LmConfig
from msh_mlx.net.parameters import ChatParameters
from msh_mlx.system.signals import Signals


class Program:
    """`server_opus.py` as a process, its lines as they come."""

    def __init__(self, *options, env=None):
        command = [sys.executable, str(ROOT / "server_opus.py"), *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.lines = []

    def until(self, start):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(start):
                return self.lines[-1]
        raise AssertionError((self.lines, self.process.stderr.read()))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=10)
        self.lines += out.splitlines()
        return self.process.returncode, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def complaint(*options, env=None):
    command = [sys.executable, str(ROOT / "server_opus.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def page(tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<!doctype html><title>x</title>")
    return "--static", str(tmp_path / "page")


def test_it_says_where_when_it_is_ready_and_ends_on_sigterm(page):
    with Program("--demo", "--port", "0", "--plain", *page) as program:
        line = program.until("standalone worker listening on ")
        port = int(re.fullmatch(r"standalone worker listening on http://127\.0\.0\.1:(\d+)", line)[1])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 200
        assert program.until("Open ") == f"Open http://localhost:{port}/"
        assert program.end() == (143, "Stopped.\n")


def test_with_json_every_line_is_an_object(page):
    """Also beyond this machine, where people would see a code."""
    with Program("--demo", "--port", "0", "--host", "0.0.0.0", "--json", *page) as program:
        while not any("Without --token" in line for line in program.lines):
            program.until("{")
        assert program.end() == (143, "Stopped.\n")
    events = [json.loads(line) for line in program.lines]
    assert {event["event"] for event in events} == {"notice"}
    assert any(event["message"].startswith("standalone worker listening on http://0.0.0.0:") for event in events)


def test_without_a_page_nobody_is_sent_there(monkeypatch, capsys):
    """The page is built later than the server, in a checkout."""
    monkeypatch.setattr(serve, "client_folder", lambda: None)
    for options, said in (([], "There is no page yet: build it with `make page`."), (["--static", "none"], "")):
        args = serve.parser().parse_args(["--demo", "--host", "0.0.0.0", *options])
        serve.check(args)
        program = server_program.Program(args, None, None, None, None, [], ["192.0.2.1"])
        program._say_page("http", 9998, serve._static(args.static))
        out = capsys.readouterr().out
        assert out.startswith(said)
        assert "Open" not in out
        assert "█" not in out


def test_beyond_this_machine_it_says_what_that_means_and_shows_a_code(page):
    with Program("--demo", "--port", "0", "--host", "0.0.0.0", "--plain", *page) as program:
        program.until("Without --token")
        out = "\n".join(program.lines)
    assert "Without --ssl" in out
    assert "█" in out  # of the code


def test_with_token_and_tls(tmp_path, page):
    options = *page, "--port", "0", "--host", "0.0.0.0", "--ssl", str(tmp_path / "pair"), "--plain"
    with Program("--demo", *options, env={"MSH_TOKEN": "s3cret"}) as program:
        line = program.until("standalone")
        assert re.search(r"https://0\.0\.0\.0:\d+$", line)
        assert re.search(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", program.until("SHA-256"))
        assert program.until("Open https://").endswith("/#worker_auth_id=s3cret")
        time.sleep(0.3)
        _, _ = program.end()
        assert not [line for line in program.lines if line.startswith("Without")]
    with Program("--demo", *options, "--token", "x") as program:
        again = program.until("SHA-256")  # the pair stays
    assert again == next(line for line in program.lines if line.startswith("SHA-256"))


def test_troubles_are_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = complaint("--demo", "--port", str(port))
    assert (code, said) == (2, f"Port {port} is in use already; take another one with --port.\n")
    (tmp_path / "c.json").write_text('{"asr_delay_in_tokens": 6}')
    (tmp_path / "d.json").write_text("{")
    for options, part in [
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (
            ["--host", "203.0.113.9"],
            "There is no address '203.0.113.9' on this machine; 127.0.0.1 always works.\n",
        ),
        (["--static", str(tmp_path)], "has no index.html"),
        (["--config", str(tmp_path / "c.json")], "asr_delay_in_tokens"),
        (["--config", str(tmp_path / "d.json")], "not valid JSON"),
        (["--config", str(tmp_path / "e.json")], f"There is no configuration {tmp_path / 'e.json'}.\n"),
        (["--config", str(tmp_path)], f"The configuration {tmp_path} is a folder; give the file in it.\n"),
        (["--token", "a b"], "token"),
        (["--sessions", "0"], "--sessions"),
        (["--allow-origin", "example.org"], "not an origin"),
        (["--lm-config", "x.json"], "--lm-config"),
        (["--log-dir", str(tmp_path / "c.json")], f"--log-dir {tmp_path / 'c.json'} cannot be written: File exists"),
        (["--log-dir", str(tmp_path / "c.json" / "logs")], "cannot be written: Not a directory"),
        (["--ssl", str(tmp_path / "c.json" / "pair")], "c.json"),
        (["--static", str(tmp_path / "c.json")], "has no index.html"),
        (["--log-dir", ""], "The name of the folder is empty; give one with --log-dir."),
        (["--ssl", ""], "The name of the folder is empty; give one with --ssl."),
        (["--trusted-proxy", "nginx"], "--trusted-proxy nginx is not an address"),
    ]:
        code, said = complaint("--demo", *options)
        assert code == 2
        assert part in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", str(DEMO / "stt/model.safetensors")], "is a speech-to-text model; use 'msh-mlx transcribe'."),
        (["--model", str(DEMO / "tts/model.safetensors")], "is a text-to-speech model; use 'msh-mlx say'."),
        (["--model", str(DEMO / "model.q8.safetensors"), "--prompt", "next"], "takes neither a voice nor a role; "),
        (["--demo", "--prompt", "next", "--guidance", "3"], "--guidance is for Hibiki; leave it out."),
        (["--demo", "--voice", "nobody"], "There is no voice 'nobody', and no file of this name; "),
        (["--demo", "--voice", str(DEMO / "config.json")], "config.json"),
    ],
)
def test_a_model_or_a_persona_that_does_not_fit_is_refused_before_loading(options, said):
    more = ["--mimi", str(DEMO / "mimi.safetensors")] if "--model" in options else []
    with pytest.raises(InputError) as raised:
        serve.run([*options, *more, "--port", "0"], Signals())
    assert said in str(raised.value)


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux: folders that nobody may write to, not even root")
@pytest.mark.parametrize("folder", ["/proc/sys", "/proc/no-such-folder"])
def test_a_folder_for_logs_that_takes_none_is_noticed_at_the_start(folder):
    code, said = complaint("--demo", "--log-dir", folder)
    assert code == 2
    assert said.startswith(f"--log-dir {folder} cannot be written: ")


def test_a_full_disk_under_the_logs_is_noticed_at_the_start(tmp_path, monkeypatch):
    """As a file that may not grow, which says as much."""
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(
            InputError, match=r"^--log-dir .* cannot be written: File too large; give another folder\.$"
        ):
            serve.check(serve.parser().parse_args(["--demo", "--log-dir", str(tmp_path / "logs")]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list((tmp_path / "logs").iterdir()) == []


# ---- the production server's configuration -------------------------------------------------------------------------------


def configured(tmp_path, values, *options):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    args = serve.parser().parse_args(["--config", str(path), *options])
    serve.apply(serve.read_configuration(path), args)
    return args


PUBLISHED = {
    "instance_name": "foo",
    "hf_repo": "kyutai/moshika-candle-bf16",
    "lm_model_file": "$HOME/tmp/model.safetensors",
    "text_tokenizer_file": "$HOME/tmp/tokenizer_spm_32k_3.model",
    "log_dir": "$HOME/tmp/moshi-logs",
    "mimi_model_file": "$HOME/tmp/tokenizer-e351c8d8-checkpoint125.safetensors",
    "mimi_num_codebooks": 8,
    "static_dir": "../client/dist",
    "addr": "0.0.0.0",
    "port": 8998,
    "cert_dir": ".",
    "use_cpu_for_mimi": False,
}


def test_a_published_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = configured(tmp_path, PUBLISHED)
    assert (args.host, args.port, args.ssl, args.static) == ("0.0.0.0", 8998, ".", "../client/dist")
    assert (args.instance_name, args.log_dir) == ("foo", f"{tmp_path}/tmp/moshi-logs")
    assert (args.hf_repo, args.model, args.mimi) == ("kyutai/moshika-candle-bf16", None, None)  # no such files
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "model.safetensors").touch()
    args = configured(tmp_path, PUBLISHED)
    assert (args.hf_repo, args.model) == (None, f"{tmp_path}/tmp/model.safetensors")
    assert args.tokenizer == f"{tmp_path}/tmp/tokenizer_spm_32k_3.model"


def test_options_come_before_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = configured(tmp_path, PUBLISHED, "--demo", "--port", "1234", "--static", "none")
    assert (args.port, args.static, args.host) == (1234, "none", "0.0.0.0")
    assert (args.hf_repo, args.model, args.mimi, args.tokenizer) == (None, None, None, None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"asr_delay_in_tokens": 6}, "this server does not have 'asr_delay_in_tokens'"),
        ({"lm_config": {"dim": 4096}}, "this server does not have 'lm_config'"),
        ({"mimi_num_codebooks": 16}, "mimi_num_codebooks is 16"),
        ({"port": "80"}, "port has the wrong value '80'"),
        ({"port": 70000}, "port has the wrong value 70000"),
        ({"addr": True}, "addr has the wrong value True"),
        ({"log_dir": "$NO_SUCH_NAME/x"}, "$NO_SUCH_NAME"),
        ({"lm_model_file": "model.q8.gguf"}, "is a GGUF file"),
    ],
)
def test_what_a_configuration_may_not_say(tmp_path, values, said):
    with pytest.raises(InputError) as error:
        configured(tmp_path, values)
    assert said in str(error.value)
    assert str(error.value).endswith(".")


def test_null_is_as_if_it_were_not_there(tmp_path):
    values = {"asr_delay_in_tokens": None, "lm_config": None, "mimi_num_codebooks": None, "port": 1}
    assert configured(tmp_path, values).port == 1


# ---- options -------------------------------------------------------------------------------------------------------------


def test_the_published_names_of_options():
    names = "--moshi-weights", "a", "--mimi-weights", "b", "--tokenizer", "c"
    args = serve.parser().parse_args(names)
    assert (args.model, args.mimi, args.tokenizer) == ("a", "b", "c")


def sampled(*options, **query):
    args = serve.parser().parse_args(["--demo", *options])
    serve.check(args)
    settle_sampling(args, LmConfig())  # as the choice of a model does
    defaults = server_program.settings(args, find_demo()).defaults
    return server_program.samplers(args, ChatParameters.from_query(query, defaults))


def test_what_clients_ask_for_comes_before_the_options():
    made = sampled(
        "--text-temperature", "0.5", "--top-k", "9", "--text-min-p", "0.1", text_temperature="0.25", pad_mult="2"
    )
    text, audio = made["text_sampler"], made["audio_sampler"]
    assert (text.temperature, text.top_k, text.min_p, text.padding_bonus) == (0.25, 25, 0.1, 2)
    assert (audio.temperature, audio.top_k, made["seed"]) == (0.8, 9, None)


def test_the_penalty_of_a_client():
    assert sampled()["text_sampler"].recent_size == 0
    text = sampled(repetition_penalty="1.2", repetition_penalty_context="64")["text_sampler"]
    assert (text.repetition_penalty, text.repetition_words) == (1.2, 64)
    assert sampled(repetition_penalty="1.2", repetition_penalty_context="0")["text_sampler"].recent_size == 0
    assert (
        sampled(repetition_penalty="1.2", repetition_penalty_context="10000")["text_sampler"].repetition_words == 1000
    )
    assert sampled("--repetition-penalty", "1.3")["text_sampler"].repetition_penalty == 1.3


def test_two_seeds_make_one():
    assert sampled(text_seed="7", audio_seed="7")["seed"] == sampled("--seed", "7")["seed"] == 7
    assert sampled(text_seed="7")["seed"] == sampled(audio_seed="7")["seed"] == 7
    both = {sampled(text_seed=a, audio_seed=b)["seed"] for a in "78" for b in "78"}
    assert len(both) == 4
