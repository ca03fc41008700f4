"""`msh-mlx serve`: serve conversations to browsers and clients, on this machine or over the network."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import re
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..system.inputs import read_small
from ..system.newfile import named_folder
from ..system.places import client_folder, user_path
from ..system.signals import Signals
from .also import add_also, check_also
from .cascade import add_served_llm, check_served_llm, thinking
from .choice import add_model, check_model
from .options import (
    TOKEN,
    Parser,
    add_lora,
    add_printing,
    add_sampling,
    check_lora,
    display,
    own_token,
    seconds,
    whole,
)
from .persona import add_persona
from .ray_options import add_ray, check_ray
from .served_audio import add_audio, check_audio
from .server_program import Program, choose_models, own_names
from .translation import add_guidance

if TYPE_CHECKING:
    pass

_PORT = 9998
_LEAST_IDLE = 1.0  # seconds
_BLOCK = 4096  # bytes, the least that a file takes on most disks


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
        wyoming = None
        if args.wyoming:
            host, port = args.wyoming
            wyoming = stack.enter_context(contextlib.closing(_bind(host, port, "--wyoming")))
        thinker, told = None, list[str]()
        if args.llm is not None:
            thinker, told = stack.enter_context(thinking(args))
        chosen = choose_models(args, signals, thinker)
        from ..system.log import Log

        shown = stack.enter_context(display(args, signals))
        signals.end_process = True
        signals.defer()
        log = stack.enter_context(Log()) if not args.debug else None
        program = Program(args, chosen, signals, shown, log, names, addresses, wyoming)
        for sentence in [*told, *chosen.notes]:
            program.say(sentence)
        if args.ray is not None:
            port = sock.getsockname()[1]
            sock.close()  # Ray's own processes listen there
            from .replicas import serve_on_ray

            return serve_on_ray(program, port, static)
        # `asyncio.run` would wait at the end for threads that nothing can interrupt, so do not use it.
        return asyncio.new_event_loop().run_until_complete(program.run(sock, context, static))


def parser() -> Parser:
    made = Parser(prog="msh-mlx serve", description="Serve conversations to browsers and clients.")
    to = made.group("model")
    add_model(to, served=True)
    add_also(to)
    add_lora(to)
    add_served_llm(made.group("language model"))
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
    idle = "end a conversation after this time without sound, at least 1 (default: 60)"
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
    for name in ("host", "token", "instance_name"):
        if getattr(args, name) == "":
            raise InputError(f"--{name.replace('_', '-')} is empty", "give a value, or leave it out")
    if "" in args.allow_host:
        raise InputError("--allow-host is empty", "give a name, or leave it out")
    if args.idle < _LEAST_IDLE:
        raise InputError(f"--idle {args.idle:g} is too short to say anything", f"give at least {_LEAST_IDLE:g}")
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
    check_served_llm(args, parser)
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


# ---- addresses -----------------------------------------------------------------------------------------------------------


def _bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """Bind a socket, before anything is loaded, so that a wrong address is reported at once. `option` is what gave the port."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        dual = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=256, dualstack_ipv6=dual)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"There is no address {host!r} on this machine", "127.0.0.1 always works") from None
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"Port {port} is in use already", f"take another one with {option}") from None
        if error.errno == errno.EACCES:
            what = f"Port {port} may not be used by this user"
            raise InputError(what, f"take one of 1024 or more with {option}") from None
        reason = os.strerror(error.errno) if error.errno else str(error)  # create_server adds words to strerror
        raise InputError(f"Cannot listen on {host}, port {port}: {reason}", "give --host or --port") from None
