"""uvicorn's WebSocket protocol, with a way to send a frame without a task, and fewer pauses of reading."""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

# A text frame that is complete; its second byte tells the length, or that two or eight bytes do.
_TEXT: Final = 0x81
_MAX_SHORT: Final = 125
_TWO_BYTES: Final = 126
_EIGHT_BYTES: Final = 127
# Reading goes on while fewer messages wait for the application than this, and none larger than this.
_MOST_WAITING: Final = 16
_LARGE_BYTES: Final = 64 * 1024


class PushingWebSocket(WebSocketsSansIOProtocol):
    """A connection to which text can be pushed."""

    # As `writable`, without a call to look.
    _takes_more = True

    def pause_writing(self) -> None:
        self._takes_more = False
        super().pause_writing()

    def resume_writing(self) -> None:
        self._takes_more = True
        super().resume_writing()

    def push(self, text: bytes) -> bool:
        """Send a text frame now. False if that is not possible: nothing was sent, and `send` waits or says why."""
        if (
            not self._takes_more
            or not self.handshake_complete
            or self.close_sent
            or self.disconnected
            or self.conn.extensions  # they would change the frame
            or self.transport.is_closing()
        ):
            return False
        size = len(text)
        if size <= _MAX_SHORT:
            head = bytes((_TEXT, size))
        elif size < 1 << 16:
            head = bytes((_TEXT, _TWO_BYTES)) + size.to_bytes(2, "big")
        else:
            head = bytes((_TEXT, _EIGHT_BYTES)) + size.to_bytes(8, "big")
        self.transport.write(head + text)
        return True

    def send_receive_event_to_app(self) -> None:
        """Hand a message to the application. uvicorn would stop reading after each one, and go on when it is taken."""
        is_large = sum(map(len, self.frames)) > _LARGE_BYTES
        was_paused, self.read_paused = self.read_paused, True  # so that it does not
        super().send_receive_event_to_app()
        self.read_paused = was_paused
        is_full = is_large or self.queue.qsize() >= _MOST_WAITING
        if is_full and not was_paused and not self.close_sent and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()
