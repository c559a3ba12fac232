"""What stands between the devices and the web processes: it chooses one at random, and cuts.

A cut is a reset of both ends. `now` is at once; `question` loses what the server says next, or its second half;
`answer` loses what the device says next: it has done what it was asked, and nobody hears of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

CUTS: Final = ("now", "question", "answer")
_BUSY_S: Final = 3.0
_PATIENCE_S: Final = 4.0  # for the moment that a cut waits for


class Front:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.ports: Sequence[int] = ()
        self.pairs: set[_Pair] = set()
        self.cut: Counter[str] = Counter()
        self.sockets = 0  # that were opened
        self._server: asyncio.Server

    async def open(self) -> int:
        """Start; returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", 0, backlog=1000)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self._server.close()
        for pair in list(self.pairs):
            pair.end()

    def cut_one(self, how: str) -> bool:
        """Cut a device's socket, one with something under way if there is one."""
        sockets = [pair for pair in self.pairs if pair.is_socket and not pair.cut]
        if not sockets:
            return False
        busy = [pair for pair in sockets if time.monotonic() - pair.moved_at < _BUSY_S]
        self.chance.choice(busy or sockets).doom(how)
        return True


class _Pair:
    """A connection and its other half to a web process."""

    def __init__(self, front: Front, client: _Client) -> None:
        self.front, self.client = front, client
        self.server: _Server | None = None
        self.waiting = bytearray()  # what came before there was a server
        self.is_socket = False
        self.cut = ""
        self.moved_at = 0.0
        self.ended = False
        front.pairs.add(self)
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for port in self.front.chance.sample(self.front.ports, len(self.front.ports)):
            try:
                await loop.create_connection(lambda: _Server(self), "127.0.0.1", port)
                return
            except OSError:
                continue
        self.end()

    def connected(self, server: _Server) -> None:
        self.server = server
        if self.ended:
            server.transport.abort()
            return
        server.transport.write(bytes(self.waiting))
        self.waiting.clear()

    def said_by_client(self, data: bytes) -> None:
        if not self.is_socket and b"/ws/device" in data[:200]:
            self.is_socket = True
            self.front.sockets += 1
        self.moved_at = time.monotonic()
        if self.cut == "answer":
            self.sever()
        elif self.server is None:
            self.waiting += data
        else:
            self.server.transport.write(data)

    def said_by_server(self, data: bytes) -> None:
        self.moved_at = time.monotonic()
        if self.cut == "question":
            self.client.transport.write(data[: self.front.chance.choice((0, len(data) // 2))])
            self.sever()
        else:
            self.client.transport.write(data)

    def doom(self, how: str) -> None:
        self.cut = how
        if how == "now":
            self.sever()
        else:
            asyncio.get_running_loop().call_later(_PATIENCE_S, self.sever)

    def sever(self) -> None:
        if not self.ended:
            self.front.cut[self.cut] += 1
            for side in (self.client, self.server):
                if side is not None:
                    side.transport.abort()
            self.end()

    def end(self) -> None:
        if self.ended:
            return
        self.ended = True
        self.front.pairs.discard(self)
        self._connecting.cancel()
        for side in (self.client, self.server):
            if side is not None:
                side.transport.close()


class _Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, front: Front) -> None:
        self._front = front

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._pair = _Pair(self._front, self)

    def data_received(self, data: bytes) -> None:
        self._pair.said_by_client(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._pair.end()


class _Server(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._pair.connected(self)

    def data_received(self, data: bytes) -> None:
        self._pair.said_by_server(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._pair.end()
