"""A minimal client of the device socket. It can do what a well-behaved device never does."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE_S = 60


class Socket:
    """One connection. `hello()` makes it a device; `receive()` answers pings by itself."""

    def __init__(
        self, base: str, token: str | None = None, *, query: str = "", origin: str | None = None
    ) -> None:
        self.url = base.replace("http", "ws", 1) + "/api/v1/ws/device" + query
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.origin = origin
        self.ws: ClientConnection

    async def __aenter__(self) -> Self:
        self.ws = await connect(
            self.url,
            additional_headers=self.headers,
            origin=self.origin,  # type: ignore[arg-type]
            max_size=8 * 1024 * 1024,
            ping_interval=None,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.ws.close()

    async def hello(self, protocol: int = 2, device_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Say hello; returns hello_ack for protocol 2, nothing for 1."""
        frame = {"type": "device_hello", "device_id": device_id or uuid4().hex, "agent_ids": []}
        if protocol >= 2:
            frame |= {"protocol": protocol, "capabilities": ["dedupe", "batch", "manifest"]}
        await self.send(frame | fields)
        return await self.receive("hello_ack") if protocol >= 2 else {}

    async def send(self, frame: dict[str, Any]) -> None:
        await self.ws.send(json.dumps(frame))

    async def receive(self, kind: str | None = None) -> dict[str, Any]:
        """The next frame that is not a ping, or the next of type `kind`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                frame: dict[str, Any] = json.loads(await self.ws.recv())
                if frame["type"] == "ping" and kind != "ping":
                    await self.send({"type": "pong"})
                elif kind is None or frame["type"] == kind:
                    return frame

    async def code(self) -> int:
        """Read until the server closes the socket; returns the close code."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while True:
                    await self.ws.recv()
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else 1006

    async def is_alive(self) -> bool:
        """Whether the connection still handles frames: an unknown type is answered with an error frame."""
        ref = uuid4().hex
        await self.send({"type": "are_you_there", "id": ref})
        while (frame := await self.receive())["type"] != "error" or frame.get("ref") != ref:
            pass
        return True
