"""A device: its workspace, its account, and a connection that is made again for as long as it lives."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp

from adiuva import __version__
from adiuva.devices.client import events
from adiuva.devices.client.account import Account, ServerAddress, ServerUnavailable, retry_after
from adiuva.devices.client.connection import Connection
from adiuva.devices.client.errors import BadWorkspace, DeviceError, ServerRefused, Superseded
from adiuva.devices.client.files import resolve_grant
from adiuva.devices.client.reconnect import Backoff, ConnectionEnd
from adiuva.devices.client.store import Store
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.protocol import Close, DeviceHello, Received

log = logging.getLogger("adiuva.device")

CAPABILITIES: Final = ("dedupe", "batch", "manifest")
IN_MEMORY: Final = ":memory:"
_CONNECT_WITHIN_S: Final = 20.0
_LATE_S: Final = 60.0  # after which no server answers a hello any more
_WORDS: Final[dict[int, str]] = {  # ends that the server has told of
    Close.SUPERSEDED: "the server had answered an older connection late",
    Close.NOT_AUTHENTICATED: "the server asks for a new sign-in",
    Close.TIMEOUT: "the server had waited too long for an answer",
    Close.TOO_LARGE: "a frame was too large for the server",
    Close.TOO_MANY: "the server asks for fewer requests",
    Close.RESTARTING: "the server is restarting",
}
_HANDSHAKE_CODES: Final[dict[int, int]] = {
    HTTPStatus.UNAUTHORIZED: Close.NOT_AUTHENTICATED,
    HTTPStatus.FORBIDDEN: Close.NOT_AUTHENTICATED,  # how ASGI servers say that a socket was not accepted
    HTTPStatus.TOO_MANY_REQUESTS: Close.TOO_MANY,
}


class NotConnected(DeviceError):
    code = "not_connected"


class Device:
    """A headless device. `await device.run()`, or `async with Device(…) as device: await device.connected()`.

    `workspace` is the folder of its data and session (":memory:" keeps both in memory), `grants` the folders
    whose files it may read. It signs in with `email` and `password`, or with tokens. Devices that share a
    process may share `http`. `on_event` is called with each event of `adiuva.devices.client.events`, and must
    be quick.
    """

    def __init__(
        self,
        *,
        server: str,
        workspace: Path | str,
        grants: Sequence[Path | str] = (),
        email: str | None = None,
        password: str | None = None,
        access_token: str | None = None,
        refresh_token: str | None = None,
        protocol: int = 2,
        capabilities: Sequence[str] = CAPABILITIES,
        device_id: str | None = None,
        name: str | None = None,
        agent_ids: Sequence[str] = (),
        http: aiohttp.ClientSession | None = None,
        on_event: Callable[[events.Event], object] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Open the workspace. Raise a DeviceError if that, the address or the credentials cannot do."""
        self._address = ServerAddress.parse(server)
        folder = None if workspace == IN_MEMORY else _folder(Path(workspace))
        self._account = Account(
            self._address,
            email=email,
            password=password,
            access_token=access_token,
            refresh_token=refresh_token,
            file=folder and folder / "session.json",
        )
        self.store = Store(folder and folder / "data.sqlite3")
        self.device_id = device_id or self.store.about("device_id") or uuid.uuid4().hex
        self.store.set_about("device_id", self.device_id)
        self._grants = [resolve_grant(grant) for grant in grants]
        self._hello = DeviceHello(
            device_id=self.device_id,
            agent_ids=list(agent_ids),
            protocol=protocol,
            name=name or platform.node() or None,
            platform=platform.system().lower() or None,
            app_version=__version__,
            capabilities=list(capabilities) if protocol > 1 else [],
        )
        self._http, self._on_event, self._sleep = http, on_event, sleep
        self._backoff = Backoff()
        self._connection: Connection | None = None
        self._unanswered_at: float | None = None  # when a connection was lost before its hello was answered
        self._is_connected = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._stopping = False

    # ── Life ────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Stay connected until `stop()`. Raise SignInRefused, Superseded or ServerRefused: they end a device."""
        self._work = asyncio.create_task(self._stay_connected())
        if self._stopping:
            self._work.cancel()
        try:
            await self._work
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self.store.close()

    def stop(self) -> None:
        """End `run()`; the socket is closed properly."""
        self._stopping = True
        if self._work is not None:
            self._work.cancel()

    async def connected(self) -> None:
        """Wait until there is a connection. Raise what ended the device if it ended before."""
        waiting = asyncio.create_task(self._is_connected.wait())
        try:
            watched = {task for task in (waiting, self._running or self._work) if task is not None}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                for task in watched - {waiting}:
                    task.result()
                raise NotConnected("The device has stopped.")
        finally:
            waiting.cancel()

    async def send(self, frame: Received) -> None:
        """Send a frame of one's own, such as a chat request. Raise NotConnected."""
        if self._connection is None or not self._is_connected.is_set():
            raise NotConnected("The device is not connected.")
        await self._connection.send(frame)

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._running is not None:
            await self._running

    # ── Connections ─────────────────────────────────────────────────────────────────────────────────────

    async def _stay_connected(self) -> None:
        if self._http is not None:
            await self._connect_for_ever(self._http)
            return
        async with aiohttp.ClientSession() as http:
            await self._connect_for_ever(http)

    async def _connect_for_ever(self, http: aiohttp.ClientSession) -> None:
        while True:
            started = time.monotonic()
            try:
                ended = await self._connect_once(http)
            except asyncio.CancelledError:
                self._emit(events.Disconnected("the device was stopped", None, None))
                raise
            ended = ConnectionEnd(ended.reason, ended.code, time.monotonic() - started, ended.retry_after_s)
            delay = self._backoff.after(ended)
            self._emit(events.Disconnected(ended.reason, ended.code, delay))
            await self._sleep(delay)

    async def _connect_once(self, http: aiohttp.ClientSession) -> ConnectionEnd:
        """One connection from sign-in to end. Raise what no further try would change."""
        try:
            token = await self._account.access_token(http)
            async with asyncio.timeout(_CONNECT_WITHIN_S):
                socket = await http.ws_connect(
                    self._address.socket,
                    headers={"Authorization": f"Bearer {token}"},
                    max_msg_size=MAX_FRAME_BYTES + 1,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                )
        except aiohttp.WSServerHandshakeError as refused:
            code = _HANDSHAKE_CODES.get(refused.status)
            wait = retry_after(refused.headers.get("Retry-After") if refused.headers else None)
            return self._ended(code, f"the server answered {refused.status}", wait)
        except ServerUnavailable as away:
            return ConnectionEnd(str(away), retry_after_s=away.retry_after)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            return ConnectionEnd(f"the server cannot be reached ({type(error).__name__})")
        return await self._serve(socket)

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> ConnectionEnd:
        reason = "an error in the device itself"
        try:
            async with socket:
                self._connection = Connection(socket, self._hello, self.store, self._grants, self._emit)
                reason = await self._connection.serve()
        except ConnectionError:
            reason = "the connection was lost"
        except Exception:
            log.exception("connection failed")
        finally:
            self._connection = None
        ended = self._ended(socket.close_code, reason)
        if not self._is_connected.is_set() and ended.code not in _WORDS:
            self._unanswered_at = time.monotonic()
        return ended

    def _was_ourselves(self) -> bool:
        """Whether what replaced a connection may be an older one of ours, whose hello the server has read late."""
        since, self._unanswered_at = self._unanswered_at, None
        return since is not None and time.monotonic() - since < _LATE_S

    def _ended(self, code: int | None, reason: str, retry_after_s: float | None = None) -> ConnectionEnd:
        if code == Close.SUPERSEDED and not self._was_ourselves():
            raise Superseded("The same device connected elsewhere, so this one has stopped.")
        if code == Close.ORIGIN_REFUSED:
            raise ServerRefused("The server does not accept connections from here.")
        if code == Close.NOT_AUTHENTICATED:
            self._account.reject_access_token()
        return ConnectionEnd(_WORDS.get(code or 0, reason), code, retry_after_s=retry_after_s)

    def _emit(self, event: events.Event) -> None:
        if isinstance(event, events.Connected):
            self._is_connected.set()
        elif isinstance(event, events.Disconnected):
            self._is_connected.clear()
        if self._on_event is not None:
            self._on_event(event)


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError as error:
        raise BadWorkspace(f"The workspace folder cannot be made ({error.strerror}).") from error
    return path
