"""Headless device: its workspace, its account, and a connection that is re-established until it is stopped."""

from __future__ import annotations

import asyncio
import os
import platform
import time
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import aiohttp
import structlog

from adiuva import __version__
from adiuva.core.http import retry_after_s
from adiuva.core.logging import log_failure
from adiuva.devices.client import events
from adiuva.devices.client.account import Account, ServerAddress, ServerUnavailable
from adiuva.devices.client.config import IN_MEMORY, DeviceConfig
from adiuva.devices.client.connection import Connection
from adiuva.devices.client.errors import BadWorkspace, DeviceError, ServerRefused, Superseded
from adiuva.devices.client.file_access import resolve_grant
from adiuva.devices.client.reconnect import Backoff, ConnectionEnd
from adiuva.devices.client.store import DATA_FILE, Store
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.protocol import Close, DeviceHello, Received

log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT_S: Final = 20.0
# No server answers a hello later than this.
_LATEST_ANSWER_S: Final = 60.0
# Reasons for the ends that the server announces with a close code.
_CLOSE_REASONS: Final[dict[int, str]] = {
    Close.SUPERSEDED: "the server answered an older connection of this device late",
    Close.NOT_AUTHENTICATED: "the server asks for a new sign-in",
    Close.TIMEOUT: "the server waited too long for an answer",
    Close.TOO_LARGE: "a frame was too large for the server",
    Close.TOO_MANY: "the server asks for fewer requests",
    Close.RESTARTING: "the server is restarting",
}
_HANDSHAKE_CODES: Final[dict[int, int]] = {
    HTTPStatus.UNAUTHORIZED: Close.NOT_AUTHENTICATED,
    HTTPStatus.FORBIDDEN: Close.NOT_AUTHENTICATED,  # the answer of ASGI servers when a socket is not accepted
    HTTPStatus.TOO_MANY_REQUESTS: Close.TOO_MANY,
}


class NotConnected(DeviceError):
    code = "not_connected"


def _local_zone() -> str | None:
    """Return this machine's IANA time zone, if the machine names one."""
    named = os.environ.get("TZ") or os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    try:
        return ZoneInfo(named).key
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder of zones is an OSError
        return None


class Device:
    """Headless device. `await device.run()`, or `async with Device(…) as device: await device.connected()`.

    Devices that share a process may share `http`. `on_event` is called with each event of
    `adiuva.devices.client.events`, and must return quickly.
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        http: aiohttp.ClientSession | None = None,
        on_event: Callable[[events.Event], object] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Open the workspace.

        Raises a DeviceError if the workspace, the address or the credentials cannot be used.
        """
        self._address = ServerAddress.parse(config.server)
        folder = None if config.workspace == IN_MEMORY else _folder(Path(config.workspace))
        self._account = Account(
            self._address,
            email=config.email,
            password=config.password,
            code=config.code,
            access_token=config.access_token,
            refresh_token=config.refresh_token,
            file=folder and folder / "session.json",
        )
        self.store = Store(folder and folder / DATA_FILE)
        self.device_id = config.device_id or self.store.property("device_id") or uuid.uuid4().hex
        self.store.set_property("device_id", self.device_id)
        self._grants = [resolve_grant(grant) for grant in config.grants]
        self._hello = DeviceHello(
            device_id=self.device_id,
            agent_ids=list(config.agent_ids),
            protocol=config.protocol,
            name=config.name or platform.node() or None,
            platform=platform.system().lower() or None,
            app_version=__version__,
            capabilities=list(config.capabilities) if config.protocol > 1 else [],
            grants=[str(grant) for grant in self._grants] if config.protocol > 1 else None,
            timezone=_local_zone() if config.protocol > 1 else None,
        )
        self._http, self._on_event, self._sleep = http, on_event, sleep
        self._backoff = Backoff()
        self._connection: Connection | None = None
        # Time when a connection was lost before its hello was answered.
        self._unanswered_at: float | None = None
        self._is_connected = asyncio.Event()
        self._reconnecting: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._stopping = False

    # ── Running ─────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Stay connected until `stop()`.

        Raises SignInRefused, Superseded or ServerRefused, after which no reconnect can help.
        """
        self._reconnecting = asyncio.create_task(self._stay_connected())
        if self._stopping:
            self._reconnecting.cancel()
        try:
            await self._reconnecting
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self.store.close()

    def stop(self) -> None:
        """End `run()` with a proper close of the socket."""
        self._stopping = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()

    async def connected(self) -> None:
        """Wait until there is a connection.

        Raises the error that ended the device, or NotConnected if it was stopped.
        """
        waiting = asyncio.create_task(self._is_connected.wait())
        try:
            watched = {task for task in (waiting, self._running or self._reconnecting) if task is not None}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                for task in watched - {waiting}:
                    task.result()
                raise NotConnected("The device has stopped.")
        finally:
            waiting.cancel()

    async def send(self, frame: Received) -> None:
        """Send a frame, such as a chat request. Raises NotConnected if there is no connection."""
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
            await self._reconnect_forever(self._http)
            return
        async with aiohttp.ClientSession() as http:
            await self._reconnect_forever(http)

    async def _reconnect_forever(self, http: aiohttp.ClientSession) -> None:
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
        """Connect once, from sign-in to end. Raises a DeviceError if no further attempt can help."""
        try:
            token = await self._account.access_token(http)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                socket = await http.ws_connect(
                    self._address.socket,
                    headers={"Authorization": f"Bearer {token}"},
                    max_msg_size=MAX_FRAME_BYTES + 1,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                )
        except aiohttp.WSServerHandshakeError as refused:
            code = _HANDSHAKE_CODES.get(refused.status)
            wait = retry_after_s(refused.headers.get("Retry-After") if refused.headers else None)
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
        except Exception as error:
            log_failure("connection.failed", error, logger=log)
        finally:
            self._connection = None
        ended = self._ended(socket.close_code, reason)
        if not self._is_connected.is_set() and ended.code not in _CLOSE_REASONS:
            self._unanswered_at = time.monotonic()
        return ended

    def _superseded_by_own_connection(self) -> bool:
        """Return whether an older connection of this device, with a hello read late, may have replaced this one."""
        since, self._unanswered_at = self._unanswered_at, None
        return since is not None and time.monotonic() - since < _LATEST_ANSWER_S

    def _ended(self, code: int | None, reason: str, retry_after_s: float | None = None) -> ConnectionEnd:
        if code == Close.SUPERSEDED and not self._superseded_by_own_connection():
            raise Superseded("The same device connected elsewhere, so this one has stopped.")
        if code == Close.ORIGIN_REFUSED:
            raise ServerRefused("The server does not accept connections from here.")
        if code == Close.NOT_AUTHENTICATED:
            self._account.reject_access_token()
        return ConnectionEnd(_CLOSE_REASONS.get(code or 0, reason), code, retry_after_s=retry_after_s)

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
        raise BadWorkspace(f"The workspace folder cannot be created ({error.strerror}).") from error
    return path
