"""The stream log in Redis: what was written in whatever way reads back in order, and only where it belongs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.devices.codec import dump, parse_server
from adiuva.devices.protocol import ApprovalRequest, StreamEnd
from chat import stream_log
from chat.stream import Stream
from chat.stream_log import StreamLogWriter, StreamRecording
from tests.chat.chat_client import dump_redis
from tests.factories import somebody
from tests.sampling import fewer

pytestmark = pytest.mark.usefixtures("committed_db")

HEAD = {"message": "What is new?"}
CANARY = "zzyzx-4711"


@dataclass
class Turn:
    """What a turn says, on its way into the log of some user."""

    user_id: uuid.UUID
    cipher: UserCipher
    stream: Stream
    recording: StreamRecording
    saved: asyncio.Event

    async def read(self, **other: Any) -> stream_log.LoggedStream | None:
        given = {"user_id": self.user_id, "request_id": self.stream.request_id, "cipher": self.cipher}
        return await stream_log.read(**given | other)

    def said(self) -> list[str]:
        return [entry.text for entry in self.stream.entries if not isinstance(entry.frame, ApprovalRequest)]

    def end(self) -> None:
        self.stream.end(StreamEnd(request_id=self.stream.request_id, finish="stop"))


async def a_turn(user_id: uuid.UUID | None = None, request_id: str | None = None) -> Turn:
    user_id = user_id or (await db.run(somebody)).id
    cipher, saved = await db.run(cipher_for, user_id), asyncio.Event()
    stream = Stream(request_id or uuid.uuid4().hex)
    recording = StreamRecording(stream, user_id=user_id, cipher=cipher, head=HEAD, saved=saved.set)
    return Turn(user_id, cipher, stream, recording, saved)


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    async with Redis.from_url(settings.REDIS_URL) as connection:
        yield connection


STEPS = st.lists(
    st.tuples(
        st.integers(0, 4),  # frames that the turn adds
        st.booleans(),  # and whether it asks for an approval
        # What becomes of the attempt to write them.
        st.sampled_from(
            ["written", "written", "answer lost", "not sent", "none", "forgotten", "ended elsewhere"]
        ),
    ),
    max_size=12,
)


@hypothesis_settings(max_examples=fewer(80))
@given(steps=STEPS)
async def test_what_was_written_twice_in_part_or_anew_reads_back_in_order(
    steps: list[tuple[int, bool, str]],
) -> None:
    user_id = await _somebody()
    turn = await a_turn(user_id)
    key, recording = turn.recording.key, turn.recording
    over: str | None = None

    async with Redis.from_url(settings.REDIS_URL) as redis:

        async def write(fate: str) -> None:
            if (part := recording.next_part()) is None or fate in {"not sent", "none"}:
                return
            parts = await redis.rpush(key, part.sealed)
            if fate == "answer lost":
                recording.start_again()
            else:
                recording.mark_written(part, parts=parts)

        turn.stream.start(None)
        for place, (frames, asks, fate) in enumerate(steps):
            for number in range(frames):
                turn.stream.write(f"{place}.{number} ")
            if asks:
                turn.stream.ask(_approval(turn))
            if fate == "forgotten":
                await redis.delete(key)
            if fate == "ended elsewhere" and over is None and (kept := await turn.read()):
                over = dump(StreamEnd(request_id=turn.stream.request_id, finish="error", code="turn_lost"))
                await stream_log.append(
                    user_id=user_id,
                    request_id=turn.stream.request_id,
                    cipher=turn.cipher,
                    frames=len(kept.frames),
                    frame=over,
                )
            await write(fate)
            kept = await turn.read()
            if kept is not None and kept.frames[-1] != over:
                assert kept.frames == turn.said()[: len(kept.frames)]
        turn.end()
        while not recording.is_whole:
            await write("written")
        kept = await turn.read()
        assert kept is not None
        assert kept.head == HEAD
        if over in kept.frames:  # the process was only thought dead: what it says after that does not count
            assert kept.frames == [*turn.said()[: len(kept.frames) - 1], over]
        else:
            assert kept.frames == turn.said()


_users: list[uuid.UUID] = []


async def _somebody() -> uuid.UUID:
    if not _users:
        _users.append((await db.run(somebody)).id)
    return _users[0]


def _approval(turn: Turn) -> ApprovalRequest:
    return ApprovalRequest(
        id=uuid.uuid4().hex,
        request_id=turn.stream.request_id,
        action="delete",
        table="tasks",
        summary=f"Delete {CANARY}",
        expires_at=0,
    )


async def test_a_recorder_writes_many_turns_and_says_when_each_is_whole(redis: Redis) -> None:
    recorder = stream_log.log_writer()
    turns = [await a_turn() for _ in range(5)]
    for turn in turns:
        recorder.add(turn.recording)
        turn.stream.start(None)
        turn.stream.write(f"{CANARY} of {turn.user_id}")
    await stored(redis, *turns)
    assert not any(turn.saved.is_set() for turn in turns)
    for turn in turns:
        turn.stream.write("more")
        turn.end()
    recorder.hurry()
    for turn in turns:
        async with asyncio.timeout(60):
            await turn.saved.wait()
        kept = await turn.read()
        assert kept is not None
        assert kept.frames == turn.said()
        assert [parse_server(text).type for text in kept.frames][-1] == "stream_end"
        assert 590 < await redis.ttl(turn.recording.key) <= stream_log.LOG_TTL_S


async def stored(redis: Redis, *turns: Turn) -> None:
    """Until the log has something of each."""
    async with asyncio.timeout(60):
        while not all([await redis.exists(turn.recording.key) for turn in turns]):
            await asyncio.sleep(0.02)


async def test_a_log_that_redis_forgets_in_mid_turn_is_written_again_from_the_beginning(redis: Redis) -> None:
    turn = await a_turn()
    stream_log.log_writer().add(turn.recording)
    turn.stream.start(None)
    turn.stream.write("said early, ")
    await stored(redis, turn)
    await redis.delete(turn.recording.key)
    turn.stream.write("said late")
    turn.end()
    stream_log.log_writer().hurry()
    async with asyncio.timeout(60):
        await turn.saved.wait()
    kept = await turn.read()
    assert kept is not None
    assert kept.frames == turn.said()
    assert kept.head == HEAD


async def test_nothing_in_redis_can_be_read_without_the_users_key(redis: Redis) -> None:
    turn = await a_turn(request_id=f"request about {CANARY}")
    stream_log.log_writer().add(turn.recording)
    turn.recording.head["message"] = CANARY
    turn.stream.start(None)
    turn.stream.write(CANARY)
    turn.stream.status(CANARY)
    turn.stream.ask(_approval(turn))
    turn.end()
    stream_log.log_writer().hurry()
    await turn.saved.wait()
    assert CANARY.encode() not in await dump_redis(redis)
    turn.recording.head["message"] = "What is new?"


async def test_a_part_that_was_moved_to_another_users_or_requests_log_does_not_open(redis: Redis) -> None:
    mine, same_user, other = await a_turn(), await a_turn(), await a_turn()
    same_user.user_id, same_user.cipher = mine.user_id, mine.cipher
    moved = StreamRecording(
        same_user.stream, user_id=mine.user_id, cipher=mine.cipher, head=HEAD, saved=same_user.saved.set
    )
    mine.stream.start(None)
    mine.stream.write("mine")
    part = mine.recording.next_part()
    assert part is not None
    for target in (mine.recording, moved, other.recording):
        await redis.rpush(target.key, part.sealed)
    assert await mine.read() is not None
    assert await same_user.read() is None
    assert await other.read() is None
    # Nor does it under the other's request id in the one's name, nor at another place of the same log.
    assert await mine.read(cipher=other.cipher) is None
    await redis.delete(mine.recording.key)
    await redis.rpush(mine.recording.key, part.sealed, (2).to_bytes(4, "big") + part.sealed[4:])
    kept = await mine.read()
    assert kept is not None
    assert kept.frames == mine.said()


async def test_a_turn_is_let_go_when_redis_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", "redis://127.0.0.1:9/0")
    monkeypatch.setattr(stream_log, "_WRITE_INTERVAL_S", 0.001)
    recorder, turn = StreamLogWriter(), await a_turn()
    recorder.add(turn.recording)
    turn.stream.start(None)
    turn.end()
    async with asyncio.timeout(60):
        await turn.saved.wait()


async def test_a_log_that_redis_refuses_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_log, "_WRITE_INTERVAL_S", 0.001)
    recorder, turn = StreamLogWriter(), await a_turn()
    command, refused = recorder._redis.command, list[str]()

    def refuse_at_first(answered: Callable[[Any], object], *words: str | bytes) -> None:
        if len(refused) < 4:
            refused.append(str(words[0]))
            answered("unavailable" if len(refused) < 3 else "lost")
        else:
            command(answered, *words)

    monkeypatch.setattr(recorder._redis, "command", refuse_at_first)
    recorder.add(turn.recording)
    turn.stream.start(None)
    turn.stream.write("said")
    turn.end()
    async with asyncio.timeout(60):
        await turn.saved.wait()
    assert refused == ["RPUSH", "EXPIRE", "RPUSH", "EXPIRE"]
    kept = await turn.read()
    assert kept is not None
    assert kept.frames == turn.said()


async def test_a_log_without_redis_raises_what_its_readers_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = await a_turn()
    unreachable = Redis.from_url("redis://127.0.0.1:9/0")
    monkeypatch.setattr(stream_log, "async_redis", lambda purpose: unreachable)
    with pytest.raises(ConnectionError):
        await turn.read()
