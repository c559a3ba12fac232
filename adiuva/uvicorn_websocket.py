"""uvicorn's WebSocket protocol that can send and take a frame without a task, and pauses reading less often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

# A complete text frame; its second byte tells the length, or that two or eight bytes do.
_TEXT: Final = 0x81
_MAX_SHORT: Final = 125
_TWO_BYTES: Final = 126
_EIGHT_BYTES: Final = 127
# Reading goes on while fewer messages than this wait for the application, and none larger than this.
_MOST_WAITING: Final = 16
_LARGE_BYTES: Final = 64 * 1024
# Frames that are to be sent soon are kept up to this size; then they are sent now.
_KEPT_BYTES: Final = 16 * 1024


class _Messages:
    """Messages that wait for the application, which reads them from one task. It does as much of asyncio.Queue as
    uvicorn uses, and takes a tenth of a kilobyte for a socket without messages instead of three."""

    __slots__ = ("_loop", "_reader", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Any] = []
        self._reader: asyncio.Future[None] | None = None

    @property
    def are_awaited(self) -> bool:
        """Return whether the application has handled all earlier messages, and waits for more."""
        return not self._waiting and self._reader is not None and not self._reader.done()

    def put_nowait(self, message: Any) -> None:
        self._waiting.append(message)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> Any:
        while not self._waiting:
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._waiting.pop(0)

    def empty(self) -> bool:
        return not self._waiting

    def qsize(self) -> int:
        return len(self._waiting)


class PushingWebSocket(WebSocketsSansIOProtocol):
    """Connection to which text can be pushed, and which may hand text over where it arrives."""

    queue: _Messages  # type: ignore[assignment]  # as much of a queue as is used
    # Takes a text frame at once if the application waits for one; returns False if the application is to get it as a
    # message.
    take: Callable[[str], bool] | None = None
    # True if text can be pushed, unless the connection is being closed. Computed anew after each pause of writing.
    _is_open = False
    # Frames that are to be sent soon, and their size; thousands of sockets have none.
    _kept: list[bytes] | None = None
    _kept_bytes = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.queue = _Messages(self.loop)

    def pause_writing(self) -> None:
        self._is_open = False
        super().pause_writing()

    def push(self, text: bytes) -> bool:
        """Send a text frame now. Returns False if that is impossible: nothing was sent, and `send` waits or says
        why."""
        if not self._can_push():
            return False
        if self._kept:
            self._send_kept()
        self.transport.write(_head(len(text)) + text)
        return True

    def push_soon(self, text: bytes) -> bool:
        """Send a text frame in this turn of the loop, with all others sent in this way: one system call for a burst."""
        if not self._can_push():
            return False
        if self._kept is None:
            self._kept = []
            self.loop.call_soon(self._send_kept)
        self._kept += (_head(len(text)), text)
        self._kept_bytes += len(text)
        if self._kept_bytes > _KEPT_BYTES:
            self._send_kept()
        return True

    def _can_push(self) -> bool:
        if not self._is_open:
            # Pushing is not possible with an extension, which would change the frame.
            self._is_open = self.handshake_complete and self.writable.is_set() and not self.conn.extensions
        return self._is_open and not self.close_sent and not self.transport.is_closing()

    def _send_kept(self) -> None:
        kept, self._kept, self._kept_bytes = self._kept, None, 0
        if kept and not self.close_sent and not self.transport.is_closing():
            self.transport.write(b"".join(kept))

    async def send(self, message: Any) -> None:
        if self._kept:
            self._send_kept()  # pushed frames come first
        await super().send(message)
        if message["type"] == "websocket.accept":
            self.request = self.response = None  # type: ignore[assignment]  # with thousands of sockets they take room

    def shutdown(self) -> None:
        self._send_kept()
        super().shutdown()

    def send_receive_event_to_app(self) -> None:
        """Hand a message to the application. uvicorn would stop reading after each one, and go on when it is taken."""
        if self.take is not None and self.queue.are_awaited and self._is_taken():
            self.frames = []
            return
        is_large = sum(map(len, self.frames)) > _LARGE_BYTES
        was_paused, self.read_paused = self.read_paused, True  # keeps it from pausing
        super().send_receive_event_to_app()
        self.read_paused = was_paused
        is_full = is_large or self.queue.qsize() >= _MOST_WAITING
        if is_full and not was_paused and not self.close_sent and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def _is_taken(self) -> bool:
        if self.curr_msg_data_type != "text" or len(self.frames) != 1 or self.close_sent:
            return False
        try:
            text = self.frames[0].decode()
        except UnicodeDecodeError:
            return False  # uvicorn closes the connection for it
        assert self.take is not None
        return self.take(text)


def _head(size: int) -> bytes:
    if size <= _MAX_SHORT:
        return bytes((_TEXT, size))
    if size < 1 << 16:
        return bytes((_TEXT, _TWO_BYTES)) + size.to_bytes(2, "big")
    return bytes((_TEXT, _EIGHT_BYTES)) + size.to_bytes(8, "big")
