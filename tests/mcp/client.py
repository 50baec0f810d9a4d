"""Calls a tool of an MCP server with a client of PyPI's, and prints one line of JSON: how many tools there
are, and the text of the answer.

    python client.py mcp|fastmcp auto|legacy TOOL ARGUMENTS URL        with the token in TOKEN, if there is one
    python client.py mcp|fastmcp auto|legacy TOOL ARGUMENTS -- COMMAND ARGS...

Certificates are checked against SSL_CERT_FILE, if that is set.
"""

import asyncio
import json
import os
import sys


async def with_mcp(mode, url, command, tool, arguments):
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters
    from mcp.client.streamable_http import streamable_http_client

    if command:
        return await told(Client(StdioServerParameters(command=command[0], args=command[1:]), mode=mode), tool, arguments)
    import httpx2

    async with httpx2.AsyncClient(headers=headers(), timeout=60) as http:
        return await told(Client(streamable_http_client(url, http_client=http), mode=mode), tool, arguments)


async def with_fastmcp(mode, url, command, tool, arguments):
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

    transport = StdioTransport(command[0], command[1:]) if command else StreamableHttpTransport(url, headers=headers())
    return await told(Client(transport, mode=mode), tool, arguments)


async def told(client, tool, arguments):
    async with client:
        tools = await client.list_tools()
        tools = getattr(tools, "tools", tools)
        result = await client.call_tool(tool, arguments)
        return {"tools": len(tools), "text": result.content[0].text}


def headers():
    token = os.environ.get("TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


async def main():
    client, mode, tool, arguments, *rest = sys.argv[1:]
    url, command = (None, rest[1:]) if rest[0] == "--" else (rest[0], None)
    call = {"mcp": with_mcp, "fastmcp": with_fastmcp}[client]
    print(json.dumps(await call(mode, url, command, tool, json.loads(arguments))))


asyncio.run(main())
