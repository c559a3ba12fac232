"""The frames of one turn in their order, and whoever follows them. A listener that is slow delays nobody.

A frame's `seq` counts what a client may resume after: text, status and end. What has none (start, domain, approval) is
repeated to those who resume from the beginning only; open approvals are repeated to all.
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

FROM_START = -1  # what a client resumes after that has seen nothing
_ROW_DEPTH: Final = MAX_DEPTH - 3  # it stands in a mutation, in their list, in the frame


class StreamFrame:
    """A frame and its text, the other of which is made when it is asked for: of a chunk, all but always the text."""

    __slots__ = ("_frame", "_text", "kind", "seq")

    def __init__(self, frame: Sent | None, text: str, kind: str, seq: int | None) -> None:
        self._frame, self._text, self.kind, self.seq = frame, text, kind, seq

    @classmethod
    def of(cls, frame: Sent) -> Self:
        return cls(frame, "", frame.type, getattr(frame, "seq", None))  # type: ignore[attr-defined]  # all have one

    @classmethod
    def read(cls, text: str) -> Self:
        """A frame of ours that comes back, from the log or another process."""
        found = orjson.loads(text)
        return cls(None, text, found["type"], found.get("seq"))

    @property
    def text(self) -> str:
        """As protocol 2 has it."""
        if not self._text:
            self._text = dump(self.frame)
        return self._text

    @property
    def frame(self) -> Sent:
        if self._frame is None:
            self._frame = parse_trusted(self._text)
        return self._frame

    @property
    def asks(self) -> bool:
        return self.kind == "approval_request"

    @property
    def ends(self) -> bool:
        return self.kind == "stream_end"


class Listener(Protocol):
    """Gets a turn's frames. Listeners that are equal lead to the same client."""

    @property
    def channel(self) -> str:
        """Where another process that runs the turn sends its frames."""
        ...

    async def hear(self, request_id: str, entries: Sequence[StreamFrame]) -> bool:
        """Pass the frames on, in order. False: there is nobody any more."""
        ...


class Stream:
    """One turn's frames. Only its turn adds to it, and nothing after the end."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.entries: list[StreamFrame] = []
        self.seq = -1  # the last one given
        self.ended = False
        self.asked = False
        self.open: dict[str, StreamFrame] = {}  # approvals that wait for a decision
        self._followers: dict[Listener, _Follower] = {}

    # What the turn says

    def start(self, conversation_id: str | None) -> None:
        self._add(StreamStart(request_id=self.request_id, conversation_id=conversation_id))

    def domain(self, domain: Domain) -> None:
        self._add(FloatingDomain(request_id=self.request_id, domain=domain))

    def write(self, chunk: str) -> None:
        # A StreamText, as the test of it says, without making one: this is done for each token.
        seq = self._next()
        frame = {"type": "stream_text", "request_id": self.request_id, "chunk": chunk, "seq": seq}
        self._enter(StreamFrame(None, orjson.dumps(frame).decode(), "stream_text", seq))

    def status(self, label: str) -> None:
        self._add(StreamStatus(request_id=self.request_id, seq=self._next(), label=label))

    def ask(self, frame: ApprovalRequest) -> None:
        self.asked = True
        self.open[frame.id] = self._add(frame)

    def is_over(self, entry: StreamFrame) -> bool:
        """Whether it asks for an approval that has been decided."""
        return entry.asks and entry not in self.open.values()

    def end(self, frame: StreamEnd) -> None:
        """The last frame; its seq is given here."""
        self.ended = True
        self.open.clear()
        self._add(fit_into_frame(frame.model_copy(update={"seq": self._next()})))

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    def _add(self, frame: Sent) -> StreamFrame:
        return self._enter(StreamFrame.of(frame))

    def _enter(self, entry: StreamFrame) -> StreamFrame:
        self.entries.append(entry)
        for follower in self._followers.values():
            follower.wake()
        return entry

    # Who hears it

    def follow(self, listener: Listener, after: int | None = None) -> None:
        """Send what comes after `after` (None: all of it) and all that follows. Asked again by the same listener, it
        begins anew from there."""
        position = 0 if after is None or after < 0 else self._after(after)
        if self.ended:  # whoever asks is told that it is over
            position = min(position, len(self.entries) - 1)
        seen = self.entries[:position]
        again = [entry for entry in self.open.values() if entry in seen]
        if (older := self._followers.pop(listener, None)) is not None:
            older.stop()
        self._followers[listener] = _Follower(self, listener, position, again)

    def has(self, listener: Listener) -> bool:
        return listener in self._followers

    def leave(self, listener: Listener) -> None:
        if (follower := self._followers.pop(listener, None)) is not None:
            follower.stop()

    async def heard(self) -> None:
        """Until all who follow it have heard the end, or are gone."""
        if tasks := [follower.task for follower in self._followers.values()]:
            await asyncio.wait(tasks)

    def _after(self, seq: int) -> int:
        """The place of the first frame that a client has not seen who saw this seq."""
        for position in range(len(self.entries) - 1, -1, -1):
            found = self.entries[position].seq
            if found is not None and found <= seq:
                return position + 1
        return 0


def fit_into_frame(frame: StreamEnd) -> StreamEnd:
    """Rows that would burst the frame are named by their ids, largest first; the device has them anyway."""
    mutations = [_named(row) if nests_over(row.data, _ROW_DEPTH) else row for row in frame.mutations]
    room = MAX_FRAME_BYTES - 2048
    sizes = [len(dump(mutation).encode()) for mutation in mutations]
    for place in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if sum(sizes) <= room:
            break
        mutations[place] = _named(mutations[place])
        sizes[place] = len(dump(mutations[place]).encode())
    return frame.model_copy(update={"mutations": mutations})


def _named(mutation: Mutation) -> Mutation:
    return mutation.model_copy(update={"data": {"id": mutation.data.get("id")}})


def refusal_frames(
    request_id: str, code: str, *, floating: bool, after: int = FROM_START
) -> list[StreamFrame]:
    """All that is said of a request that is not carried out, or cannot be followed after this seq."""
    stream = Stream(request_id)
    if after < 0:
        if floating:
            stream.domain("tasks")
        stream.start(None)
    stream.seq = max(after, FROM_START)
    stream.end(StreamEnd(request_id=request_id, finish="error", code=code))
    return stream.entries


class _Follower:
    """One listener's place in a stream."""

    _AT_ONCE = 256

    def __init__(self, stream: Stream, listener: Listener, position: int, first: list[StreamFrame]) -> None:
        self._stream, self._listener = stream, listener
        self._position, self._first = position, first
        self._loop = asyncio.get_running_loop()
        self._more: asyncio.Future[None] | None = None  # while it waits
        self.task = self._loop.create_task(self._run(), name="stream follower")

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
        if self._first and not await self._listener.hear(stream.request_id, self._first):
            return
        while True:
            while self._position < len(stream.entries):
                entries = stream.entries[self._position : self._position + self._AT_ONCE]
                self._position += len(entries)
                if stream.asked:  # a question that was answered is not asked again
                    entries = [entry for entry in entries if not stream.is_over(entry)]
                if entries and not await self._listener.hear(stream.request_id, entries):
                    return
            if stream.ended:
                return
            self._more = self._loop.create_future()
            await self._more
