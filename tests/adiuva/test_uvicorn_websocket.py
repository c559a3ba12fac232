"""Frames that are pushed and frames that wait, to readers that are quick, slow and gone; many messages at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from adiuva.core.websocket import SocketConsumer
from adiuva.uvicorn_websocket import PushingWebSocket

SIZES = (0, 1, 125, 126, 127, 1000, 65_535, 65_536, 70_000)


@asynccontextmanager
async def served(application: Callable[..., Any]) -> AsyncIterator[str]:
    options: dict[str, Any] = {"ws": PushingWebSocket, "ws_per_message_deflate": False, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_config=None, **options))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def texts(count: int) -> list[str]:
    chance = random.Random(count)
    return [
        f"{number} {'é' if number % 7 else 'x'}".ljust(chance.choice(SIZES), "-") for number in range(count)
    ]


@pytest.mark.parametrize("is_slow", [False, True])
async def test_pushed_frames_arrive_whole_and_in_order_among_those_that_wait(is_slow: bool) -> None:
    said, pushed, waited = texts(600), 0, 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal pushed, waited
        await receive()
        assert not send.__self__.push(b"too early") and not send.__self__.push_soon(b"too early")
        await send({"type": "websocket.accept"})
        ways = (send.__self__.push, send.__self__.push_soon, lambda _: False)
        for text in said:
            if random.choice(ways)(text.encode()):
                pushed += 1
            else:
                waited += 1
                await send({"type": "websocket.send", "text": text})
        await receive()

    async with served(application) as address, connect(address, compression=None, max_size=None) as socket:
        if is_slow:
            await asyncio.sleep(0.5)
        heard = []
        for _ in said:
            heard.append(await socket.recv())
            if is_slow:
                await asyncio.sleep(0.001)
    assert heard == said
    assert pushed and bool(waited) >= is_slow


async def test_what_is_to_be_sent_soon_is_sent_at_once_and_before_a_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = [str(number).ljust(100, "-") for number in range(400)]
    writes: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        transport = send.__self__.transport
        write = transport.write
        monkeypatch.setattr(
            send.__self__,
            "transport",
            _Transport(transport, lambda data: (writes.append(len(data)), write(data))),
        )
        for text in said[:100]:
            assert send.__self__.push_soon(text.encode())
        await asyncio.sleep(0)
        for text in said[100:]:
            assert send.__self__.push_soon(text.encode())
        await send({"type": "websocket.close", "code": 4000})

    async with served(application) as address, connect(address, compression=None) as socket:
        assert [await socket.recv() for _ in said] == said
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert len(writes) == 4, "a burst; another, of which the first 16 KiB did not wait; and the close"


class _Transport:
    """A transport whose writes are seen."""

    def __init__(self, transport: asyncio.Transport, write: Callable[[bytes], Any]) -> None:
        self._transport, self.write = transport, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.parametrize("end", ["peer", "own", "cut"])
async def test_nothing_is_pushed_to_who_is_gone(end: str) -> None:
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if end == "own":
            await send({"type": "websocket.close", "code": 4000})
        assert (await receive())["type"] == "websocket.disconnect"
        ended.set_result(send.__self__.push(b"late") or send.__self__.push_soon(b"late"))

    async with served(application) as address, connect(address, compression=None) as socket:
        if end == "peer":
            await socket.close()
        elif end == "cut":
            socket.transport.abort()
        async with asyncio.timeout(10):
            assert await ended is False


async def test_a_peer_that_says_more_than_is_taken_is_read_no_further() -> None:
    go_on, taken, most = asyncio.Event(), [], 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal most
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while (message := await receive())["type"] == "websocket.receive":
            most = max(most, send.__self__.queue.qsize())
            taken.append(message["text"])

    async def say(socket: ClientConnection) -> None:
        for number in range(2000):
            await socket.send(str(number).ljust(20_000))

    async with served(application) as address, connect(address, compression=None) as socket:
        saying = asyncio.create_task(say(socket))
        await asyncio.sleep(0.5)
        assert not saying.done(), "the connection takes no more"
        go_on.set()
        async with asyncio.timeout(60):
            await saying
            while len(taken) < 2000:
                await asyncio.sleep(0.01)
    assert [int(text) for text in taken] == list(range(2000))
    assert most < 64


async def test_who_waits_for_text_may_be_given_it_where_it_arrives() -> None:
    heard: list[str] = []
    socket_of_server: Any = None

    def take(text: str) -> bool:
        if text in {"not this", "be busy"}:
            return False
        heard.append(f"taken: {text}")
        return bool(socket_of_server.push(b"heard"))

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal socket_of_server
        await receive()
        await send({"type": "websocket.accept"})
        socket_of_server = send.__self__
        socket_of_server.take = take
        while (message := await receive())["type"] == "websocket.receive":
            if (text := message.get("text")) == "be busy":
                await asyncio.sleep(0.2)
            heard.append(text or "bytes")
            await send({"type": "websocket.send", "text": "heard"})

    async with served(application) as address, connect(address, compression=None) as socket:
        said: list[Any] = ["one", ["in ", "parts"], "two", "not this", b"no text", "three"]
        for each in said:
            await socket.send(each)
            assert await socket.recv() == "heard"
        for text in ("be busy", "behind it", "and that"):
            await socket.send(text)
        for _ in range(3):
            assert await socket.recv() == "heard"
    taken = ["taken: one", "in parts", "taken: two", "not this", "bytes", "taken: three"]
    assert heard == [*taken, "be busy", "behind it", "and that"]


class Counting(SocketConsumer):
    """Takes texts that end in "!" at once, and answers each frame with how often it was asked about it."""

    async def connect(self) -> None:
        self.offers: Counter[str] = Counter()
        await self.accept()

    def take_text(self, text: str) -> bool:
        self.offers[text] += 1
        return text.endswith("!") and self.push(f"taken {self.offers[text]}".encode())

    async def receive(self, text: str | None) -> None:
        if text == "be busy":
            await asyncio.sleep(0.2)
        await self.send_text(f"received {self.offers[text or '']}")

    async def disconnect(self) -> None:
        pass


async def test_a_consumer_is_asked_once_whether_it_takes_a_frame() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await Counting()(scope, receive, send)

    async with served(application) as address, connect(address, compression=None) as socket:
        for text, answer in (
            ("a", "received 1"),
            ("b!", "taken 1"),
            ("c", "received 1"),
            (b"", "received 0"),
        ):
            await socket.send(text)
            assert await socket.recv() == answer
        for text in ("be busy", "d", "e!"):
            await socket.send(text)
        assert [await socket.recv() for _ in range(3)] == ["received 1", "received 1", "taken 1"]


async def test_text_that_is_no_utf_8_ends_the_connection_whoever_takes_text() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        send.__self__.take = lambda text: True
        assert (await receive())["type"] == "websocket.disconnect"

    async with served(application) as address, connect(address, compression=None) as socket:
        await socket.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1007
