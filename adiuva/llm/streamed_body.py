"""Body of a streamed answer, handed on as it arrives without waking a task for each piece.

A chunked stream wakes the process every few milliseconds, each time on cold caches. aiohttp would parse each chunk,
buffer it, and wake the task that reads, which would then run through all layers of its generators. So once aiohttp has
read the headers, the bytes of the connection go straight to a StreamedBody, and from there to the task that waits in
`pass_on`. All else stays aiohttp's: connecting, TLS, the pool, headers, and answers that are not chunked or are
compressed.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler

from adiuva.llm import errors
from adiuva.llm.stream_coalescing import pacer

# If a connection brings more before its body is taken over, aiohttp keeps the body.
_MAX_HEAD_BYTES: Final = 128 * 1024
# At most this many bytes of a body are kept while nobody reads it; then the connection is read no further.
_MAX_WAITING_BYTES: Final = 256 * 1024
# The longest line with a chunk's size and extensions, or behind the last chunk.
_MAX_LINE_BYTES: Final = 4096
_MAX_TRAILERS: Final = 64
_MAX_SIZE_DIGITS: Final = 8
_DIGITS: Final = b"0123456789abcdefABCDEF"

Take = Callable[[bytes], bool]
"""Takes a piece of a body. Returns whether the task that waits has something to do."""


class Body(Protocol):
    """Body that is being read."""

    @property
    def is_over(self) -> bool:
        """Return whether nothing more comes."""
        ...

    async def pass_on(self, take: Take) -> bool:
        """Give each piece to `take`, in order, until it returns True. Returns False if the body has ended.

        Raises the errors of `take`, TimeoutError after too long a silence, ModelGarbled if the body is too long, and
        aiohttp's errors.
        """
        ...


class ReadBody:
    """Body that aiohttp reads."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], content: aiohttp.StreamReader) -> None:
        """Wrap a body. `chunks` yields the bytes of `content`."""
        self._chunks, self._content = chunks, content

    @property
    def is_over(self) -> bool:
        return self._content.at_eof()

    async def pass_on(self, take: Take) -> bool:
        while piece := await anext(self._chunks, b""):
            if take(piece):
                return True
        return False


class ChunkDecoder:
    """Decoder of the chunked transfer coding (RFC 9112, 7.1), however its bytes are split."""

    def __init__(self) -> None:
        self.ended = False
        self.rest = b""  # bytes that came behind the end
        self._line = b""  # a line whose end has not arrived
        self._left = 0  # bytes of the current chunk that are still to come
        self._trailers = -1  # lines behind the last chunk; -1 before it
        self._is_behind_chunk = False  # the line end behind a chunk has not arrived

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body in these bytes. Raises ValueError if they are not chunked."""
        if not self._left and not self._line and not self._is_behind_chunk and self._trailers < 0:
            # The bytes nearly always are one whole chunk, or several.
            at, found = 0, []
            while True:
                end = data.find(b"\r\n", at, at + _MAX_SIZE_DIGITS + 2)
                digits = data[at:end]
                if end <= at or digits.strip(_DIGITS):
                    break
                begin = end + 2
                end = begin + int(digits, 16)
                if end == begin or data[end : end + 2] != b"\r\n":
                    break
                found.append(data[begin:end])
                at = end + 2
                if at == len(data):
                    return found[0] if len(found) == 1 else b"".join(found)
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        at, found = 0, []
        while at < len(data) and not self.ended:
            if self._left:
                piece = data[at : at + self._left]
                found.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._is_behind_chunk = not self._left
                continue
            end = data.find(b"\n", at)
            self._line += data[at:] if end < 0 else data[at:end]
            if len(self._line) > _MAX_LINE_BYTES:
                raise ValueError("an endless line between chunks")
            if end < 0:
                break
            at, line = end + 1, self._line.rstrip(b" \t\r")
            self._line = b""
            self._take_line(line)
        if self.ended:
            self.rest += data[at:]
        return b"".join(found)

    def _take_line(self, line: bytes) -> None:
        if self._is_behind_chunk:
            if line:
                raise ValueError("a chunk is longer than it says")
            self._is_behind_chunk = False
        elif self._trailers < 0:
            self._left = _size(line.partition(b";")[0].rstrip(b" \t"))
            if not self._left:
                self._trailers = 0
        elif not line:
            self.ended = True
        else:
            self._trailers += 1
            if self._trailers > _MAX_TRAILERS:
                raise ValueError("too many lines behind the last chunk")


def _size(digits: bytes) -> int:
    if not digits or len(digits) > _MAX_SIZE_DIGITS or digits.strip(_DIGITS):
        raise ValueError("no size of a chunk")
    return int(digits, 16)


class StreamingProtocol(ResponseHandler):
    """aiohttp's side of a connection with a body that a StreamedBody may take over."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        # The bytes since the request, so that a body can be taken over from its beginning.
        self._seen: list[bytes] = []
        self._seen_bytes = 0
        self._body: StreamedBody | None = None

    def set_response_params(self, **params: Any) -> None:
        self._seen, self._seen_bytes, self._body = [], 0, None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._body is not None:
            self._body.arrived(data)
            return
        if data and self._seen_bytes <= _MAX_HEAD_BYTES:
            self._seen.append(data)
            self._seen_bytes += len(data)
        super().data_received(data)

    def put_aside(self, pieces: list[bytes] | None) -> None:
        """Add arriving bytes to a list, and do nothing else: no code of ours runs then. None: handle them again."""
        if pieces is None:
            vars(self).pop("data_received", None)
        else:
            self.data_received = pieces.append  # type: ignore[assignment,method-assign]
        if self.transport is not None:
            self.transport.set_protocol(self)  # uvloop keeps `data_received`, and looks it up anew only here

    def connection_lost(self, exc: BaseException | None) -> None:
        body, self._body = self._body, None
        super().connection_lost(exc)
        if body is not None:
            body.lost()

    def take_over(self, body: StreamedBody) -> bytes | None:
        """Give the body the bytes that have come so far, and from now on all that come. None if it stays aiohttp's."""
        if self._seen_bytes > _MAX_HEAD_BYTES or self._reading_paused or not self.is_connected():
            return None
        head, found, begun = b"".join(self._seen).partition(b"\r\n\r\n")
        if not found or not head.startswith(b"HTTP/1.1 200"):
            return None
        self._seen, self._body = [], body
        self.read_timeout = None  # the body has a timer of its own
        self._drop_timeout()
        return begun

    def give_back(self, content: aiohttp.StreamReader, *, is_clean: bool) -> None:
        """Free the connection for another request, because the body has ended."""
        self._body = None
        if not is_clean:
            self.force_close()
        content.feed_eof()


class StreamingConnector(aiohttp.TCPConnector):
    """Connector of aiohttp with connections whose bodies can be taken over."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(StreamingProtocol, loop=self._loop)  # type: ignore[assignment]  # a subclass


class StreamedBody:
    """Chunked body on its way from the connection to the task that waits in `pass_on`."""

    def __init__(
        self, protocol: StreamingProtocol, content: aiohttp.StreamReader, *, silence_s: float, max_bytes: int
    ) -> None:
        self._protocol, self._content = protocol, content
        self._silence_s, self._max_bytes = silence_s, max_bytes
        self._loop = asyncio.get_running_loop()
        self._pacer = pacer()
        self._decoder = ChunkDecoder()
        self.put_aside: list[bytes] = []
        self._puts_aside = False
        self._pieces: deque[bytes] = deque()  # nobody waits for these
        self._waiting_bytes = self._bytes = 0
        self._is_paused = self._has_ended = False
        self._error: Exception | None = None
        self._take: Take | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._heard_at = self._loop.time()
        self._timer = self._loop.call_later(silence_s, self._check_silence)

    def begin(self) -> bool:
        """Take the body over from aiohttp. Returns False if that is not possible any more."""
        has_gone_on = self._content.is_eof() or self._content.exception() is not None
        begun = None if has_gone_on else self._protocol.take_over(self)
        if begun is None:
            self._timer.cancel()
            return False
        if begun:
            self.put_aside.append(begun)
            self.hand_on()
        if not self._has_ended:
            self._pacer.add(self)
        return True

    @property
    def is_over(self) -> bool:
        return self._has_ended and not self._pieces

    async def pass_on(self, take: Take) -> bool:
        while self._pieces:
            piece = self._pieces.popleft()
            self._waiting_bytes -= len(piece)
            if take(piece):
                return True
        if self._is_paused:
            self._is_paused = False
            self._resume()
        if self._error is not None:
            raise self._error
        if self._has_ended:
            return False
        self._heard_at = self._loop.time()  # silence counts while somebody listens
        self._take, self._waiter = take, self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._take = self._waiter = None

    def close(self) -> None:
        """Hand on nothing more."""
        self._end()
        self.put_aside.clear()

    def _end(self) -> None:
        self._has_ended = True
        self._timer.cancel()
        self._pacer.remove(self)
        self.put_pieces_aside(False)

    # ── The connection's side ───────────────────────────────────────────────────────────────────────────

    def arrived(self, data: bytes) -> None:
        if self._has_ended:
            return
        self.put_aside.append(data)
        self._pacer.count(self._loop.time())
        if not self._puts_aside:
            self.hand_on()

    def put_pieces_aside(self, is_on: bool) -> None:
        if is_on != self._puts_aside:
            self._puts_aside = is_on
            self._protocol.put_aside(self.put_aside if is_on else None)

    def hand_on(self) -> None:
        arrived = self.put_aside
        if not arrived or self._has_ended:
            return
        data = arrived[0] if len(arrived) == 1 else b"".join(arrived)
        arrived.clear()
        self._heard_at = self._loop.time()
        try:
            piece = self._decoder.feed(data)
        except ValueError:
            self._fail(aiohttp.ClientPayloadError("not chunked"))
            return
        self._bytes += len(piece)
        if self._bytes > self._max_bytes:
            self._fail(errors.ModelGarbled("the model's answer is too long"))
            return
        waiter, take = self._waiter, self._take
        if not piece:
            pass
        elif take is None or waiter is None or waiter.done():
            self._keep(piece)
        else:
            try:
                if take(piece):
                    waiter.set_result(True)
            except Exception as error:
                waiter.set_exception(error)
        if self._decoder.ended:
            self._end()
            self._protocol.give_back(self._content, is_clean=not self._decoder.rest)
            if waiter is not None and not waiter.done():
                waiter.set_result(False)

    def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)
        if self._waiting_bytes > _MAX_WAITING_BYTES and not self._is_paused:
            self._is_paused = True
            self._pause()

    def lost(self) -> None:
        """Note that the connection has ended before the body."""
        self.hand_on()
        if not self._has_ended:
            self._fail(aiohttp.ClientPayloadError("the connection has ended before the answer"))

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._end()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _check_silence(self) -> None:
        now = self._loop.time()
        due = (now if self._waiter is None else self._heard_at) + self._silence_s
        if due > now:
            self._timer = self._loop.call_at(due, self._check_silence)
        else:
            self._fail(aiohttp.SocketTimeoutError("the model has stopped sending"))

    def _pause(self) -> None:
        if (transport := self._protocol.transport) is not None:
            transport.pause_reading()

    def _resume(self) -> None:
        if (transport := self._protocol.transport) is not None:
            transport.resume_reading()
