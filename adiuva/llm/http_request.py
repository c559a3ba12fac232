"""HTTP/1.1 requests, written to the connections of an aiohttp connector without an aiohttp session.

A session makes anew for each request what ours never need: cookies, redirects, credentials in addresses, traces, tables
of headers, and a task that writes the body. That is more than half of a request's CPU. So an address has its head
prepared once, and a request is that head and its body in one write. All else stays aiohttp's: connecting, TLS, the pool
and its time limits, and reading the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage
from yarl import URL

from adiuva.llm import errors

CONNECT_TIMEOUT_S: Final = 10.0
_TIMEOUT: Final = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Response:
    """Response to a request, of which the head has been read. It must be released."""

    def __init__(
        self,
        connection: Connection,
        protocol: ResponseHandler,
        head: RawResponseMessage,
        content: aiohttp.StreamReader,
    ) -> None:
        self._connection = connection
        self.status: int = head.code
        self.headers: Mapping[str, str] = head.headers
        self.content = content
        self.protocol = protocol

    @property
    def content_type(self) -> str:
        """Return the body's type without parameters, in lower case."""
        found = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return found if "/" in found else "application/octet-stream"

    def release(self) -> None:
        """Return the connection to the pool if the body was read to its end, and close it otherwise."""
        transport = self._connection.transport
        if transport is not None and transport.get_write_buffer_size():
            _close(self._connection)  # it was answered before it had taken the whole request
        else:
            self._connection.release()


class PreparedRequest:
    """Method, address and headers of requests, ready to be sent with one body after another."""

    def __init__(self, method: str, url: URL, headers: Mapping[str, str]) -> None:
        """Raises ValueError if a header holds control characters, which could end it."""
        self._method, self._url = method, url
        lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"Host: {url.host_port_subcomponent}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if any(map(_CONTROL.search, lines)):
            raise ValueError("a header holds control characters")
        self._head = "\r\n".join(lines).encode()
        # What tells each connector the address; a request of aiohttp belongs to one event loop.
        self._addresses: WeakKeyDictionary[aiohttp.TCPConnector, aiohttp.ClientRequest] = WeakKeyDictionary()

    async def send(
        self, connector: aiohttp.TCPConnector, body: bytes | None = None, *, silence_s: float | None = None
    ) -> Response:
        """Send it with this body; return the response when its head has come.

        Raises aiohttp's errors (ConnectionTimeoutError if the connection takes too long), TimeoutError if nothing
        arrives for `silence_s`, and ModelGarbled for an answer that is not HTTP.
        """
        if (address := self._addresses.get(connector)) is None:
            address = self._addresses[connector] = aiohttp.ClientRequest(self._method, self._url)
        try:
            connection = await connector.connect(address, [], _TIMEOUT)
        except TimeoutError:  # as an error of its own, because nothing was sent
            raise aiohttp.ConnectionTimeoutError("no connection came about in time") from None
        try:
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                raise aiohttp.ClientConnectionError("the connection was closed")
            protocol.set_response_params(read_until_eof=True, read_timeout=silence_s)
            if body is None:
                transport.write(self._head + b"\r\n\r\n")
            else:
                transport.write(b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body))
            protocol.start_timeout()
            while True:
                head, content = await protocol.read()
                if head.code >= 200 or head.code == 101:  # others only announce the answer
                    return Response(connection, protocol, head, content)
        except BaseException as error:
            _close(connection)
            if isinstance(error, HttpProcessingError):
                raise errors.ModelGarbled("the model's address does not answer in HTTP") from None
            raise


def _close(connection: Connection) -> None:
    transport, protocol = connection.transport, connection.protocol
    if transport is not None and protocol is not None and transport.get_write_buffer_size():
        protocol.abort()  # else it would stay open until the rest of the request is taken
    connection.close()
