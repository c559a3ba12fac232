"""How long a connection is kept: between requests, and while the headers of one are incomplete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from adiuva import uvicorn_protocol
from adiuva.uvicorn_protocol import TimedH11Protocol

SILENCE_S, KEEP_ALIVE_S = 0.1, 1
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = Config(answer, lifespan="off", log_config=None, timeout_keep_alive=KEEP_ALIVE_S)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TimedH11Protocol(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "SILENCE_S", SILENCE_S)


async def test_a_connection_is_kept_between_requests_and_closed_later() -> None:
    async with connection() as (reader, writer), asyncio.timeout(30):
        for _ in range(2):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
            await asyncio.sleep(3 * SILENCE_S)
        assert await reader.read() == b""


@pytest.mark.parametrize("before", [b"", REQUEST])
async def test_a_connection_that_is_silent_amid_headers_is_closed(before: bytes) -> None:
    async with connection() as (reader, writer), asyncio.timeout(30):
        if before:
            writer.write(before)
            await reader.readuntil(b"\r\n\r\n")
        writer.write(REQUEST[:20])
        began = asyncio.get_running_loop().time()
        assert await reader.read() == b""
        assert asyncio.get_running_loop().time() - began >= SILENCE_S


async def test_a_connection_on_which_nothing_comes_is_closed() -> None:
    async with connection() as (reader, _), asyncio.timeout(30):
        assert await reader.read() == b""
