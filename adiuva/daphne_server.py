"""daphne, changed to end in order and to refuse bodies before it has read them.

Django must be set up, and Twisted's reactor installed (`import daphne.server`), before this is imported.
"""

from __future__ import annotations

import asyncio
import io
from typing import Any, Final
from urllib.parse import unquote

import daphne.server
from daphne.endpoints import build_endpoint_description_strings
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from adiuva import body_guard, body_streams
from adiuva.core import shutdown
from adiuva.core.errors import AdiuvaError

_STATUS_LINE: Final = b"HTTP/1.1 %d %s\r\n"
# Pieces of a body, each of at most 64 KiB, that may wait for an application which takes them as they come.
_MOST_WAITING: Final = 16
_LOOK_AGAIN_S: Final = 0.005


class _Socket(WebSocketProtocol):  # type: ignore[misc]  # daphne has no types
    def serverClose(self, code: int | None = None) -> None:
        self.sendCloseFrame(code=code or 1000)  # Autobahn's `sendClose` refuses code 1012


@implementer(IPushProducer)
class _Drain:
    """Signal of whether the client takes what it is sent: the transport pauses it while too much waits."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.flows.set()

    def pauseProducing(self) -> None:
        self.flows.clear()

    def resumeProducing(self) -> None:
        self.flows.set()

    def stopProducing(self) -> None:
        self.flows.set()


class _Request(WebRequest):  # type: ignore[misc]
    """Request that is answered when its headers have arrived if they are refused, and that stores nothing of a refused
    body.

    Twisted tells of a body before it is complete in two places, `gotLength` and `handleContentChunk`.
    """

    refused = False
    _linger: int | None = None
    _bound = body_guard.MAX_STRANGER_BYTES
    _read = 0
    _stream = False  # the application already runs while the body comes
    _whole = False  # all of the body came
    _paused = False
    _drain: _Drain | None = None

    def handle_reply(self, message: dict[str, Any]) -> None:
        super().handle_reply(message)
        goes_on = message["type"] == "http.response.body" and message.get("more_body", False)
        if goes_on and self._drain is None and not self.finished and not self._disconnected:
            self._drain = _Drain()
            self.registerProducer(self._drain, True)

    async def drained(self) -> None:
        """Wait until the client has taken most of the answer so far, or is gone."""
        if self._drain is not None:
            await self._drain.flows.wait()

    def connectionLost(self, reason: Any) -> None:
        if self._drain is not None:
            self._drain.stopProducing()
        super().connectionLost(reason)

    def gotLength(self, length: int | None) -> None:
        self._headers = body_guard.header_map(
            (name, value) for name, values in self.requestHeaders.getAllRawHeaders() for value in values
        )
        path = body_guard.decoded_path(self.channel._path)
        has_body = body_guard.has_body(self._headers)
        method = self.channel._command.decode("latin-1")
        if has_body and (body_streams.stream_of(method, path) or body_guard.takes_files(path)):
            self._begin_stream()
            return
        super().gotLength(length)
        if not has_body:
            return
        try:
            self._bound = body_guard.check_headers(path, self._headers)
        except AdiuvaError as error:
            self._refuse(error)

    def handleContentChunk(self, data: bytes) -> None:
        self._read += len(data)
        if self.refused:
            if self._linger is not None and self._read >= self._linger:
                self.channel._networkProducer.pauseProducing()
            return
        if self._stream:
            self._hand_on(data)
        elif self._read > self._bound:
            self._refuse(body_guard.too_large(self._bound))
        else:
            super().handleContentChunk(data)

    def process(self) -> Any:
        if self.refused:
            return None
        if self._stream:
            self._whole = True
            self.channel._savedTimeOut = body_guard.SILENCE_S
            self.application_queue.put_nowait({"type": "http.request", "body": b"", "more_body": False})
            return None
        return super().process()

    def _refuse(self, error: AdiuvaError) -> None:
        self.refused = True
        self._linger = body_guard.most_lingering(error, self._headers)
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

    # ── Bodies that are taken as they come ──────────────────────────────────────────────────────────────

    def _begin_stream(self) -> None:
        """Run the application now. It watches for silence itself, as the guard does."""
        channel = self.channel
        self._stream, self.content = True, io.BytesIO()
        self.method, self.uri, self.clientproto = channel._command, channel._path, channel._version
        self.path, _, query = self.uri.partition(b"?")
        self.client, self.host = channel.getPeer(), channel.getHost()
        channel.setTimeout(None)
        self.application_queue = self.server.create_application(
            self,
            {
                "type": "http",
                "http_version": self.clientproto.split(b"/")[-1].decode("latin-1"),
                "method": self.method.decode("latin-1"),
                "path": unquote(self.path.decode("latin-1")),
                "raw_path": self.path,
                "root_path": self.server.root_path,
                "scheme": "https" if self.isSecure() else "http",
                "query_string": query,
                "headers": list(self._headers.items()),
                "client": [self.client.host, self.client.port] if hasattr(self.client, "host") else None,
                "server": [self.host.host, self.host.port] if hasattr(self.host, "host") else None,
            },
        )

    def _hand_on(self, data: bytes) -> None:
        self.application_queue.put_nowait({"type": "http.request", "body": data, "more_body": True})
        if not self._paused and self.application_queue.qsize() >= _MOST_WAITING:
            self._paused = True
            self.channel._networkProducer.pauseProducing()
            reactor.callLater(_LOOK_AGAIN_S, self._resume)

    def _resume(self) -> None:
        """Read on once the application has taken most of what waits."""
        if self.finished or self.channel is None or self._disconnected:
            return
        if self.application_queue.qsize() > _MOST_WAITING // 4:
            reactor.callLater(_LOOK_AGAIN_S, self._resume)
        else:
            self._paused = False
            self.channel._networkProducer.resumeProducing()

    def finish(self) -> None:
        if self._drain is not None:
            self._drain.stopProducing()
            self.unregisterProducer()
            self._drain = None
        if not self._stream or self._whole:
            super().finish()
            return
        # The answer came before the body was complete, so the rest of the body is not a request.
        self.send_disconnect()
        self.finished = 1
        self.server.protocol_disconnected(self)
        self.channel.loseConnection()

    def handle_exception(self, exception: BaseException) -> None:
        """Cut an answer that has begun, so that it does not end like a good one."""
        if self._response_started:
            self.channel.forceAbortClient()
        else:
            super().handle_exception(exception)


class _Factory(HTTPFactory):  # type: ignore[misc]
    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.timeOut = (
            body_guard.SILENCE_S
        )  # runs while a request arrives; Twisted suspends it during the answer

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

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Send a message of the application. If the client does not read, the application waits."""
        await super().handle_reply(protocol, message)
        if isinstance(protocol, _Request):
            await protocol.drained()

    def kill_all_applications(self) -> Deferred[None]:
        """Stop all applications. daphne calls this when the reactor is about to stop, and waits for the result."""
        return Deferred.fromFuture(asyncio.ensure_future(self._end_applications()))

    async def _end_applications(self) -> None:
        await shutdown.run_hooks()
        tasks = [task for each in self.connections.values() if (task := each.get("application_instance"))]
        if tasks:
            await asyncio.wait(tasks, timeout=self._finish_requests_s)
        for task in tasks:
            task.cancel()
        if tasks:  # an application that ignores its cancellation must not keep the process alive
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
