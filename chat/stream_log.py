"""The stream log keeps the frames of each turn in Redis, sealed, for ten minutes after the last one.

While a turn runs, its process answers from memory; the log serves clients that come after the end, and turns whose
process was killed. One pipeline writes the new frames of all turns of a process, every half second and when a turn
ends, so that no token waits for Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import structlog
from django.conf import settings
from redis.exceptions import RedisError

from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.logging import log_failure
from adiuva.core.per_loop import PerLoop
from adiuva.core.pubsub_connection import Fate, NoSubscriber, PubSubConnection
from adiuva.core.redis import async_redis
from adiuva.core.sealed import seal_for_redis, unseal_from_redis
from adiuva.devices.protocol import Mutation
from chat.stream import Stream

log = structlog.get_logger(__name__)

LOG_TTL_S: Final = 600
_WRITE_INTERVAL_S: Final = 0.5
# The most attempts to write the log of a turn that has ended.
_MAX_ATTEMPTS: Final = 60
# A part starts with this many bytes, the number of frames before it.
_COUNT_BYTES: Final = 4


class LogPart(NamedTuple):
    """The new frames, sealed, and how many entries, frames and mutations the log has once they are written."""

    sealed: bytes
    written: int
    frames: int
    mutations: int


def is_end(text: str) -> bool:
    """Return whether a frame's text is that of a stream_end. Safe, since quotes inside of strings are escaped."""
    return '"type":"stream_end"' in text


class StreamRecording:
    """One turn's stream on its way into the log.

    `head` is the request, stored with the first part. `mutations` returns the turn's changes so far; they are stored as
    they happen, since the end that lists them may never come. `saved` is called once the log has the whole stream.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        user_id: uuid.UUID,
        cipher: UserCipher,
        head: dict[str, Any],
        saved: Callable[[], None],
        mutations: Callable[[], Sequence[Mutation]] = tuple,
    ) -> None:
        self.stream, self.cipher, self.head, self.saved = stream, cipher, head, saved
        self._changes = mutations
        self.key = _key(user_id, stream.request_id)
        self.tries = 0
        self._written = self._frames = self._mutations = self._parts = 0

    def next_part(self) -> LogPart | None:
        """Return the part that is not in the log yet; None if there is none."""
        new = self.stream.entries[self._written :]
        changed = () if self.stream.ended else self._changes()[self._mutations :]
        if not new and not changed:
            return None
        frames = [entry.text for entry in new if not entry.is_approval_request]
        body: dict[str, Any] = {"frames": frames}
        if not self._written:
            body["head"] = self.head
        if changed:
            body["mutations"] = [self._mutations, [mutation.model_dump() for mutation in changed]]
        sealed = _seal(self.cipher, self.key, self._frames, body)
        return LogPart(
            sealed, self._written + len(new), self._frames + len(frames), self._mutations + len(changed)
        )

    def mark_written(self, part: LogPart, parts: int) -> None:
        """Note that a part was written and that the log has `parts` parts now. If older ones are gone, start again."""
        if parts <= self._parts:
            self.start_again()
        else:
            self._written, self._frames, self._mutations = part.written, part.frames, part.mutations
            self._parts = parts

    def start_again(self) -> None:
        """Write everything again, since the state of the log is unknown."""
        self._written = self._frames = self._mutations = self._parts = 0

    @property
    def is_whole(self) -> bool:
        return self.stream.ended and self._written == len(self.stream.entries)


class StreamLogWriter:
    """Writes the log of all turns of one event loop."""

    def __init__(self) -> None:
        self._recordings: set[StreamRecording] = set()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # redis-py's pipeline would cost a short turn more than all else of its log.
        self._redis = PubSubConnection(
            {"address": settings.REDIS_URL}, NoSubscriber(), asyncio.get_running_loop()
        )

    def add(self, recording: StreamRecording) -> None:
        self._recordings.add(recording)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="stream log")

    def discard(self, stream: Stream) -> None:
        """Write no more of a turn, since another process does."""
        self._recordings = {each for each in self._recordings if each.stream is not stream}

    def hurry(self) -> None:
        """Write now, because a turn has ended."""
        self._ended.set()

    async def flush(self) -> None:
        """Wait until the log has all turns. Call it when they have ended."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        while self._recordings:
            try:
                async with asyncio.timeout(_WRITE_INTERVAL_S):
                    await self._ended.wait()
            except TimeoutError:
                pass
            self._ended.clear()
            await self._write()

    async def _write(self) -> None:
        parts = [(recording, part) for recording in self._recordings if (part := recording.next_part())]
        try:
            lengths = await self._append([(recording.key, part.sealed) for recording, part in parts])
        except OSError as error:
            log_failure("stream_log.write_failed", error, level="warning", streams=len(parts))
            for recording, _ in parts:
                recording.start_again()
                self._count_try(recording)
            return
        for (recording, part), length in zip(parts, lengths, strict=True):
            recording.mark_written(part, parts=length)
        for recording in [recording for recording in self._recordings if recording.is_whole]:
            self._recordings.discard(recording)
            recording.saved()
        if any(recording.stream.ended for recording in self._recordings):
            self._ended.set()

    async def _append(self, parts: Sequence[tuple[str, bytes]]) -> list[int]:
        """Append to the logs of these keys; returns how many parts each has then. Raises OSError."""
        if not parts:
            return []
        await self._redis.ready()
        answers: list[Fate] = []
        done = asyncio.get_running_loop().create_future()

        def answered(fate: Fate) -> None:
            answers.append(fate)
            if len(answers) == 2 * len(parts) and not done.done():
                done.set_result(None)

        for key, sealed in parts:
            self._redis.command(answered, "RPUSH", key, sealed)
            self._redis.command(answered, "EXPIRE", key, str(LOG_TTL_S))
        await done
        numbers = [answer for answer in answers if isinstance(answer, int)]
        if len(numbers) < len(answers):
            raise ConnectionError("Redis has not taken all of the stream log")
        return numbers[::2]

    def _count_try(self, recording: StreamRecording) -> None:
        if recording.stream.ended:
            recording.tries += 1
            if recording.tries >= _MAX_ATTEMPTS:
                self._recordings.discard(recording)
                recording.saved()


class LoggedStream(NamedTuple):
    """A turn's log: its frames' texts in order, its request, and its changes before its end."""

    frames: list[str]
    head: dict[str, Any]
    mutations: list[Mutation]


async def read(*, user_id: uuid.UUID, request_id: str, cipher: UserCipher) -> LoggedStream | None:
    """Return a turn's log; None if it no longer exists. Raises ConnectionError if Redis is away."""
    key = _key(user_id, request_id)
    try:
        found: list[bytes] = await async_redis("chat").lrange(key, 0, -1)  # type: ignore[misc]  # redis' stubs
    except (RedisError, OSError) as error:
        raise ConnectionError("the stream log cannot be reached") from error
    frames: list[str] = []
    head: dict[str, Any] = {}
    mutations: list[dict[str, Any]] = []
    for sealed in found:
        place = int.from_bytes(sealed[:_COUNT_BYTES], "big")
        if place > len(frames):  # Redis has lost the parts before; the writer starts again
            continue
        try:
            body = unseal_from_redis(cipher, key, sealed[_COUNT_BYTES:], part=place)
        except SealBroken:
            log.error("stream_log.seal_broken")
            continue
        head = body.get("head", head)
        known, changed = body.get("mutations", (len(mutations), ()))
        mutations[known:] = changed
        frames += body["frames"][len(frames) - place :]  # a part is repeated if Redis' answer was lost
        if frames and is_end(frames[-1]):  # ignore later frames, by a process that was thought dead
            break
    if not frames and not mutations:
        return None
    return LoggedStream(frames, head, [Mutation.model_validate(mutation) for mutation in mutations])


async def append(*, user_id: uuid.UUID, request_id: str, cipher: UserCipher, frames: int, frame: str) -> None:
    """Add an end to the log of a turn whose process is gone, after `frames` frames. If done twice, the first counts."""
    key, place = _key(user_id, request_id), frames
    try:
        await async_redis("chat").rpush(key, _seal(cipher, key, place, {"frames": [frame]}))  # type: ignore[misc]
        await async_redis("chat").expire(key, LOG_TTL_S)
    except (RedisError, OSError) as error:
        log_failure("stream_log.write_failed", error, level="warning", streams=1)


def _seal(cipher: UserCipher, key: str, place: int, body: dict[str, Any]) -> bytes:
    return place.to_bytes(_COUNT_BYTES, "big") + seal_for_redis(cipher, key, body, part=place)


def _key(user_id: uuid.UUID, request_id: str) -> str:
    # Hashed, since request ids are chosen by clients.
    return f"adiuva:stream:{user_id}:{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"


_writers = PerLoop(StreamLogWriter)


def log_writer() -> StreamLogWriter:
    """Return the running event loop's writer."""
    return _writers.get()
