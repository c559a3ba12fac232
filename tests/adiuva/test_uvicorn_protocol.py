"""Keep-alive, timeouts and the parsing of requests: bytes through a raw socket.

The second half says what a parser has to hold that takes h11's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what was read as the request."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    names = sorted(name.decode() for name, _ in scope["headers"])
    read = json.dumps([scope["method"], scope["path"], body.decode(), names]).encode()
    headers = [(b"content-length", str(len(read)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": read})


@asynccontextmanager
async def connection(
    application: Any = answer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = Config(application, lifespan="off", log_config=None, timeout_keep_alive=KEEP_ALIVE_S)
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


# ── What is read as a request ───────────────────────────────────────────────────────────────────────────

HOST = b"Host: x\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST
POST = b"POST / HTTP/1.1\r\n" + HOST

REFUSED = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two of them": GET + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\r\n",
    "a method that is none": b"G{T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a control character in the target": b"GET /a\x01b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a byte that is not ASCII in the target": b"GET /\xe4 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a blank in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header without a colon": GET + b"Ab\r\n\r\n",
    "a header without a name": GET + b": b\r\n\r\n",
    "a blank before the colon": GET + b"Content-Length : 2\r\n\r\nab",
    "a name that is none": GET + b"A(b): b\r\n\r\n",
    "NUL in a value": GET + b"A: b\0c\r\n\r\n",
    "CR alone in a value": GET + b"A: b\rc\r\n\r\n",
    "a fold before the first header": b"GET / HTTP/1.1\r\n A: b\r\n" + HOST + b"\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "a length with a sign": POST + b"Content-Length: +2\r\n\r\nab",
    "a negative length": POST + b"Content-Length: -2\r\n\r\nab",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "a length of 23 digits": POST + b"Content-Length: 99999999999999999999999\r\n\r\nab",
    "a coding that is not known": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "no coding": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "a coding that looks like the known one": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a head without end": GET + b"A: " + b"b" * 1_000_000,
    "many headers without end": GET + b"A: b\r\n" * 200_000,
    "a target without end": b"GET /" + b"a" * 1_000_000,
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
async def test_what_is_no_request_is_refused_and_its_connection_closed(request_: bytes) -> None:
    async with connection(echo) as (reader, writer), asyncio.timeout(30):
        writer.write(request_)
        answered = b""
        with contextlib.suppress(ConnectionError):  # what we still send is thrown away
            answered = await reader.read()
        assert b" 200 " not in answered
        assert answered.startswith(b"HTTP/1.1 400 ") or len(request_) > 100_000


async def read_as(request: bytes, *, answers: int = 1) -> list[list[Any]]:
    """Method, path, body and names of headers of what comes to the application, of each of so many requests."""
    async with connection(echo) as (reader, writer), asyncio.timeout(30):
        writer.write(request)
        found = []
        for _ in range(answers):
            head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            assert head[0].startswith(b"HTTP/1.1 200 ")
            length = next(int(line.split(b":")[1]) for line in head if line.startswith(b"content-length"))
            found.append(json.loads(await reader.readexactly(length)))
        return found


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n"


async def test_of_a_length_and_chunks_the_chunks_count() -> None:
    for headers in (
        b"Content-Length: 1\r\n" + CHUNKED,
        CHUNKED.replace(b"\r\n", b"\r\nContent-Length: 1\r\n", 1),
    ):
        (found,) = await read_as(POST + headers + b"\r\n")
        assert found[:3] == ["POST", "/", "ab"]


async def test_what_follows_chunks_is_no_header() -> None:
    (found,) = await read_as(POST + CHUNKED + b"Authorization: Bearer x\r\n\r\n")
    assert found == ["POST", "/", "ab", ["host", "transfer-encoding"]]


async def test_an_offer_to_change_to_http2_is_passed_over() -> None:
    """Java's client makes it with its first request, also with one that has a body."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nContent-Length: 2\r\n"
    )
    first, second = await read_as(POST + offer + b"\r\nab" + GET + b"\r\n", answers=2)
    assert (first[:3], second[:3]) == (["POST", "/", "ab"], ["GET", "/", ""])


async def test_requests_that_come_together_are_answered_in_their_order() -> None:
    together = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" % number for number in range(3)
    )
    assert [found[1] for found in await read_as(together, answers=3)] == ["/0", "/1", "/2"]


async def test_a_body_is_asked_for_where_its_sender_waits_for_that() -> None:
    async with connection(echo) as (reader, writer), asyncio.timeout(30):
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"ab")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
