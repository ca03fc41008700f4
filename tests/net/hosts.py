"""Servers in tests, and what hosts them: aiohttp, as for users, or a program for ASGI applications."""

import asyncio
import contextlib
import socket
from dataclasses import replace
from functools import partial

import uvicorn
from engines import demo_voices

from msh_mlx.cli import serve, server_program
from msh_mlx.conversation.load import load_parts
from msh_mlx.conversation.shared_speaker import SharedSpeaker
from msh_mlx.conversation.shared_transcriber import SharedTranscriber
from msh_mlx.library.files import find_demo
from msh_mlx.net.asgi_face import AsgiServer
from msh_mlx.net.audio_service import AudioService
from msh_mlx.net.listener import Listener
from msh_mlx.net.server import Server
from msh_mlx.net.talking_models import Duplex


class Uvicorn:
    """Hosts a server as an ASGI application. It has the methods of `Listener`."""

    def __init__(self, server):
        self._server = server

    async def listen(self, sock, context=None):
        assert context is None
        config = uvicorn.Config(
            AsgiServer(self._server), lifespan="on", log_level="warning", ws_max_size=1 << 26, forwarded_allow_ips=""
        )
        self._program = uvicorn.Server(config)
        self._task = asyncio.create_task(self._program.serve(sockets=[sock]))
        while not self._program.started:
            assert not self._task.done()
            await asyncio.sleep(0.01)

    async def close(self, sentence):
        await self._server.end(sentence)
        self._program.should_exit = True
        await self._task


host = Listener  # tests of the ASGI application put `Uvicorn` here


@contextlib.contextmanager
def audio_service(waiting, conversation=None):
    """The demo models for transcription and speech. Each has two places, and a line for `waiting` more."""
    transcriber, speaker = SharedTranscriber(rows=2, waiting=waiting), SharedSpeaker(places=2, waiting=waiting)
    transcriber.load(lambda: load_parts(find_demo("transcription")))
    speaker.load(demo_voices)
    yield AudioService(transcriber, "demo-stt", speaker, "demo-tts", conversation)
    transcriber.close()
    speaker.close()


def checked(*options):
    """The options of `msh-mlx serve`, as the command reads and checks them."""
    args = serve.parser().parse_args(options)
    serve.check(args)
    return args


@contextlib.asynccontextmanager
async def serving(
    model, args, files, service=None, *, limits=None, static=None, ready=True, context=None, address="127.0.0.1"
):
    """A server that listens, as `msh-mlx serve` would make it of its options.

    `files` are those of `model`. What the server and `service` log is in `log`. `port` and `url` say where it listens; `gates`
    are those of its listener, if it has any.
    """
    settings = server_program.settings(args, files, static=static)
    name = (service and service.conversation) or settings.about[0]
    talking = Duplex(name, model, partial(server_program.samplers, args), settings.defaults, settings.about)
    options = {"limits": limits, "ready": ready, "context": context, "address": address}
    async with serving_models([talking], settings, service, **options) as server:
        yield server


@contextlib.asynccontextmanager
async def serving_models(models, settings, service=None, *, limits=None, ready=True, context=None, address="127.0.0.1"):
    """The same with models of any kind."""
    if limits:
        settings = replace(settings, limits=limits)
    log = []
    if service:
        service = replace(service, log=log.append)
    server = Server(models, settings, log.append, service)
    server.log = log
    sock = socket.create_server((address, 0))
    server.port = sock.getsockname()[1]
    server.url = f"http{'s' if context else ''}://127.0.0.1:{server.port}"
    listener = host(server)
    server.gates = getattr(listener, "_gates", None)
    await listener.listen(sock, context)
    server.ready = ready
    try:
        yield server
    finally:
        await listener.close("The test is over.")
