"""`msh-mlx client`: a conversation with a server, live or with a recording.

Heavy modules are imported late, so that help and wrong options are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import InputError
from ..system.newfile import check_outputs, output
from ..system.places import user_path
from ..system.signals import Signals
from .devices import print_devices, print_latency
from .options import (
    TOKEN,
    Parser,
    add_live,
    add_live_printing,
    add_reply,
    add_sampling,
    check_kind,
    check_reply,
    display,
    live_options,
    own_token,
    whole,
)
from .persona import add_remote_persona, asked, prompt_text

if TYPE_CHECKING:
    from ..conversation.live import Sink, Source
    from ..events import Event
    from ..format import Pcm
    from ..net.address import Address
    from ..net.remote import Remote

_FILE_OPTIONS = ("output", "transcript", "tail", "realtime")
# The protocol's parameters, and the options that set them.
_PARAMETERS = {
    "text_temperature": "text_temperature",
    "text_topk": "text_top_k",
    "audio_temperature": "temperature",
    "audio_topk": "top_k",
    "repetition_penalty": "repetition_penalty",
    "repetition_penalty_context": "repetition_words",
    "pad_mult": "padding_bonus",
    "text_seed": "seed",
    "audio_seed": "seed",
    "worker_auth_id": "token",
    "voice_prompt": "voice",
    "text_prompt": "prompt",
}


def run(arguments: list[str], signals: Signals) -> int:
    """Hold a conversation with a server, and return the exit code."""
    args = parser().parse_args(arguments)
    _check(args)
    if args.list_devices:
        return print_devices(args)
    if args.measure_latency:
        return print_latency(args)
    address = _address(args)
    return _with_recording(args, address, signals) if args.input else _talk(args, address, signals)


def parser() -> Parser:
    parser = Parser(
        prog="msh-mlx client",
        description="Talk with Moshi on another machine, or let it hear a recording (--input) and save its reply. "
        "The proxy in HTTPS_PROXY (with TLS) or HTTP_PROXY is used, unless NO_PROXY names the server.",
    )
    to = parser.group("server")
    to.value("--host", "HOST", "connect to this name or address (default: 127.0.0.1, this machine)")
    to.value("--port", "PORT", "connect to this port (default: 9998)", type=whole(1, 65536))
    vouched = "a certificate that no authority vouches for is shown, remembered, and expected from then on"
    to.flag("--https", f"use TLS; {vouched}")
    url = "give host, port and TLS in one: ws://HOST:PORT, or wss://… with TLS; http and https also work"
    to.value("--url", "URL", url)
    to.value("--token", "TOKEN", f"send this token to the server; better set {TOKEN} in the environment")
    to.repeated(
        "--param",
        "KEY=VALUE",
        "add a parameter to the address, such as voice_prompt and text_prompt for PersonaPlex's servers; can be repeated, "
        "and overrides other options",
        type=_param,
    )
    add_live(parser.group("live"))
    to = parser.group("recording")
    heard = "play this recording to Moshi (WAV, FLAC, OGG, MP3, AIFF, AU, CAF); - is the standard input"
    to.value("--input", "FILE", heard)
    add_reply(to, remote=True)
    to.flag("--realtime", "send the recording no faster than one speaks, for servers other than this program's")
    to = parser.group("conversation")
    add_remote_persona(to)
    add_sampling(to, remote=True)
    add_live_printing(parser.group("program"))
    return parser


def _param(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    try:
        text.encode()
    except UnicodeEncodeError:
        separator = ""
    if not separator or not name.isprintable() or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    check_kind(args, _FILE_OPTIONS)
    if args.url is not None:
        for name in ("host", "port", "https"):
            if getattr(args, name):
                raise InputError("--url already gives host, port and TLS", f"leave --{name} out")
    if not args.input:
        return
    check_reply(args)
    if not (args.output or args.transcript):
        raise InputError("Nothing would be written", "give --output or --transcript")


def _address(args: argparse.Namespace) -> Address:
    from ..net.address import HOST, PORT, Address

    args.token = own_token(args)
    args.prompt = prompt_text(args) if args.prompt is not None else None
    query = {name: str(value) for name, option in _PARAMETERS.items() if (value := getattr(args, option)) is not None}
    query["stats"] = "1"
    if args.input and not args.realtime:
        query["realtime"] = "0"
    query |= dict(args.param)
    if args.url is not None:
        return Address.from_url(args.url, query)
    host = HOST if args.host is None else args.host
    return Address.of(host, args.port or PORT, secure=args.https, query=query)


def _talk(args: argparse.Namespace, address: Address, signals: Signals) -> int:
    from ..events import Notice
    from ..live.talk import talk
    from ..net.remote import Remote

    def make(source: Source, sink: Sink, events: Callable[[Event], None], delay_limit: float) -> Remote:
        for sentence in asked(args):
            events(Notice("persona", sentence))
        return Remote(address, source, sink, events, delay_limit)

    return talk(make, live_options(args), signals, elsewhere=True)


def _with_recording(args: argparse.Namespace, address: Address, signals: Signals) -> int:
    from ..conversation.recordings import Plan, converse_with
    from ..net.upload import answers
    from ..sound.recordings import STDIN, open_recording

    reply, transcript = (output(path) if path else None for path in (args.output, args.transcript))
    check_outputs([path for path in (reply, transcript) if path], [0 if args.input == STDIN else user_path(args.input)])
    with display(args, signals) as shown, open_recording(args.input) as recording:
        for sentence in asked(args):
            shown.say(sentence)

        def hold(frames: Iterator[Pcm]) -> Iterator[Event]:
            return answers(address, frames, realtime=args.realtime, notify=shown.say, check=signals.check)

        converse_with(hold, recording, Plan(reply, transcript, tail=args.tail), shown)
    return 0
