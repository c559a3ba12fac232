"""A scripted server for the headless device: sign-in over REST, and a socket that does what the test says.

    async with DeviceServer() as server, server.device(grants=[folder]) as device:
        line = await server.line()                 # the next connection, its hello answered
        await line.send(AgentRun(…))
        manifest = await line.expect(AgentManifest)

Frames from the device are checked by the protocol's own models, and none may be over the frame limit.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import WSMsgType, web

from adiuva.devices.client import IN_MEMORY, Device, DeviceConfig, Event
from adiuva.devices.codec import MAX_FRAME_BYTES, dump, parse
from adiuva.devices.protocol import ClientFrame, DeviceHello, HelloAck, Received, Sent

PATIENCE_S = 60.0
EMAIL, PASSWORD = "mara@example.com", "a good password"
F = TypeVar("F", bound=Received)


class Line:
    """One connection of a device."""

    def __init__(self, socket: web.WebSocketResponse, headers: Any) -> None:
        self.socket, self.headers = socket, headers
        self.hello: DeviceHello
        self.texts: list[str] = []
        self.frames: asyncio.Queue[ClientFrame | None] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def send(self, frame: Sent) -> None:
        await self.socket.send_str(dump(frame, self.hello.protocol))

    async def send_text(self, text: str) -> None:
        await self.socket.send_str(text)

    async def expect(self, kind: type[F]) -> F:
        """The next frame. Fails if it is of another kind."""
        async with asyncio.timeout(PATIENCE_S):
            frame = await self.frames.get()
        assert isinstance(frame, kind), frame
        return frame

    async def close(self, code: int = 1000) -> None:
        await self.socket.close(code=code)

    async def read(self) -> None:
        async for message in self.socket:
            if message.type is WSMsgType.TEXT:
                assert len(message.data.encode()) <= MAX_FRAME_BYTES
                self.texts.append(message.data)
                self.frames.put_nowait(parse(message.data))
        self.closed.set()
        self.frames.put_nowait(None)


class DeviceServer:
    """Records its requests. The socket closes with 4401 for an access token in `refuses`."""

    def __init__(self, *, token_life_s: float = 900.0, max_inflight: int = 4, ping_s: float = 30.0) -> None:
        self.token_life_s, self.max_inflight, self.ping_s = token_life_s, max_inflight, ping_s
        self.logins = self.refreshes = 0
        self.refresh_token: str | None = None
        self.refuses: set[str] = set()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.base = ""
        self._count = itertools.count(1)
        self._lines: asyncio.Queue[Line] = asyncio.Queue()
        self._open: list[Line] = []

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/api/v1/auth/login", self._login)
        app.router.add_post("/api/v1/auth/refresh", self._refresh)
        app.router.add_get("/api/v1/ws/device", self._socket)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._open:
            await line.close()
        await self._runner.cleanup()

    def device(
        self,
        *,
        grants: Sequence[Path] = (),
        workspace: Path | str = IN_MEMORY,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        **options: Any,
    ) -> Device:
        """A device of this server. Its events go to `events`, and it reconnects without delay."""
        credentials: dict[str, Any] = {"email": EMAIL, "password": PASSWORD}
        config = DeviceConfig(
            server=self.base, grants=grants, workspace=workspace, **{**credentials, **options}
        )
        return Device(config, on_event=self.events.put_nowait, sleep=sleep or no_wait)

    async def line(self) -> Line:
        """The next connection, after its hello."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._lines.get()

    async def line_from(self, process: asyncio.subprocess.Process) -> Line:
        """The next connection from a device in this process. Fails if the process ends first."""
        waiting, ended = asyncio.create_task(self._lines.get()), asyncio.create_task(process.wait())
        await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        assert waiting.done(), (process.returncode, process.stdout and await process.stdout.read())
        return waiting.result()

    async def event(self, kind: type[Any]) -> Any:
        """The next event of this kind."""
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance(event := await self.events.get(), kind):
                pass
        return event

    def _tokens(self) -> web.Response:
        number = next(self._count)
        self.refresh_token = f"refresh-{number}"
        return web.json_response(
            {
                "access_token": f"access-{number}",
                "refresh_token": self.refresh_token,
                "expires_at": int(time.time() + self.token_life_s),
            }
        )

    async def _login(self, request: web.Request) -> web.Response:
        self.logins += 1
        if await request.json() != {"email": EMAIL, "password": PASSWORD}:
            return web.json_response({"code": "not_authenticated", "message": "no"}, status=401)
        return self._tokens()

    async def _refresh(self, request: web.Request) -> web.Response:
        self.refreshes += 1
        if (await request.json())["refresh_token"] != self.refresh_token:
            return web.json_response({"code": "not_authenticated", "message": "no"}, status=401)
        return self._tokens()

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=4 * MAX_FRAME_BYTES)
        await socket.prepare(request)
        if request.headers["Authorization"].removeprefix("Bearer ") in self.refuses:
            await socket.close(code=4401)
            return socket
        line = Line(socket, request.headers)
        self._open.append(line)
        reader = asyncio.create_task(line.read())
        line.hello = await line.expect(DeviceHello)
        if line.hello.protocol >= 2:
            await line.send(
                HelloAck(
                    session_id="a session",
                    protocol=2,
                    ping_s=self.ping_s,
                    max_frame_bytes=MAX_FRAME_BYTES,
                    max_inflight=self.max_inflight,
                    server_time=0,
                )
            )
        self._lines.put_nowait(line)
        await reader
        return socket


async def no_wait(_: float) -> None:
    await asyncio.sleep(0)
