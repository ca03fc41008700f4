"""The running server: its models, its settings, its names, from loading to the end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import json
import re
import socket
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..conversation.load import load_parts
from ..errors import MshError
from ..system.places import client_folder
from ..system.signals import Signals, Stopped
from ..system.threads import short_turns
from ..system.words import listed, printable
from .also import Talking, also_options, check_memory_together, choose_also
from .choice import Choice, choose
from .options import computing, settle_sampling
from .persona import persona_of, prompt_text, sentences
from .served_audio import AudioChoice, choose_audio, model_name, wyoming_name
from .translation import guided_opening

if TYPE_CHECKING:
    from ..conversation.personas import Persona
    from ..conversation.served import ServedPersonas
    from ..conversation.session import Opening, Parts
    from ..conversation.shared import SharedModel
    from ..events import Failed
    from ..library.files import ModelFiles
    from ..net.audio_service import AudioService
    from ..net.chat_completions import ChatCompletions
    from ..net.parameters import ChatParameters
    from ..net.server import Server, Settings
    from ..net.talking_models import TalkingModel
    from ..net.wyoming_server import WyomingServer
    from ..system.log import Log
    from .display import Display

_LOOK = 0.05  # seconds between two looks at signals


@dataclass(frozen=True)
class Chosen:
    """What is served: the models' files and what the options say about them.

    `conversation` is None if no conversations are held, or if they are held with a language model, which `thinker` asks.
    `persona` is that of clients that choose none; None: the user named none. `also` are other models of conversations. `notes`
    are sentences about the models for the user.
    """

    conversation: Choice | None
    persona: Persona | None
    also: Sequence[Talking]
    audio: AudioChoice
    notes: Sequence[str]
    thinker: ChatCompletions | None = None


def choose_models(args: argparse.Namespace, signals: Signals, thinker: ChatCompletions | None = None) -> Chosen:
    """Choose and fetch the models that the options name. Raise InputError if something does not fit."""
    if thinker:
        prompt_text(args)  # what is wrong about it is said before anything is fetched
        return Chosen(None, None, [], choose_audio(args, signals), [], thinker)
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
    return Chosen(conversation, persona, also, choose_audio(args, signals), [warning] if warning else [])


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
        from ..net.talking_models import Duplex

        args, mine = self.args, self.chosen.conversation
        what = settings(args, mine.files if mine else None, self.names, static)
        service = self._service()
        models: list[TalkingModel] = []
        shared: list[SharedModel] = []
        if thinker := self.chosen.thinker:
            what = replace(what, conversations=True, about=(self.language_name, "", what.about[2]))
            models.append(self._language_model(thinker, service, what))
        else:
            name = model_name(mine) if mine else what.about[2]
            talking = [(name, args, what)]
            talking += [(each.name, each.args, settings(each.args, each.choice.files)) for each in self.chosen.also]
            for name, its, own in talking:
                shared.append(SharedModel(kv_bits=its.kv_bits, sessions=its.sessions))
                models.append(Duplex(name, shared[-1], partial(samplers, its), own.defaults, own.about))
        server = Server(models, what, self.log, service)
        self._watch(service, server)
        return server, partial(self._load, shared, service)

    # ---- transcription and speech ----------------------------------------------------------------------------------------

    def _service(self) -> AudioService:
        """Make what is loaded later: the models of transcription and speech."""
        from ..conversation.shared_speaker import PLACES, SharedSpeaker
        from ..conversation.shared_transcriber import SharedTranscriber
        from ..net.audio_service import AudioService

        args, audio = self.args, self.chosen.audio
        stt_name, tts_name = audio.names
        places = max(PLACES, args.sessions) if self.chosen.thinker else PLACES
        rows = {"rows": args.stt_rows, "waiting": args.line, "kv_bits": args.kv_bits}
        return AudioService(
            SharedTranscriber(**rows) if audio.stt else None,
            stt_name,
            SharedSpeaker(places=places, waiting=args.line) if audio.tts else None,
            tts_name,
            self.language_name or (model_name(self.chosen.conversation) if self.chosen.conversation else None),
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

    @property
    def language_name(self) -> str:
        """The name of the language model for clients; "": there is none. A server that does not tell one has its address."""
        thinker = self.chosen.thinker
        return thinker.server.model or urlsplit(thinker.server.url).netloc if thinker else ""

    def _language_model(self, thinker: ChatCompletions, service: AudioService, what: Settings) -> TalkingModel:
        """Make the conversations with a language model, for models that are loaded later."""
        from ..conversation.served_cascade import SharedCascade
        from ..net.talking_models import LanguageModel

        args = self.args
        assert service.transcriber
        assert service.speaker
        options = {"instructions": prompt_text(args), "speak_up": args.speak_up}
        shared = SharedCascade(service.transcriber, service.speaker, args.stt_rows, thinker, **options)
        return LanguageModel(self.language_name, shared, what.defaults, what.about)

    def _load(self, models: Sequence[SharedModel], service: AudioService) -> None:
        begin, names = perf_counter(), []
        mine = self.chosen.conversation
        first = [Talking(mine.files.model.name, self.args, mine, self.chosen.persona)] if mine else []
        for each, shared in zip([*first, *self.chosen.also], models, strict=False):
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
