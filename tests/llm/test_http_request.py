"""Requests to models as a server sees them that answers byte by byte as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from adiuva import llm
from adiuva.llm import errors, transport
from adiuva.llm.transport import Endpoint

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"ok"'
LARGE = 16 << 20  # more than the buffers of a connection hold

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[Endpoint]:
    """Return a server that handles each connection so."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield Endpoint(f"http://127.0.0.1:{port}/v1", "a-key")
        await llm.aclose()


async def test_requests_have_one_head_and_their_own_bodies_on_one_connection() -> None:
    heads: list[bytes] = []
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            heads.append(head)
            bodies.append(await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])))
            writer.write(OK)

    async with served(serve) as endpoint:
        for text in ("a", "grün"):
            assert await endpoint.post_json("some/thing", {"text": text}) == "ok"
        port = endpoint.name.rpartition(":")[2].removesuffix("/v1")
    assert bodies == [b'{"text":"a"}', '{"text":"grün"}'.encode()]
    lines = heads[0].decode().split("\r\n")
    assert lines[:2] == ["POST /v1/some/thing HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    assert {"Authorization: Bearer a-key", "Accept-Encoding: identity"} < set(lines)


async def test_announcements_before_an_answer_are_passed_over() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
        await reader.read()

    async with served(serve) as endpoint:
        assert await endpoint.post_json("x", {}) == "ok"


async def test_what_is_not_http_is_garbled_and_its_connection_closed() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        gone.set()

    async with served(serve) as endpoint:
        with pytest.raises(errors.ModelGarbled, match="HTTP"):
            await endpoint.post_json("x", {})
        await asyncio.wait_for(gone.wait(), 5)


@pytest.mark.parametrize("status", [200, 413])
async def test_a_connection_that_was_answered_before_it_had_taken_all_is_not_used_again(status: int) -> None:
    rest = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK.replace(b"200 OK", f"{status} Some".encode()))
        while transport.connector()._acquired:
            await asyncio.sleep(0.01)
        rest.set_result(await reader.read())

    async with served(serve) as endpoint:
        asked = endpoint.post_json("x", {"text": "x" * LARGE})
        if status == 200:
            assert await asked == "ok"
        else:
            with pytest.raises(errors.ModelRejected):
                await asked
        assert not transport.connector()._conns
        assert len(await asyncio.wait_for(rest, 5)) < LARGE


async def test_a_cancelled_request_is_closed_even_while_nobody_takes_it() -> None:
    began, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        began.set()
        await gone.wait()

    async with served(serve) as endpoint:
        asking = asyncio.create_task(endpoint.post_json("x", {"text": "x" * LARGE}))
        await began.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert not transport.connector()._acquired
        gone.set()
