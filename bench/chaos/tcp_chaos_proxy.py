"""TCP proxy between devices and web processes: picks a web process at random, and cuts connections on demand.

A cut resets both ends. `immediate` does so at once. `on_request` drops what the server sends next, or its second half.
`on_response` drops what the device sends next: it has done the call, and its answer is lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

CUTS: Final = ("immediate", "on_request", "on_response")
_BUSY_WINDOW_S: Final = 3.0
_CUT_TIMEOUT_S: Final = 4.0  # then a cut that waits for a frame is made anyway


class ChaosProxy:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ports: Sequence[int] = ()
        self.pairs: set[_Pair] = set()
        self.cut: Counter[str] = Counter()
        self.sockets = 0  # opened so far
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
        """Cut a device's socket, preferably one with recent traffic. Returns False if there is none."""
        sockets = [pair for pair in self.pairs if pair.is_socket and not pair.cut]
        if not sockets:
            return False
        busy = [pair for pair in sockets if time.monotonic() - pair.moved_at < _BUSY_WINDOW_S]
        self.rng.choice(busy or sockets).arm_cut(how)
        return True


class _Pair:
    """A device's connection and its counterpart to a web process."""

    def __init__(self, proxy: ChaosProxy, client: _Client) -> None:
        self.proxy, self.client = proxy, client
        self.server: _Server | None = None
        self.waiting = bytearray()  # received before the server connection was open
        self.is_socket = False
        self.cut = ""
        self.moved_at = 0.0
        self.ended = False
        proxy.pairs.add(self)
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for port in self.proxy.rng.sample(self.proxy.ports, len(self.proxy.ports)):
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

    def data_from_device(self, data: bytes) -> None:
        if not self.is_socket and b"/ws/device" in data[:200]:
            self.is_socket = True
            self.proxy.sockets += 1
        self.moved_at = time.monotonic()
        if self.cut == "on_response":
            self.cut_now()
        elif self.server is None:
            self.waiting += data
        else:
            self.server.transport.write(data)

    def data_from_server(self, data: bytes) -> None:
        self.moved_at = time.monotonic()
        if self.cut == "on_request":
            self.client.transport.write(data[: self.proxy.rng.choice((0, len(data) // 2))])
            self.cut_now()
        else:
            self.client.transport.write(data)

    def arm_cut(self, how: str) -> None:
        self.cut = how
        if how == "immediate":
            self.cut_now()
        else:
            asyncio.get_running_loop().call_later(_CUT_TIMEOUT_S, self.cut_now)

    def cut_now(self) -> None:
        if not self.ended:
            self.proxy.cut[self.cut] += 1
            for side in (self.client, self.server):
                if side is not None:
                    side.transport.abort()
            self.end()

    def end(self) -> None:
        if self.ended:
            return
        self.ended = True
        self.proxy.pairs.discard(self)
        self._connecting.cancel()
        for side in (self.client, self.server):
            if side is not None:
                side.transport.close()


class _Client(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, proxy: ChaosProxy) -> None:
        self._front = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._pair = _Pair(self._front, self)

    def data_received(self, data: bytes) -> None:
        self._pair.data_from_device(data)

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
        self._pair.data_from_server(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._pair.end()
