"""`msh-mlx serve`: serve conversations to browsers and clients, on this machine or over the network."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import ipaddress
import json
import os
import re
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..conversation.load import load_parts
from ..errors import InputError, MshError
from ..system.inputs import read_small
from ..system.newfile import named_folder
from ..system.places import client_folder, user_path
from ..system.signals import Signals, Stopped
from ..system.threads import short_turns
from ..system.words import listed, printable
from .also import Talking, add_also, also_options, check_also, check_memory_together, choose_also
from .choice import Choice, add_model, check_model, choose
from .options import (
    TOKEN,
    Parser,
    add_lora,
    add_printing,
    add_sampling,
    check_lora,
    computing,
    display,
    own_token,
    seconds,
    settle_sampling,
    whole,
)
from .persona import add_persona, persona_of, sentences
from .ray_options import add_ray, check_ray
from .served_audio import AudioChoice, add_audio, check_audio, choose_audio, model_name, wyoming_name
from .translation import add_guidance, guided_opening

if TYPE_CHECKING:
    from ..conversation.personas import Persona
    from ..conversation.served import ServedPersonas
    from ..conversation.session import Opening, Parts
    from ..conversation.shared import SharedModel
    from ..events import Failed
    from ..library.files import ModelFiles
    from ..net.audio_service import AudioService
    from ..net.parameters import ChatParameters
    from ..net.server import Server, Settings
    from ..net.talking_models import TalkingModel
    from ..net.wyoming_server import WyomingServer
    from ..system.log import Log
    from .display import Display

_PORT = 9998
_BLOCK = 4096  # bytes, the least that a file takes on most disks
_LOOK = 0.05  # seconds between two looks at signals


def run(argv: Sequence[str], signals: Signals) -> int:
    """Serve until a signal comes or the model fails, which is raised."""
    args = parser().parse_args(argv)
    if args.server_config:
        apply(read_configuration(user_path(args.server_config)), args)
    check(args)
    static = None if args.no_conversations and args.static is None else _static(args.static)
    names, addresses = own_names(args.host)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(contextlib.closing(_bind(args.host, args.port)))
        context = None
        if args.ssl:
            from ..net.tls import server_context

            context = server_context(args.ssl, names, addresses)
        wyoming = stack.enter_context(contextlib.closing(_bind(*args.wyoming))) if args.wyoming else None
        chosen = choose_models(args, signals)
        from ..system.log import Log

        shown = stack.enter_context(display(args, signals))
        signals.end_process = True
        signals.defer()
        log = stack.enter_context(Log()) if not args.debug else None
        program = Program(args, chosen, signals, shown, log, names, addresses, wyoming)
        if chosen.warning:
            shown.say(chosen.warning)
        if args.ray is not None:
            port = sock.getsockname()[1]
            sock.close()  # Ray's own processes listen there
            from .replicas import serve_on_ray

            return serve_on_ray(program, port, static)
        # `asyncio.run` would wait at the end for threads that nothing can interrupt, so do not use it.
        return asyncio.new_event_loop().run_until_complete(program.run(sock, context, static))


@dataclass(frozen=True)
class Chosen:
    """What is served: the models' files and what the options say about them.

    `conversation` is None if no conversations are held. `persona` is that of clients that choose none; None: the user named
    none. `also` are other models of conversations. `warning` is a sentence about their memory.
    """

    conversation: Choice | None
    persona: Persona | None
    also: Sequence[Talking]
    audio: AudioChoice
    warning: str | None


def choose_models(args: argparse.Namespace, signals: Signals) -> Chosen:
    """Choose and fetch the models that the options name. Raise InputError if something does not fit."""
    conversation, persona = None, None
    also: list[Talking] = []
    others = also_options(args)
    if not args.no_conversations:
        conversation = choose(args, signals)
        persona = persona_of(args, conversation.files, conversation.checkpoint.config)
        guided_opening(args, conversation)  # it checks --guidance
        also = choose_also(others, model_name(conversation), signals)
    together = [Talking(model_name(conversation), args, conversation), *also] if conversation and also else []
    warning = check_memory_together(together) if together else None
    return Chosen(conversation, persona, also, choose_audio(args, signals), warning)


def parser() -> Parser:
    made = Parser(prog="msh-mlx serve", description="Serve conversations to browsers and clients.")
    to = made.group("model")
    add_model(to, served=True)
    add_also(to)
    add_lora(to)
    to = made.group("server")
    to.value("--host", "ADDRESS", "listen on this address; 0.0.0.0 is every network (default: 127.0.0.1)")
    port = f"listen on this port; 0 takes a free one (default: {_PORT})"
    to.value("--port", "PORT", port, type=whole(0, 1 << 16))
    tls = "serve over TLS with cert.pem and key.pem from this folder; a pair is made if there is none"
    to.value("--ssl", "FOLDER", tls)
    page = "serve the page in this folder, or none with 'none' (default: the page that comes with the program)"
    to.value("--static", "FOLDER", page)
    configuration = "read a configuration of the production server (.json); options override it"
    to.value("--config", "FILE", configuration, dest="server_config")
    to.value("--sessions", "N", "hold up to N conversations at once (default: 1)", type=whole(1, 1001), default=1)
    to.value("--line", "N", "let up to N clients wait for their turn (default: 16)", type=whole(0, 10_001), default=16)
    to.value("--log-dir", "FOLDER", "write a summary (JSON) and the tokens (.npy) of each connection to this folder")
    to.value("--instance-name", "NAME", "tell clients this name of the server (default: msh-mlx)")
    add_audio(made.group("transcription and speech"))
    to = made.group("network")
    to.value("--token", "TOKEN", f"require this token from every client; better set {TOKEN} in the environment")
    origin = "let pages of another server, such as https://example.org, use this one; can be repeated"
    to.repeated("--allow-origin", "ORIGIN", origin)
    to.repeated("--allow-host", "NAME", "accept this name for this machine, besides its own names; can be repeated")
    to.repeated(
        "--trusted-proxy",
        "ADDRESS",
        "believe what a proxy at this address, or in this network, says about its clients; no address is believed unless "
        "it is named, not even 127.0.0.1; can be repeated",
    )
    many = whole(1, 10_001)
    to.value("--max-connections", "N", "allow up to N clients that talk or wait (default: 64)", type=many, default=64)
    to.value("--max-per-address", "N", "allow up to N of them from one address (default: 32)", type=many, default=32)
    idle = "end a conversation after this time without sound (default: 60)"
    to.value("--idle", "SECONDS", idle, type=seconds, default=60.0)
    add_ray(made.group("Ray"))
    to = made.group("conversation (where a client does not ask for something else)")
    add_persona(to)
    add_guidance(to)
    add_sampling(to)
    add_printing(made.group("program"), "print plain lines, even in a terminal", "log JSON objects, one a line")
    return made


def check(args: argparse.Namespace) -> None:
    """Check options together, and replace them by what they mean; raise InputError if they do not fit."""
    # Not by the parser: a configuration sets what was not given.
    args.host = "127.0.0.1" if args.host is None else args.host
    args.port = _PORT if args.port is None else args.port
    args.token = own_token(args)
    if args.config is not None and not args.model:
        raise InputError("--lm-config is for a model of your own", "give it with --model")
    for origin in args.allow_origin:
        if not re.fullmatch(r"https?://[^/\s]+", origin, re.IGNORECASE):
            raise InputError(f"--allow-origin {origin} is not an origin", "give one like https://example.org")
    if args.trusted_proxy:
        from ..net.visitor import read_network

        args.trusted_proxy = [read_network(text) for text in args.trusted_proxy]
    check_model(args)
    check_lora(args)
    check_audio(args)
    check_also(args)
    check_ray(args)
    if args.ssl is not None:
        args.ssl = named_folder(args.ssl, "--ssl")
    if args.log_dir is not None:
        args.log_dir = named_folder(args.log_dir, "--log-dir")
        _check_log_dir(args.log_dir)


def _check_log_dir(folder: Path) -> None:
    """Make the folder if it is missing, and check that files can be written to it; raise InputError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_BLOCK))
    except OSError as error:
        raise InputError(f"--log-dir {folder} cannot be written: {error.strerror}", "give another folder") from None


def _static(named: str | None) -> Path | None:
    if named == "none":
        return None
    if named:
        folder = user_path(named)
        if not (folder / "index.html").is_file():
            raise InputError(f"{folder} has no index.html", "give the folder of the built page, or --static none")
        return folder
    return client_folder()


# ---- the production server's configuration -------------------------------------------------------------------------------

# Its keys, and the options that they set. None: this server needs no option for it.
_KEYS: dict[str, str | None] = {
    "instance_name": "instance_name",
    "hf_repo": "hf_repo",
    "lm_model_file": "model",
    "text_tokenizer_file": "tokenizer",
    "mimi_model_file": "mimi",
    "mimi_num_codebooks": None,
    "log_dir": "log_dir",
    "static_dir": "static",
    "addr": "host",
    "port": "port",
    "cert_dir": "ssl",
    "use_cpu_for_mimi": None,
}
_NAMED = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
_CODEBOOKS = 8


def read_configuration(path: Path) -> dict[str, Any]:
    """Read a configuration of the production server, and return what is set in it. Raise InputError if a value is wrong."""
    raw = read_small(path, "The configuration", 1 << 20)
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        raise InputError(f"The configuration {path} is not valid JSON.") from None
    if not isinstance(values, dict):
        raise InputError(f"The configuration {path} is not a JSON object.")
    values = {key: value for key, value in values.items() if value is not None}
    for key in values:
        if key not in _KEYS:
            raise InputError(f"{path}: this server does not have {key!r}", "leave it out")
    codebooks = values.get("mimi_num_codebooks", _CODEBOOKS)
    if codebooks != _CODEBOOKS:
        raise InputError(f"{path}: mimi_num_codebooks is {codebooks!r}, but the model has {_CODEBOOKS}", "leave it out")
    return {key: _substituted(path, key, value) for key, value in values.items()}


def _substituted(path: Path, key: str, value: Any) -> Any:
    """Check the type of a value, and replace `$NAME` in it by the environment's value."""
    kind = {"port": int, "mimi_num_codebooks": int, "use_cpu_for_mimi": bool}.get(key, str)
    if type(value) is not kind or (key == "port" and value not in range(1 << 16)):
        raise InputError(f"{path}: {key} has the wrong value {value!r}.")
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise InputError(f"{path}: {key} names ${name}, which the environment does not have", "set it")
        return os.environ[name]

    return _NAMED.sub(replace, value)


def apply(values: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Set the options that were not given from a configuration."""
    model = values.get("lm_model_file")
    ignored: tuple[str, ...] = ()
    if values.get("hf_repo") and not (model and Path(model).exists()):
        # If the model's file is missing, fetch the files from the hub, as the production server does.
        ignored = ("model", "tokenizer", "mimi")
    elif model:
        ignored = ("hf_repo",)
        if model.endswith(".gguf"):
            raise InputError(f"{model} is a GGUF file", "give weights in safetensors with --model")
    if args.model or args.variant or args.hf_repo or args.demo:
        ignored = ("model", "tokenizer", "mimi", "hf_repo")
    for key, value in values.items():
        name = _KEYS[key]
        if name and name not in ignored and getattr(args, name) is None:
            setattr(args, name, value)


# ---- settings -----------------------------------------------------------------------------------------------------------


def settings(
    args: argparse.Namespace, files: ModelFiles | None, names: Sequence[str] = (), static: Path | None = None
) -> Settings:
    """Return the settings of a server from the options; `names` are the names of this machine.

    `files` are those of the model of conversations; None: it holds none.

    Options of sampling that were left out, and that `choose` has not settled for its model, are as for Moshi.
    """
    from ..net.connection import Limits
    from ..net.parameters import ChatParameters
    from ..net.server import Settings

    settle_sampling(args, None)
    own = client_folder()
    penalty = None if args.repetition_penalty == 1 else args.repetition_penalty
    defaults = ChatParameters(
        text_temperature=args.text_temperature,
        text_topk=args.text_top_k,
        audio_temperature=args.temperature,
        audio_topk=args.top_k,
        max_steps=None,
        text_seed=args.seed,
        audio_seed=args.seed,
        pad_mult=args.padding_bonus or None,
        repetition_penalty=penalty,
        repetition_penalty_context=args.repetition_words if penalty else None,
    )
    return Settings(
        sessions=args.sessions,
        line=args.line,
        connections=args.max_connections,
        connections_per_address=args.max_per_address,
        proxies=tuple(args.trusted_proxy),
        limits=Limits(idle=args.idle),
        token=args.token,
        hosts=frozenset(name.lower() for name in ("localhost", *names, *args.allow_host)),
        origins=frozenset(args.allow_origin),
        static=static,
        static_is_named=static is not None and not (own and static.samefile(own)),
        log_dir=args.log_dir or None,
        defaults=defaults,
        conversations=files is not None,
        about=(files.model.name if files else "", files.mimi.name if files else "", args.instance_name or "msh-mlx"),
    )


def samplers(args: argparse.Namespace, asked: ChatParameters) -> dict[str, Any]:
    """Turn a client's parameters into the arguments of a session.

    The protocol counts the penalty's context in tokens, a session in words; most words are one token.
    """
    from ..model.sampling import Sampler, TextSampler

    context = asked.repetition_penalty_context
    if context is None:
        context = args.repetition_words
    text = TextSampler(
        asked.text_temperature,
        asked.text_topk,
        args.text_top_p,
        args.text_min_p,
        repetition_penalty=1.0 if asked.repetition_penalty is None or context == 0 else asked.repetition_penalty,
        repetition_words=min(max(context, 1), 1000),
        padding_bonus=asked.pad_mult or 0.0,
    )
    audio = Sampler(asked.audio_temperature, asked.audio_topk, args.top_p, args.min_p)
    return {"text_sampler": text, "audio_sampler": audio, "seed": _seed(asked.text_seed, asked.audio_seed)}


def _seed(text: int | None, audio: int | None) -> int | None:
    """Combine the seeds for text and audio into one; if they are equal or only one is given, that is the seed."""
    if text is None or audio is None or text == audio:
        return audio if text is None else text
    from ..model.sampling import mixed_seed

    return mixed_seed(audio, text)


# ---- addresses -----------------------------------------------------------------------------------------------------------


def _bind(host: str, port: int) -> socket.socket:
    """Bind a socket, before anything is loaded, so that a wrong address is reported at once."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        dual = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=256, dualstack_ipv6=dual)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"There is no address {host!r} on this machine", "--host 127.0.0.1 always works") from None
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"Port {port} is in use by another program", "take another one with --port") from None
        if error.errno == errno.EACCES:
            what = f"Port {port} may not be used by this user"
            raise InputError(what, "take one of 1024 or more with --port") from None
        reason = os.strerror(error.errno) if error.errno else str(error)  # create_server adds words to strerror
        raise InputError(f"Cannot listen on {host}, port {port}: {reason}", "give --host or --port") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> tuple[list[str], list[str]]:
    """Return the names and addresses under which others may reach a server that listens on `host`."""
    name = socket.gethostname().lower()
    names = ["localhost", name] + ([f"{name}.local"] if "." not in name else [])
    if _is_loopback(host):
        return names[:1], ["127.0.0.1", "::1"]
    if host not in ("", "0.0.0.0", "::"):
        try:
            ipaddress.ip_address(host)
            return names, [host]
        except ValueError:
            return [*names, host.lower()], []
    import ifaddr

    found = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    ours = [ip for ip in found if isinstance(ip, str)]
    return names, [ip for ip in ours if not ipaddress.ip_address(ip).is_loopback] + ["127.0.0.1"]


# ---- the program ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """The running server, from loading to the end. `names` and `addresses` are those under which others may reach it.

    `faults` is where details of unexpected faults go, and `wyoming` the bound socket of that protocol, if it is spoken.
    """

    args: argparse.Namespace
    chosen: Chosen
    signals: Signals
    shown: Display
    faults: Log | None
    names: Sequence[str]
    addresses: Sequence[str]
    wyoming: socket.socket | None = None

    async def run(self, sock: socket.socket, context: ssl.SSLContext | None, static: Path | None) -> int:
        from ..net.listener import Listener

        server, load = self.make(static)
        wyoming = self._wyoming_server(server.audio)
        listener = Listener(server)
        await listener.listen(sock, context)
        try:
            await self._while_signals_allow(asyncio.to_thread(load))
            server.ready = True
            self.say_where(sock.getsockname()[1], static)
            if wyoming:
                await self._begin_wyoming(wyoming)
            with short_turns():
                await self._while_signals_allow(server.failed.wait())
            assert server.failure
            raise self._sorry(server.failure)
        except Stopped:
            await listener.close("The server is shutting down.")
            raise
        except MshError:
            await listener.close("The model failed; the conversation is over.")
            raise
        finally:
            if wyoming:
                await wyoming.close()

    def make(self, static: Path | None) -> tuple[Server, Callable[[], None]]:
        """Make the server, on the running event loop, and what loads its models; it is ready when they are loaded."""
        from ..conversation.shared import SharedModel
        from ..net.server import Server

        args = self.args
        model = SharedModel(kv_bits=args.kv_bits, sessions=args.sessions)
        what = settings(args, self.chosen.conversation.files if self.chosen.conversation else None, self.names, static)
        service = self._service()
        also = [self._talking(each) for each in self.chosen.also]
        server = Server(model, what, partial(samplers, args), self.log, service, also)
        self._watch(service, server)
        return server, partial(self._load, model, service, also)

    # ---- transcription and speech ----------------------------------------------------------------------------------------

    def _service(self) -> AudioService:
        """Make what is loaded later: the models of transcription and speech."""
        from ..conversation.shared_speaker import SharedSpeaker
        from ..conversation.shared_transcriber import SharedTranscriber
        from ..net.audio_service import AudioService

        args, audio = self.args, self.chosen.audio
        stt_name, tts_name = audio.names
        rows = {"rows": args.stt_rows, "waiting": args.line, "kv_bits": args.kv_bits}
        return AudioService(
            SharedTranscriber(**rows) if audio.stt else None,
            stt_name,
            SharedSpeaker(waiting=args.line) if audio.tts else None,
            tts_name,
            model_name(self.chosen.conversation) if self.chosen.conversation else None,
            tuple(each.name for each in self.chosen.also),
            log=self.log,
        )

    def _watch(self, service: AudioService, server: Server) -> None:
        """Let a failure of a model end the server."""
        from ..events import Failed

        loop = asyncio.get_running_loop()

        def fail(error: BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(server.fail, Failed("model", error))

        if service.transcriber:
            service.transcriber.on_failure = fail
        if service.speaker:
            service.speaker.on_failure = fail

    def _wyoming_server(self, service: AudioService) -> WyomingServer | None:
        if not self.wyoming:
            return None
        from ..net.wyoming_server import WyomingServer

        limits = {"connections": self.args.max_connections, "per_address": self.args.max_per_address}
        return WyomingServer(service, self.chosen.audio.languages, **limits)

    async def _begin_wyoming(self, server: WyomingServer) -> None:
        """Listen, and announce the server to other machines."""
        assert self.wyoming
        await server.listen(self.wyoming)
        host, port = self.args.wyoming[0], self.wyoming.getsockname()[1]
        self.say(f"Wyoming: listening on {_bracketed(host or '0.0.0.0')}:{port}")
        if _is_loopback(host):
            return
        _, addresses = own_names(host)
        if not addresses:  # the host is a name
            _, addresses = own_names("")
        beyond = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
        name = wyoming_name(self.args.instance_name or "msh-mlx", socket.gethostname(), port)
        try:
            await server.announce(name, beyond, port)
        except (OSError, RuntimeError) as error:
            self.say(f"The server cannot be announced on the network ({error}); give its address to Home Assistant.")
        if self.args.token:
            self.say("Wyoming has no tokens: everybody who can reach this machine can use it.")

    async def _while_signals_allow(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        while not task.done():
            self.signals.check()
            await asyncio.wait([task], timeout=_LOOK)
        task.result()

    def _talking(self, each: Talking) -> TalkingModel:
        """Make a model of `--also`, which is loaded later."""
        from ..conversation.shared import SharedModel
        from ..net.talking_models import TalkingModel

        shared = SharedModel(kv_bits=each.args.kv_bits, sessions=each.args.sessions)
        what = settings(each.args, each.choice.files)
        return TalkingModel(each.name, shared, partial(samplers, each.args), what.defaults, what.about)

    def _load(self, model: SharedModel, service: AudioService, also: Sequence[TalkingModel]) -> None:
        begin, names = perf_counter(), []
        mine = self.chosen.conversation
        first = [Talking(mine.files.model.name, self.args, mine, self.chosen.persona)] if mine else []
        for each, shared in zip([*first, *self.chosen.also], [model, *(one.shared for one in also)], strict=False):
            choice = each.choice
            with self.shown.progress(f"Loading {choice.files.model.name}") as progress:
                load = partial(load_parts, choice.files, choice.checkpoint, **computing(each.args), progress=progress)
                shared.load(load, partial(self._begin, each))
            names.append(each.name)
        if service.transcriber:
            self.chosen.audio.load_stt(service.transcriber, self.shown)
            names.append(service.transcriber_name)
        if service.speaker:
            self.chosen.audio.load_tts(service.speaker, self.shown)
            names.append(service.speaker_name)
        # Else Python's collector would stop all threads again and again to look through what was loaded.
        gc.collect()
        gc.freeze()
        self.say(f"Loaded {listed(names)} in {perf_counter() - begin:.1f} s")
        for sentence in sentences(self.chosen.persona) if self.chosen.persona else ():
            self.say(sentence)

    def _begin(self, talking: Talking, parts: Parts) -> Opening | ServedPersonas | None:
        """Make what comes before each conversation; None: what is usual for the model."""
        from ..model.families import family_of, personaplex

        if family_of(parts.lm.config).name == personaplex.NAME:
            return self._personas(talking, parts)
        make = guided_opening(talking.args, talking.choice)
        return make(parts) if make else None

    def _personas(self, talking: Talking, parts: Parts) -> ServedPersonas:
        """Make the personas that clients may choose: with the voices that have a name and fit the model."""
        from ..conversation.kept import KeptPrompts
        from ..conversation.personas import Personas
        from ..conversation.served import ServedPersonas, read_voices
        from ..library.suited import load_library
        from ..library.voices import known_voices

        args, choice = talking.args, talking.choice
        personas = Personas(parts, kv_bits=args.kv_bits, kept=KeptPrompts.of_user(args.keep_prompts))
        # The catalogue's voices were made for its models, and not for the demo.
        known = known_voices(choice.files.model, () if choice.is_demo else load_library(args.weights).values())
        voices = read_voices(
            {name: voice.path for name, voice in known.items()},
            personas,
            lambda name, error: self.say(f"The voice {name} is left out: {error}"),
        )
        return ServedPersonas(personas, talking.persona, voices)

    # ---- messages --------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print a line; with --json, print it as an object like the log's."""
        if self.args.json:
            self.log({"event": "notice", "message": text})
        else:
            print(printable(text), flush=True)

    def say_where(self, port: int, static: Path | None) -> None:
        """Say where the server listens, and who can reach it."""
        args, say = self.args, self.say
        scheme = "https" if args.ssl else "http"
        say(f"standalone worker listening on {scheme}://{_bracketed(args.host or '0.0.0.0')}:{port}")
        if args.ssl:
            from ..net.tls import folder_fingerprint

            say(f"SHA-256 of the certificate: {folder_fingerprint(args.ssl)}")
        self._say_page(scheme, port, static)
        if _is_loopback(args.host):
            return
        if not args.ssl:
            say("Without --ssl, anybody on the network can listen to conversations,")
            say("and browsers on other machines do not let this page use the microphone.")
        if not args.token:
            say("Without --token, everybody who can reach this machine can talk with the model.")

    def _say_page(self, scheme: str, port: int, static: Path | None) -> None:
        """Print the page's addresses, and for other machines also a QR code."""
        args = self.args
        if not static:
            if args.static != "none" and not args.no_conversations:
                self.say("There is no page yet: build it with `make page`. Clients can connect.")
            return
        token = f"#worker_auth_id={args.token}" if args.token else ""
        local = _is_loopback(args.host)
        beyond = [address for address in self.addresses if address != "127.0.0.1"] or self.addresses or [args.host]
        pages = [f"{scheme}://{_bracketed(name)}:{port}/{token}" for name in (["localhost"] if local else beyond)]
        for page in pages:
            self.say(f"Open {page}")
        if not local and not args.json:
            import segno

            print()
            segno.make(pages[0], error="l").terminal(sys.stdout, compact=True)

    def log(self, event: Mapping[str, Any]) -> None:
        values = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **event}
        if self.args.json:
            line = json.dumps(values, ensure_ascii=False)
        else:
            line = " ".join(f"{key}={_plain(value)}" for key, value in values.items())
        with contextlib.suppress(OSError, ValueError):
            print(line, flush=True)

    def _sorry(self, failure: Failed) -> MshError:
        from ..model.engines import explain

        if isinstance(failure.error, MshError):
            return failure.error
        if said := explain(failure.error):
            return said
        path = self.faults.write(failure.error) if self.faults else None
        details = f"; details are in {path}" if path else ""
        what = f"{type(failure.error).__name__}: {failure.error}".rstrip(".: ")
        return MshError(f"The model failed ({what}), and so the server ends{details}.")


def _plain(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text, ensure_ascii=False)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
