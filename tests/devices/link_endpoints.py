"""Sockets for tests of the link: to a real web process, and to a consumer in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.factories import Person
from tests.socket_client import Socket

Frame = dict[str, Any]
Answer = Callable[[Frame], Frame | None]


class Remote(Socket):
    async def drop(self) -> None:
        """End without a word, as a cut cable does."""
        self.ws.transport.abort()


class Local(Socket):
    """A consumer in this process, as a turn has it whose device is connected to the same web process."""

    async def __aenter__(self) -> Local:
        self.ws = _Wire(self.headers)  # type: ignore[assignment]
        return self

    async def drop(self) -> None:
        await self.ws.close()


class _Wire:
    """As much of a connection as Socket uses."""

    def __init__(self, headers: dict[str, str]) -> None:
        from chat.consumer import ClientConsumer

        self._to, self._from = asyncio.Queue[Frame](), asyncio.Queue[Frame]()
        self._to.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
        }
        app = ClientConsumer.as_asgi()
        self._serving = asyncio.create_task(app(scope, self._to.get, self._from.put))

    async def send(self, text: str) -> None:
        self._to.put_nowait({"type": "websocket.receive", "text": text})

    async def recv(self) -> str:
        while (message := await self._from.get())["type"] != "websocket.send":
            pass
        text: str = message["text"]
        return text

    async def close(self) -> None:
        self._to.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await self._serving


Open = Callable[[Person], "Remote | Local"]


def result(call: Frame) -> Frame:
    """What a device says that did as it was told: the row that came, with an id."""
    return {"id": call["id"], "row": {**(call.get("data") or {}), "id": call["id"]}}


@asynccontextmanager
async def answering(
    socket: Socket, protocol: int = 2, *, answer: Answer = result, **hello: Any
) -> AsyncIterator[list[Frame]]:
    """Say hello on an open socket and answer what is called; yields the frames that came."""
    seen: list[Frame] = []

    async def serve() -> None:
        while True:
            frame = await socket.receive()
            seen.append(frame)
            if frame["type"] == "tool_call" and (body := answer(frame)):
                await socket.send({"type": "tool_result", **body})
            elif frame["type"] == "tool_batch":
                bodies = [body for call in frame["calls"] if (body := answer(call))]
                await socket.send({"type": "tool_batch_result", "results": bodies})

    await socket.hello(protocol, **hello)
    serving = asyncio.create_task(serve())
    try:
        yield seen
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
