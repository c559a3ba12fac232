"""Buffer of a device's frames: in order, bounded, and unreadable for others where it waits in a file."""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adiuva.devices import run_frame_buffer
from adiuva.devices.codec import dump
from adiuva.devices.protocol import AgentComplete, AgentData, AgentFile
from adiuva.devices.run_frame_buffer import FlowExceeded, RunFrameBuffer, SpillFile

_OVERHEAD = 29  # of a seal: version, nonce, tag


def data(number: int, size: int = 10, batch: int | None = None) -> AgentData:
    file = AgentFile(path=f"{number}.md", name="x", content="ä" * size)
    return AgentData(run_id="r", files=[file], batch=batch)


def put(box: RunFrameBuffer, frame: Any) -> None:
    box.put(frame, dump(frame))


@given(st.lists(st.one_of(st.none(), st.text(max_size=60)), max_size=80), st.integers(100, 400))
def test_a_file_gives_back_what_went_in_in_order_within_its_bounds(
    steps: list[str | None], most: int
) -> None:
    """None takes one out."""
    waiting: deque[str] = deque()
    with closing(SpillFile(most)) as spill:
        for text in steps:
            if text is None:
                if waiting:
                    assert spill.get() == waiting.popleft()
                continue
            try:
                spill.put(text)
            except FlowExceeded:
                # Only where it is full; what is at the end of a ring and too short for a text is lost for the round.
                held = sum(len(each.encode()) + _OVERHEAD for each in waiting)
                assert held + 3 * (len(text.encode()) + _OVERHEAD) > most or held * 2 + 250 > most
                continue
            waiting.append(text)
            assert sum(len(each.encode()) + _OVERHEAD for each in waiting) <= most
        assert len(spill) == len(waiting)
        while waiting:
            assert spill.get() == waiting.popleft()


def test_a_file_that_never_runs_empty_does_not_grow() -> None:
    with closing(SpillFile(1_000)) as spill:
        spill.put("a" * 100)
        for _ in range(100):
            spill.put("b" * 100)
            spill.get()
        assert len(spill) == 1


def test_what_waits_in_a_file_cannot_be_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = tempfile.TemporaryFile

    def remember(*args: Any, **options: Any) -> Any:
        made.append(real(*args, **options))
        return made[-1]

    monkeypatch.setattr(run_frame_buffer.tempfile, "TemporaryFile", remember)
    with closing(SpillFile(1_000)) as spill:
        spill.put("a secret")
        made[0].seek(0)
        assert b"secret" not in made[0].read()
    assert made[0].closed


async def test_frames_come_in_order_whether_they_waited_in_memory_or_in_a_file() -> None:
    with closing(RunFrameBuffer()) as box:
        frames = [data(number, 100_000) for number in range(60)]
        for frame in frames[:50]:
            put(box, frame)
        assert box._spill  # it did not all fit
        assert [await box.get() for _ in range(10)] == frames[:10]
        for frame in frames[50:]:
            put(box, frame)
        put(box, AgentComplete(run_id="r"))
        assert [await box.get() for _ in range(50)] == frames[10:]
        assert isinstance(await box.get(), AgentComplete)


async def test_after_the_last_frame_the_end_of_the_connection_is_known() -> None:
    with closing(RunFrameBuffer()) as box:
        put(box, data(1))
        box.end()
        put(box, data(2))  # too late
        assert await box.get() == data(1)
        assert await box.get() is None
        assert await box.get() is None


async def test_whoever_waits_is_woken() -> None:
    with closing(RunFrameBuffer()) as box:
        waiting = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        put(box, data(1))
        assert await waiting == data(1)
        waiting = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        box.end()
        assert await waiting is None


async def test_more_batches_than_agreed_are_too_many_until_some_are_acknowledged() -> None:
    with closing(RunFrameBuffer()) as box:
        for number in range(8):
            put(box, data(number, batch=number))
        await box.get()  # taking one out is not to have done with it
        box.acknowledged()
        put(box, data(8, batch=8))
        assert await box.get() == data(1, batch=1)
        put(box, data(9, batch=9))
        with pytest.raises(FlowExceeded):
            await box.get()


async def test_a_device_that_knows_no_acknowledgement_may_fill_the_file_and_no_more(settings: Any) -> None:
    settings.RUNS = settings.RUNS | {"spill_bytes": 1_000_000}
    with closing(RunFrameBuffer()) as box:
        for number in range(200):
            put(box, data(number, 50_000))
        assert box._size <= run_frame_buffer.MAX_BUFFERED_CHARS
        with pytest.raises(FlowExceeded):
            await box.get()
