"""Streams of turns that run in other processes, followed for listeners in this one."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Final

from adiuva.core import db
from chat.stream import Listener, StreamFrame
from chat.stream_replay import StillWaiting, find_turn, replay
from chat.turn_bus import TurnBus

# The interval at which a follower checks that the owning process is still there.
_CHECK_S: Final = 5.0
# If a turn's owner does not listen on its channel, it is tried this often, at this interval, before the turn is
# replayed from the log as lost: the owner may be without Redis for a moment.
_MAX_ATTEMPTS: Final = 6
_RETRY_S: Final = 0.5


class RemoteStreams:
    """The remote streams that listeners of this process follow: at most one for each listener and request."""

    def __init__(self, bus: TurnBus) -> None:
        self._bus = bus
        self._streams: dict[tuple[Listener, str], RemoteStream] = {}

    def add(
        self, listener: Listener, *, user_id: uuid.UUID, request_id: str, owner: str, after: int
    ) -> RemoteStream:
        """Prepare to follow the turn that the process with the channel `owner` runs. Ends an older follower."""
        if (older := self._streams.get((listener, request_id))) is not None:
            older.stop()
        stream = RemoteStream(
            self._bus, listener, user_id=user_id, request_id=request_id, owner=owner, after=after
        )
        self._streams[listener, request_id] = stream
        return stream

    async def follow(self, stream: RemoteStream) -> None:
        """Pass a stream's frames on until its turn has ended. Raises what `replay` does."""
        try:
            await stream.follow()
        finally:
            if self._streams.get(stream.key) is stream:
                del self._streams[stream.key]

    async def channel_message(self, listener: Listener, message: dict[str, Any]) -> None:
        """Handle a message about remote streams that arrived on a listener's channel."""
        if message["type"] == "interrupted":
            for (follower, _), stream in self._streams.items():
                if follower is listener:
                    stream.interrupted()
            return
        if (found := self._streams.get((listener, message["request"]))) is None:
            return
        if message["type"] == "stream":
            await found.receive(message["texts"])
        else:
            found.over()


class RemoteStream:
    """One listener's view of a turn in another process. `after` is the seq that the listener has seen."""

    def __init__(
        self,
        bus: TurnBus,
        listener: Listener,
        *,
        user_id: uuid.UUID,
        request_id: str,
        owner: str,
        after: int,
    ) -> None:
        self.key = listener, request_id
        self.after = after
        self._bus, self._listener, self._user_id = bus, listener, user_id
        self._request_id, self._owner = request_id, owner
        # Types of frames without a seq that were passed on: each comes once.
        self._passed_on: set[str] = set()
        # True if the owner is to begin again after `after`, even if it believes that it sends to us already.
        self._anew = True
        self._check = asyncio.Event()
        self._ended = self._over = False
        self._passing_on = asyncio.Lock()

    async def follow(self) -> None:
        attempts = 0
        while not self._ended:
            self._check.clear()
            anew, self._anew = self._anew, False
            try:
                if self._over or attempts == _MAX_ATTEMPTS:
                    await self._replay()
                    return
                is_there = await self._bus.send(
                    self._owner,
                    "follow",
                    self._user_id,
                    request=self._request_id,
                    after=self.after,
                    reply=self._listener.channel,
                    anew=anew,
                )
                attempts = 0 if is_there else attempts + 1
                self._anew = self._anew or not is_there
            except ConnectionError:
                self._anew = True  # Redis is away; the owner may be well
            try:
                async with asyncio.timeout(_RETRY_S if self._anew else _CHECK_S):
                    await self._check.wait()
            except TimeoutError:
                pass

    async def _replay(self) -> None:
        row = await db.run(find_turn, self._user_id, self._request_id)
        if row.ended_at is None and row.owner != self._owner:
            raise StillWaiting  # the turn waited there, and another process has it by now
        async with self._passing_on:
            if not self._ended:
                await replay(row, self.after, self._listener)
                self.stop()

    async def receive(self, texts: Sequence[str]) -> None:
        """Pass on frames from the owner. Some may be repeats, and some may have been lost on the way."""
        async with self._passing_on:
            frames = []
            for text in texts:
                if self._ended:
                    break
                frame = StreamFrame.from_text(text)
                if not self._is_next(frame):
                    continue
                frames.append(frame)
                if frame.is_end:
                    self.stop()
            if frames:
                await self._listener.send_frames(self._request_id, frames)

    def _is_next(self, frame: StreamFrame) -> bool:
        if frame.is_approval_request:
            return True
        if frame.seq is None:
            is_new = self.after < 0 and frame.kind not in self._passed_on
            self._passed_on.add(frame.kind)
            return is_new
        if frame.seq > self.after + 1 or (self.after < 0 and "stream_start" not in self._passed_on):
            self.interrupted()
            return False
        is_new = frame.seq > self.after
        self.after = max(self.after, frame.seq)
        return is_new or frame.is_end

    def interrupted(self) -> None:
        """Ask the owner to send again, because frames may have been lost."""
        self._anew = True
        self._check.set()

    def over(self) -> None:
        """Note that the turn has ended and its owner no longer has it."""
        self._over = True
        self._check.set()

    def stop(self) -> None:
        """Stop passing frames on."""
        self._ended = True
        self._check.set()
