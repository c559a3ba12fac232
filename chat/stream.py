"""The stream of one turn: its frames in order, and the listeners that follow them. A slow listener delays nobody.

Frames that a client may resume after (text, status, end) carry a `seq`. Frames without one (start, domain, approval)
are repeated only to clients that resume from the beginning; open approvals are repeated to all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol, Self

import orjson

from adiuva.devices.codec import MAX_DEPTH, MAX_FRAME_BYTES, dump, nests_over, parse_trusted
from adiuva.devices.protocol import (
    ApprovalRequest,
    Domain,
    FloatingDomain,
    Mutation,
    Sent,
    StreamEnd,
    StreamStart,
    StreamStatus,
)

# The seq that a client resumes after if it has seen no frame.
FROM_START = -1
# The greatest depth of a row: it is inside a mutation, a list of mutations and the frame.
_MAX_ROW_DEPTH: Final = MAX_DEPTH - 3


class StreamFrame:
    """A frame with lazily built text, or a text with a lazily parsed frame. Chunks almost always need only the text."""

    __slots__ = ("_frame", "_text", "kind", "seq")

    def __init__(self, frame: Sent | None, text: str, kind: str, seq: int | None) -> None:
        self._frame, self._text, self.kind, self.seq = frame, text, kind, seq

    @classmethod
    def from_frame(cls, frame: Sent) -> Self:
        return cls(frame, "", frame.type, getattr(frame, "seq", None))  # type: ignore[attr-defined]  # all frames of a stream have a type

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Build a frame of ours from the log or from another process."""
        found = orjson.loads(text)
        return cls(None, text, found["type"], found.get("seq"))

    @property
    def text(self) -> str:
        """The frame's text for clients of protocol 2."""
        if not self._text:
            self._text = dump(self.frame)
        return self._text

    @property
    def frame(self) -> Sent:
        if self._frame is None:
            self._frame = parse_trusted(self._text)
        return self._frame

    @property
    def is_approval_request(self) -> bool:
        return self.kind == "approval_request"

    @property
    def is_end(self) -> bool:
        return self.kind == "stream_end"


class Listener(Protocol):
    """Gets a turn's frames. Listeners that are equal lead to the same client."""

    @property
    def channel(self) -> str:
        """The channel to which another process that runs the turn sends its frames."""
        ...

    async def send_frames(self, request_id: str, frames: Sequence[StreamFrame]) -> bool:
        """Pass frames on, in order. Returns False if the client is gone."""
        ...

    def push(self, text: bytes) -> bool:
        """Pass the text of a frame on at once. Returns False, without having passed it on, if that is not possible."""
        ...


# More than 15 methods: one of a few lines for each kind of frame.
class Stream:
    """One turn's frames. Only the turn adds to it, and nothing after the end."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.entries: list[StreamFrame] = []
        # The last seq that was assigned.
        self.seq = -1
        self.ended = False
        self.has_asked_approval = False
        # Approval id → the frame that asks for it, until it is decided.
        self.open: dict[str, StreamFrame] = {}
        self._followers: dict[Listener, _Follower] = {}

    # Frames of the turn

    def start(self, conversation_id: str | None) -> None:
        self._add(StreamStart(request_id=self.request_id, conversation_id=conversation_id))

    def domain(self, domain: Domain) -> None:
        self._add(FloatingDomain(request_id=self.request_id, domain=domain))

    def write(self, chunk: str) -> None:
        # The text of a StreamText, without creating one, since this runs for each token. A test compares the two.
        seq = self._next()
        frame = {"type": "stream_text", "request_id": self.request_id, "chunk": chunk, "seq": seq}
        text = orjson.dumps(frame)
        self.entries.append(StreamFrame(None, text.decode(), "stream_text", seq))
        for follower in self._followers.values():
            follower.push(text)

    def status(self, label: str) -> None:
        self._add(StreamStatus(request_id=self.request_id, seq=self._next(), label=label))

    def ask(self, frame: ApprovalRequest) -> None:
        self.has_asked_approval = True
        self.open[frame.id] = self._add(frame)

    def is_over(self, entry: StreamFrame) -> bool:
        """Return whether a frame asks for an approval that has been decided."""
        return entry.is_approval_request and entry not in self.open.values()

    def end(self, frame: StreamEnd) -> None:
        """Add the last frame, with the next seq."""
        self.ended = True
        self.open.clear()
        self._add(fit_into_frame(frame.model_copy(update={"seq": self._next()})))

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    def _add(self, frame: Sent) -> StreamFrame:
        return self._enter(StreamFrame.from_frame(frame))

    def _enter(self, entry: StreamFrame) -> StreamFrame:
        self.entries.append(entry)
        for follower in self._followers.values():
            follower.wake()
        return entry

    # Listeners

    def follow(self, listener: Listener, after: int | None = None) -> None:
        """Send a listener the frames after seq `after` (None: all of them), and those to come.

        A listener that follows already starts again from there.
        """
        position = 0 if after is None or after < 0 else self._after(after)
        if self.ended:  # the end is repeated to everybody
            position = min(position, len(self.entries) - 1)
        seen = self.entries[:position]
        again = [entry for entry in self.open.values() if entry in seen]
        if (older := self._followers.pop(listener, None)) is not None:
            older.stop()
        self._followers[listener] = _Follower(self, listener, position, again)

    def is_followed_by(self, listener: Listener) -> bool:
        return listener in self._followers

    @property
    def channels(self) -> frozenset[str]:
        """The channels of those who follow the stream."""
        return frozenset(listener.channel for listener in self._followers)

    def unfollow(self, listener: Listener) -> None:
        if (follower := self._followers.pop(listener, None)) is not None:
            follower.stop()

    def release(self) -> list[Listener]:
        """Stop sending to anybody. Returns the former listeners."""
        listeners = list(self._followers)
        for listener in listeners:
            self.unfollow(listener)
        return listeners

    async def wait_until_sent(self) -> None:
        """Wait until all listeners have got the end, or are gone."""
        if tasks := [follower.task for follower in self._followers.values()]:
            await asyncio.wait(tasks)

    def _after(self, seq: int) -> int:
        """Return the position of the first frame that a client has not seen if it has seen this seq."""
        for position in range(len(self.entries) - 1, -1, -1):
            found = self.entries[position].seq
            if found is not None and found <= seq:
                return position + 1
        return 0


def fit_into_frame(frame: StreamEnd) -> StreamEnd:
    """Reduce rows to their ids, largest first, until the frame is within its limits; the device has the rows anyway."""
    if not frame.mutations:
        return frame
    mutations = [_id_only(row) if nests_over(row.data, _MAX_ROW_DEPTH) else row for row in frame.mutations]
    room = MAX_FRAME_BYTES - 2048
    sizes = [len(dump(mutation).encode()) for mutation in mutations]
    for place in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if sum(sizes) <= room:
            break
        mutations[place] = _id_only(mutations[place])
        sizes[place] = len(dump(mutations[place]).encode())
    return frame.model_copy(update={"mutations": mutations})


def _id_only(mutation: Mutation) -> Mutation:
    return mutation.model_copy(update={"data": {"id": mutation.data.get("id")}})


def refusal_frames(
    request_id: str, code: str, *, floating: bool, after: int = FROM_START
) -> list[StreamFrame]:
    """Return the frames that end a request that is not carried out, or that cannot be followed after this seq."""
    stream = Stream(request_id)
    if after < 0:
        if floating:
            stream.domain("tasks")
        stream.start(None)
    stream.seq = max(after, FROM_START)
    stream.end(StreamEnd(request_id=request_id, finish="error", code=code))
    return stream.entries


class _Follower:
    """The task that sends a stream's frames to one listener. It sleeps while the listener takes frames at once."""

    # Frames that are passed to the listener in one call.
    _MAX_FRAMES = 256

    def __init__(self, stream: Stream, listener: Listener, position: int, first: list[StreamFrame]) -> None:
        self._stream, self._listener = stream, listener
        self._position, self._first = position, first
        self._loop = asyncio.get_running_loop()
        # Set while the task waits for more frames.
        self._more: asyncio.Future[None] | None = None
        self.task = self._loop.create_task(self._run(), name="stream follower")

    def push(self, text: bytes) -> None:
        """Pass on the text of the newest entry: at once if all before it were passed on and the listener can take it,
        else by the task.
        """
        waits = self._more is not None and not self._more.done()
        if waits and self._position == len(self._stream.entries) - 1 and self._listener.push(text):
            self._position += 1
        else:
            self.wake()

    def wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def stop(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        stream = self._stream
        try:
            await self._pass_on()
        finally:
            if stream._followers.get(self._listener) is self:
                del stream._followers[self._listener]

    async def _pass_on(self) -> None:
        stream = self._stream
        if self._first and not await self._listener.send_frames(stream.request_id, self._first):
            return
        while True:
            while self._position < len(stream.entries):
                entries = stream.entries[self._position : self._position + self._MAX_FRAMES]
                self._position += len(entries)
                if stream.has_asked_approval:  # do not repeat approvals that have been decided
                    entries = [entry for entry in entries if not stream.is_over(entry)]
                if entries and not await self._listener.send_frames(stream.request_id, entries):
                    return
            if stream.ended:
                return
            self._more = self._loop.create_future()
            await self._more
