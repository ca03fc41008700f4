"""A conversation with any language model, between a model that hears and one that speaks: `--llm`.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..system.signals import Signals
from ..system.streams import only_ours
from ..system.words import listed
from .llm_tools import add_tools, check_tools, named_tools
from .options import Group, Parser, live_options, seconds
from .persona import prompt_text

if TYPE_CHECKING:
    from ..conversation.cascade import Cascade, Models
    from ..conversation.live import Sink, Source
    from ..events import Event, Loading
    from ..net.chat_completions import ChatCompletions, LanguageServer

KEY = "MSH_LLM_KEY"  # of the environment
# Options of a conversation with one model, by their names in argparse.
_OTHERS = (
    *("input", "model", "variant", "hf_repo", "or_demo", "quantized", "lora", "context", "guidance", "seed"),
    *("temperature", "text_temperature", "top_k", "text_top_k", "top_p", "text_top_p", "min_p", "text_min_p"),
    *("repetition_penalty", "repetition_words", "padding_bonus", "keep_prompts"),
)
# Those that only a server has, or that its default model alone has.
_OTHERS_OF_SERVER = "also", "no_conversations", "ray"
_SHOWN = 8  # models that are named


def add_llm(to: Group) -> None:
    """Add the options of a conversation here."""
    add_served_llm(to)
    to.value(
        "--stt", "MODEL", "hear with this speech-to-text model: its name in the catalogue, a file, a folder, or demo"
    )
    to.value("--tts", "MODEL", "speak with this text-to-speech model, named in the same way")


def add_served_llm(to: Group) -> None:
    """Add the options that count on a server, too, which has others for the models that hear and speak."""
    where = (
        "its address, such as http://127.0.0.1:11434/v1 (default: that of Ollama, LM Studio, mlx_lm or llama.cpp here)"
    )
    spoken = "Speech to text hears, and text to speech speaks."
    answers = f"let the language model on this server answer, over OpenAI's chat completions: {where}. {spoken}"
    to.value("--llm", "URL", f"{answers} A key is taken from {KEY} of the environment", nargs="?", const="")
    to.value("--llm-model", "NAME", "ask for this model of the server (default: its first)")
    add_tools(to)
    quiet = "after so many seconds in which nobody speaks, ask the language model all the same (default: never)"
    to.value("--speak-up", "SECONDS", quiet, type=seconds)


def check_llm(args: argparse.Namespace, parser: Callable[[], Parser]) -> None:
    """Check the options together; raise InputError if they do not fit. `parser` makes what has parsed them."""
    if _is_asked(args, parser, ("stt", "tts"), _OTHERS):
        from .served_audio import check_named

        check_named(args)


def check_served_llm(args: argparse.Namespace, parser: Callable[[], Parser]) -> None:
    """The same for a server. The voice of the answers is also that of /v1/audio/speech."""
    if not _is_asked(args, parser, (), (*_OTHERS_OF_SERVER, *_OTHERS[1:])):
        return
    if args.voice is not None and args.tts_voice is not None:
        raise InputError("--voice and --tts-voice name the same voice with --llm", "leave one of them out")
    args.tts_voice = args.tts_voice if args.voice is None else args.voice
    for name in ("stt", "tts"):
        if getattr(args, name) == "none":
            raise InputError(f"--llm needs a model for --{name}", "give one, or leave it out")


def _is_asked(
    args: argparse.Namespace, parser: Callable[[], Parser], own: Sequence[str], others: Sequence[str]
) -> bool:
    """Tell whether `--llm` is given, and check it. `own` are options that only go with it, and `others` those that do not."""
    if args.llm is None:
        for name in ("llm_model", "tools", "mcp", "tool", "filler", "speak_up", *own):
            if getattr(args, name) not in (None, []):
                raise InputError(f"--{name.replace('_', '-')} is for a conversation with a language model", "add --llm")
        return False
    if args.llm:
        from ..net.chat_completions import server_url

        args.llm = server_url(args.llm)
    if args.llm_model == "":
        raise InputError("--llm-model is empty", "give the name of a model")
    check_tools(args)
    default = parser().get_default
    for name in others:
        if getattr(args, name) != default(name):
            raise InputError(f"--{name.replace('_', '-')} is not for --llm", "leave one of them out")
    return True


@contextmanager
def thinking(args: argparse.Namespace) -> Iterator[tuple[ChatCompletions, list[str]]]:
    """Yield the language model of the options, with its tools, for any number of conversations, and what users are told of it.

    Raises
    ------
    InputError
        The model or a tool is not there, or there is no server where they usually are.
    MshError
        A server cannot be reached, or answers with something else.
    """
    from ..net.chat_completions import ChatCompletions

    server, sentence = _find(args)
    with named_tools(args) as (tools, told), closing(ChatCompletions(server, tools)) as thinker:
        yield thinker, [sentence, *told]


def talk_with_llm(args: argparse.Namespace, signals: Signals) -> int:
    """Hold a live conversation with a language model, and return the exit code."""
    instructions = prompt_text(args)
    with thinking(args) as (thinker, sentences), only_ours() if args.tools else nullcontext():
        return _talk(args, signals, thinker, sentences, instructions)


def _talk(
    args: argparse.Namespace, signals: Signals, thinker: ChatCompletions, sentences: list[str], instructions: str
) -> int:
    from ..conversation.cascade import Cascade
    from ..events import Notice
    from ..live.talk import talk
    from .served_audio import choose_audio

    args.tts_voice, args.stt_rows = args.voice, 1
    audio = choose_audio(args, signals)

    def models(events: Callable[[Loading], None], check: Callable[[], None]) -> Models:
        from ..conversation.cascade import Models
        from ..conversation.transcriber import Transcriber
        from ..events import Loading

        begin = perf_counter()
        events(Loading("loading"))
        progress: Callable[[float], None] = lambda fraction: events(Loading("loading", fraction=fraction))  # noqa: E731
        heard = audio.stt_parts(progress)
        check()
        mouth = audio.speaker(progress)
        events(Loading("loading", perf_counter() - begin))
        events(Loading("warm-up"))
        begin = perf_counter()
        ears = Transcriber(heard.lm, heard.mimi, heard.tokenizer, kv_bits=args.kv_bits)
        ears.warm_up()
        events(Loading("warm-up", perf_counter() - begin))
        return Models(ears, mouth)

    def make(source: Source, sink: Sink, events: Callable[[Event], None], delay_limit: float) -> Cascade:
        for sentence in sentences:
            events(Notice("language-model", sentence))
        return Cascade(
            models,
            thinker,
            source,
            sink,
            events,
            instructions=instructions,
            speak_up=args.speak_up,
            delay_limit=delay_limit,
        )

    return talk(make, live_options(args), signals)


def _find(args: argparse.Namespace) -> tuple[LanguageServer, str]:
    """Find the server and its model. Return them with the sentence that tells the user about them.

    Raises
    ------
    InputError
        No server was named, and none is found here; the server does not have the model; or the key cannot be one.
    MshError
        The server cannot be reached, or answers with something else.
    """
    from ..net.chat_completions import USUAL, LanguageServer, find_servers, list_models

    name, key = "", os.environ.get(KEY, "").strip()
    if not key.isprintable():
        raise InputError(f"{KEY} has characters that no key has", "set it to the server's key")
    if args.llm:
        server = LanguageServer(args.llm, args.llm_model or "", key)
    else:
        found = find_servers()
        if not found:
            places = listed(f"{name} ({url.removesuffix('/v1')})" for name, url in USUAL.items())
            raise InputError(
                f"No language model answers at the usual addresses: {places}", "start one, or give --llm its URL"
            )
        name, server = next(iter(found.items()))
        server = LanguageServer(server.url, args.llm_model or "", key)
    models = list_models(server)
    if args.llm_model and models and args.llm_model not in models:
        raise InputError(
            f"The server {server.url} has no model {args.llm_model}",
            f"it has {_some(models)}; name one with --llm-model",
        )
    model = args.llm_model or next(iter(models), "")
    others = [other for other in models if other != model]
    more = f" (there is also {_some(others)}: --llm-model)" if others and not args.llm_model else ""
    at = f"{name} at {server.url}" if name else server.url
    return LanguageServer(
        server.url, model, key
    ), f"The language model is {f'{model} of' if model else 'that of'} {at}{more}."


def _some(names: list[Any]) -> str:
    shown = [str(name) for name in names[:_SHOWN]]
    return listed(shown) if len(names) <= _SHOWN else f"{', '.join(shown)} and {len(names) - _SHOWN} more"
