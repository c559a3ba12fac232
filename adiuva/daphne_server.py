"""daphne, made to end in order and to refuse bodies before it has read them.

Django must be set up, and Twisted's reactor installed (`import daphne.server`), before this is imported.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import daphne.server
from daphne.endpoints import build_endpoint_description_strings
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from adiuva import body_guard
from adiuva.core import shutdown
from adiuva.core.errors import AdiuvaError

_STATUS_LINE: Final = b"HTTP/1.1 %d %s\r\n"


class _Socket(WebSocketProtocol):  # type: ignore[misc]  # daphne has no types
    def serverClose(self, code: int | None = None) -> None:
        self.sendCloseFrame(code=code or 1000)  # Autobahn's `sendClose` refuses code 1012


class _Request(WebRequest):  # type: ignore[misc]
    """Answers when its headers have arrived if they are refused, and stores nothing of what it refuses.

    `gotLength` and `handleContentChunk` are the two places where Twisted tells of a body before it is complete.
    """

    refused = False
    _bound = body_guard.MAX_STRANGER_BYTES
    _read = 0

    def gotLength(self, length: int | None) -> None:
        super().gotLength(length)
        self._headers = body_guard.header_map(
            (name, value) for name, values in self.requestHeaders.getAllRawHeaders() for value in values
        )
        if not body_guard.has_body(self._headers):
            return
        path = body_guard.decoded_path(self.channel._path)
        try:
            self._bound = body_guard.check_headers(path, self._headers)
        except AdiuvaError as error:
            self._refuse(error)

    def handleContentChunk(self, data: bytes) -> None:
        if self.refused:
            return
        self._read += len(data)
        if self._read > self._bound:
            self._refuse(body_guard.too_large(self._bound))
        else:
            super().handleContentChunk(data)

    def process(self) -> Any:
        return None if self.refused else super().process()

    def _refuse(self, error: AdiuvaError) -> None:
        self.refused = True
        channel = self.channel
        status, headers, body = body_guard.refusal(error, self._headers)
        lines = [
            _STATUS_LINE % (status, b"Refused"),
            *(b"%s: %s\r\n" % header for header in headers),
            b"\r\n",
            body,
        ]
        channel.transport.write(b"".join(lines))
        reactor.callLater(body_guard.LINGER_S, channel.loseConnection)


class _Factory(HTTPFactory):  # type: ignore[misc]
    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.timeOut = (
            body_guard.SILENCE_S
        )  # while a request arrives; Twisted suspends it while one is answered

    def buildProtocol(self, addr: Any) -> Any:
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = _Request
        return protocol


WebSocketFactory.protocol = _Socket
daphne.server.HTTPFactory = _Factory


class Server(daphne.server.Server):  # type: ignore[misc]
    def __init__(self, *args: Any, finish_requests_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._finish_requests_s = finish_requests_s

    def kill_all_applications(self) -> Deferred[None]:
        """Called by daphne when the reactor is about to stop; the reactor waits for the result."""
        return Deferred.fromFuture(asyncio.ensure_future(self._end_applications()))

    async def _end_applications(self) -> None:
        await shutdown.run_hooks()
        tasks = [task for each in self.connections.values() if (task := each.get("application_instance"))]
        if tasks:
            await asyncio.wait(tasks, timeout=self._finish_requests_s)
        for task in tasks:
            task.cancel()
        if tasks:  # one that ignores its cancellation must not keep the process alive
            await asyncio.wait(tasks, timeout=self._finish_requests_s)


def make(
    application: Any, *, host: str, port: int, max_message_bytes: int, finish_requests_s: float
) -> Server:
    return Server(
        application,
        endpoints=build_endpoint_description_strings(host=host, port=port),
        finish_requests_s=finish_requests_s,
        websocket_timeout=-1,  # a device may stay connected for weeks
        websocket_max_message_size=max_message_bytes,
        websocket_max_frame_size=max_message_bytes,
        ping_interval=20,
        ping_timeout=600,  # long, because the protocol has its own ping
        server_name="",
    )
