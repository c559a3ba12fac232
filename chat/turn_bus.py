"""Messages between processes about running turns.

Each process that runs turns has a channel, which the rows of its turns name. Requests about a turn go to its owner's
channel; the owner answers on the channel of the socket that asked.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from channels.layers import get_channel_layer

from adiuva.core.background import BackgroundTasks
from adiuva.core.channel_layer import INTERRUPTED, Message
from adiuva.core.errors import AdiuvaError, packed
from chat.stream import StreamFrame

# The number of attempts to send a listener's frames while Redis is away, and their interval; then the listener is given
# up.
_SEND_ATTEMPTS: Final = 20
_RETRY_S: Final = 0.25

log = structlog.get_logger(__name__)


class TurnBus:
    """This process's channel, and the way to the channels of other processes.

    `handle` is called with each message that arrives, in a task of its own.
    """

    def __init__(self, handle: Callable[[Message], Coroutine[Any, Any, None]]) -> None:
        self.channel = ""
        self._handle = handle
        self._tasks = BackgroundTasks("turn_bus.task_failed", log)
        self._opening = asyncio.Lock()

    async def open(self) -> str:
        """Return the channel on which other processes reach this one's turns; "" while Redis is away and none can."""
        async with self._opening:
            if not self.channel:
                try:
                    self.channel = await get_channel_layer().new_channel("turns.", self._arrived)
                except ConnectionError:
                    log.warning("turn_bus.open_failed")
                    return ""
        return self.channel

    async def send(self, owner: str, kind: str, user_id: uuid.UUID, **fields: Any) -> bool:
        """Send a message to the process that owns a turn. Returns False if nobody listens there.

        Raises ConnectionError if Redis is away.
        """
        if not owner:
            return False
        try:
            return bool(await get_channel_layer().send(owner, {"type": kind, "user": str(user_id), **fields}))
        except ConnectionError:
            log.warning("turn_bus.send_failed", kind=kind)
            raise

    def _arrived(self, message: Message) -> None:
        if message is not INTERRUPTED:  # the processes repeat messages that were lost
            self._tasks.spawn(self._handle(message), "turn bus message")


@dataclass(frozen=True)
class ChannelListener:
    """A client's socket in another process."""

    channel: str

    def push(self, text: bytes) -> bool:
        return False  # Redis is never written to at once

    async def send_frames(self, request_id: str, frames: Sequence[StreamFrame]) -> bool:
        message = {"type": "stream", "request": request_id, "texts": [frame.text for frame in frames]}
        for _ in range(_SEND_ATTEMPTS):
            try:
                return bool(await get_channel_layer().send(self.channel, message))
            except ConnectionError:
                await asyncio.sleep(_RETRY_S)  # frames that arrive twice are recognised by their seq
        return False


def stream_over_message(request_id: str) -> Message:
    """Tell a socket of another process that this process no longer has the turn, since it has ended."""
    return {"type": "stream_over", "request": request_id}


def steer_late_message(request_id: str, message: str) -> Message:
    """Tell a socket of another process that the turn ended before it could take the message."""
    return {"type": "steer_late", "request": request_id, "message": message}


def refused_message(error: AdiuvaError, ref: str) -> Message:
    """Tell a socket of another process that its request was refused."""
    return {"type": "refused", "code": error.code, "message": packed(error.message), "ref": ref}


def turn_started_message(text: str, request_id: str) -> Message:
    """Tell any socket to send this frame to the client, and to follow the turn that it is about."""
    return {"type": "turn_started", "text": text, "request": request_id}


def notice_message(text: str) -> Message:
    """Tell any socket to send this frame to the client."""
    return {"type": "notice", "text": text}
