"""An MCP server with a few tools, as a program: over its standard streams."""

import asyncio
import os
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("numbers", log_level="CRITICAL")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def pairs() -> list[str]:
    return ["one two", "three four"]


@server.tool()
def fail() -> str:
    raise ToolError("no luck today")


@server.tool()
async def wait(path: str) -> str:
    """Wait until it is cancelled, and say so in a file."""
    try:
        await asyncio.sleep(60)
    except BaseException:
        Path(path).write_text("cancelled")
        raise
    return ""


@server.tool()
def leave() -> str:
    os._exit(3)


@server.tool()
def token() -> str:
    return os.environ.get("MSH_LLM_KEY", "none")


if __name__ == "__main__":
    print("what the server says", file=sys.stderr)
    server.run("stdio")
