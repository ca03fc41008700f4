"""What hosts a server in tests: aiohttp, as for users, or a program for ASGI applications."""

import asyncio

import uvicorn

from msh_mlx.net.asgi_face import AsgiServer
from msh_mlx.net.listener import Listener


class Uvicorn:
    """Hosts a server as an ASGI application. It has the methods of `Listener`."""

    def __init__(self, server):
        self._server = server

    async def listen(self, sock, context=None):
        assert context is None
        config = uvicorn.Config(
            AsgiServer(self._server), lifespan="on", log_level="warning", ws_max_size=1 << 26, proxy_headers=False
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
