"""A turn's frames and those who follow them, in any interleaving."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adiuva.devices.codec import dump, parse_server
from adiuva.devices.protocol import ApprovalRequest, StreamEnd, StreamText
from chat.stream import Stream, StreamFrame

NAMES = ("ada", "bob", "cy")


class Ear:
    """A listener that takes as many frames as it is let, and may be gone. Equal by name, as channels are."""

    channel = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[StreamFrame] = []
        self.gone = False
        self.pushed = 0  # of what it heard
        self._room = asyncio.Semaphore(0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ear) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def let(self, frames: int) -> None:
        for _ in range(frames):
            self._room.release()

    def push(self, text: bytes) -> bool:
        if self.gone or self._room.locked():
            return False
        with suppress(StopIteration):  # it does not wait
            self._room.acquire().send(None)
        self.heard.append(StreamFrame.from_text(text.decode()))
        self.pushed += 1
        return True

    async def send_frames(self, request_id: str, entries: Sequence[StreamFrame]) -> bool:
        for entry in entries:
            await self._room.acquire()
            if self.gone:
                return False
            self.heard.append(entry)
        return True


def approval(key: int) -> ApprovalRequest:
    return ApprovalRequest(
        id=str(key), request_id="r", action="delete", table="tasks", summary="Delete it", expires_at=0
    )


def frames(entries: Sequence[StreamFrame]) -> list[str]:
    """Their texts, without approvals, which are asked again or no more, as they are decided."""
    return [entry.text for entry in entries if not isinstance(entry.frame, ApprovalRequest)]


class Streams(RuleBasedStateMachine):
    """Whoever follows hears exactly the frames after its place, in order, whatever else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stream = Stream("r")
        self.due: dict[
            Ear, list[StreamFrame] | None
        ] = {}  # what each must hear; None: all from the beginning
        self.ears: dict[str, Ear] = {}
        self.keys = count()

    def teardown(self) -> None:
        self.loop.run_until_complete(self._end())
        self.loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, step: object = None) -> None:
        async def settle() -> None:
            if callable(step):
                step()
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settle())

    def add(self, step: object) -> None:
        before = len(self.stream.entries)
        self.run(step)
        for due in self.due.values():
            if due is not None:
                due += self.stream.entries[before:]

    @initialize()
    def start(self) -> None:
        self.add(lambda: self.stream.start(None))

    @precondition(lambda self: not self.stream.ended)
    @rule(chunks=st.lists(st.text(max_size=3), min_size=1, max_size=4))
    def write(self, chunks: list[str]) -> None:
        self.add(lambda: [self.stream.write(chunk) for chunk in chunks])

    @precondition(lambda self: not self.stream.ended)
    @rule()
    def status(self) -> None:
        self.add(lambda: self.stream.status("Looking"))

    @precondition(lambda self: not self.stream.ended)
    @rule()
    def ask(self) -> None:
        self.add(lambda: self.stream.ask(approval(next(self.keys))))

    @precondition(lambda self: self.stream.open)
    @rule(data=st.data())
    def decide(self, data: st.DataObject) -> None:
        self.stream.open.pop(data.draw(st.sampled_from(sorted(self.stream.open))))

    @precondition(lambda self: not self.stream.ended and self.stream.seq >= 2)
    @rule()
    def end(self) -> None:
        self.add(lambda: self.stream.end(StreamEnd(request_id="r", finish="stop")))

    @rule(name=st.sampled_from(NAMES), after=st.none() | st.integers(-1, 12), room=st.integers(0, 20))
    def follow(self, name: str, after: int | None, room: int) -> None:
        """For the first time, or again from elsewhere."""
        entries = self.stream.entries
        first = 0
        if after is not None and after >= 0:
            first = max(
                (at + 1 for at, e in enumerate(entries) if e.seq is not None and e.seq <= after), default=0
            )
        if self.stream.ended:
            first = min(first, len(entries) - 1)

        def follow() -> None:
            # One that was equal to it has been replaced: nothing more is said to that.
            if (older := self.ears.pop(name, None)) is not None:
                self.due.pop(older)
            ear = self.ears[name] = Ear(name)
            self.due[ear] = list(entries[first:])
            ear.let(room)
            self.stream.follow(ear, after)

        self.run(follow)

    @precondition(lambda self: self.ears)
    @rule(data=st.data(), frames=st.integers(1, 30))
    def let(self, data: st.DataObject, frames: int) -> None:
        ear = self.ears[data.draw(st.sampled_from(sorted(self.ears)))]
        self.run(lambda: ear.let(frames))

    @precondition(lambda self: self.ears)
    @rule(data=st.data(), gone=st.booleans())
    def leave(self, data: st.DataObject, gone: bool) -> None:
        """It says so, or is found to be gone when it is spoken to."""
        name = data.draw(st.sampled_from(sorted(self.ears)))
        ear = self.ears.pop(name)
        del self.due[ear]
        heard = len(ear.heard)

        def leave() -> None:
            ear.gone = gone
            if not gone:
                self.stream.unfollow(ear)
            ear.let(1000)

        self.run(leave)
        if gone and not self.stream.ended:
            self.add(lambda: self.stream.write("is anybody there?"))
        assert len(ear.heard) == heard
        assert not self.stream.is_followed_by(ear)

    @invariant()
    def each_has_heard_the_beginning_of_what_it_is_due(self) -> None:
        for ear, due in self.due.items():
            assert due is not None
            heard = frames(ear.heard)
            assert heard == frames(due)[: len(heard)]

    @invariant()
    def seq_counts_what_can_be_resumed(self) -> None:
        numbered = [entry.seq for entry in self.stream.entries if entry.seq is not None]
        assert numbered == list(range(len(numbered)))

    @rule()
    def all_hear_everything_once_they_are_let(self) -> None:
        def let() -> None:
            for ear in self.ears.values():
                ear.let(1000)

        self.run(let)
        for ear, due in self.due.items():
            assert due is not None
            assert frames(ear.heard) == frames(due)
            asked = {entry.frame.id for entry in ear.heard if isinstance(entry.frame, ApprovalRequest)}
            assert asked >= set(self.stream.open)
            assert self.stream.is_followed_by(ear) is not self.stream.ended


TestStreams = Streams.TestCase


class Full(Ear):
    """One that takes everything, and can be waited for."""

    def push(self, text: bytes) -> bool:
        return False

    def __init__(self, name: str, until: int) -> None:
        super().__init__(name)
        self.let(until)
        self.done = asyncio.Event()
        self.until = until

    async def send_frames(self, request_id: str, entries: Sequence[StreamFrame]) -> bool:
        there = await super().send_frames(request_id, entries)
        if len(self.heard) == self.until:
            self.done.set()
        return there


async def test_a_listener_that_never_takes_anything_delays_nobody() -> None:
    stream = Stream("r")
    stuck, quick = Ear("stuck"), Full("quick", 5001)
    stream.follow(stuck)
    stream.follow(quick)
    stream.start(None)
    for number in range(5000):
        stream.write(str(number))
    async with asyncio.timeout(60):
        await quick.done.wait()
    assert stuck.heard == []
    assert "".join(
        entry.frame.chunk for entry in quick.heard if isinstance(entry.frame, StreamText)
    ) == "".join(map(str, range(5000)))
    stream.unfollow(stuck)


async def test_a_listener_that_keeps_up_hears_text_before_any_task_has_run() -> None:
    stream, ear = Stream("r"), Ear("quick")
    ear.let(4)
    stream.follow(ear)
    stream.start(None)
    await asyncio.sleep(0.01)
    stream.write("one")
    stream.write("two")
    assert [entry.kind for entry in ear.heard] == ["stream_start", "stream_text", "stream_text"]
    assert ear.pushed == 2
    stream.status("Looking")  # waits for the task, and what follows it stays behind it
    stream.write("three")
    assert len(ear.heard) == 3
    await asyncio.sleep(0.01)
    assert len(ear.heard) == 4, "it has room for one more"
    ear.let(1)
    await asyncio.sleep(0.01)
    assert frames(ear.heard) == frames(stream.entries)
    stream.unfollow(ear)


async def test_a_listener_that_fails_is_forgotten_and_the_others_hear_on() -> None:
    class Broken(Ear):
        async def send_frames(self, request_id: str, entries: Sequence[StreamFrame]) -> bool:
            raise LookupError

    stream = Stream("r")
    broken, other = Broken("broken"), Full("other", 2)
    stream.follow(broken)
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "stream follower")
    stream.follow(other)
    stream.start(None)
    with pytest.raises(LookupError):
        await task
    assert not stream.is_followed_by(broken)
    stream.write("on")
    await other.done.wait()
    stream.unfollow(other)


async def test_an_end_is_told_to_whoever_asks_even_after_it() -> None:
    stream = Stream("r")
    stream.start(None)
    stream.end(StreamEnd(request_id="r", finish="stop"))
    late = Full("late", 1)
    stream.follow(late, after=0)
    await late.done.wait()
    assert isinstance(late.heard[0].frame, StreamEnd)


async def test_a_question_that_was_answered_is_not_asked_of_who_comes_later() -> None:
    stream = Stream("r")
    stream.start(None)
    stream.ask(approval(1))
    stream.ask(approval(2))
    stream.write("one is decided")
    stream.open.pop("1")
    late, resumed = Full("late", 3), Full("resumed", 1)
    stream.follow(late)
    stream.follow(resumed, after=0)
    await late.done.wait()
    await resumed.done.wait()
    assert [entry.frame.type for entry in late.heard] == ["stream_start", "approval_request", "stream_text"]
    assert [entry.frame.id for entry in resumed.heard if isinstance(entry.frame, ApprovalRequest)] == ["2"]
    stream.unfollow(late)
    stream.unfollow(resumed)


async def test_a_chunk_is_written_as_its_frame_would_be() -> None:
    stream = Stream('r " é')
    for chunk in ("Hello", 'a "quote"\n', "\u2028 ﷽ \x00 <task>[1]</task>"):
        stream.write(chunk)
        entry = stream.entries[-1]
        assert entry.frame == StreamText(request_id=stream.request_id, chunk=chunk, seq=entry.seq)
        assert parse_server(entry.text) == parse_server(dump(entry.frame))
