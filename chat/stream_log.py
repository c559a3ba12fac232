"""The stream log: what a turn has said, sealed, in Redis, for ten minutes after its last word.

While a turn runs, its process has all of it in memory and answers for it; the log is for what comes after, and for
turns whose process was killed. It is written for all turns of a process together, once in a while and when one ends,
and never in the way of a token.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import orjson
from django.conf import settings
from redis.asyncio import Redis
from redis.exceptions import RedisError

from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.logging import log
from adiuva.devices.protocol import Mutation
from chat.stream import Stream

LOG_TTL_S: Final = 600
_EVERY_S: Final = 0.5
_TRIES: Final = 60  # at the end of a turn, before its log is given up
_NUMBER: Final = 4  # bytes in front of a part: how many frames came before it


class LogPart(NamedTuple):
    """What is new, sealed, and how many entries, frames and mutations are written once it is."""

    sealed: bytes
    written: int
    frames: int
    mutations: int


def is_end(text: str) -> bool:
    """Whether a frame is the last of its stream, by its text: quotes inside of one are escaped."""
    return '"type":"stream_end"' in text


class StreamRecording:
    """One turn's stream on its way into the log. `head` is what the turn was asked, kept with the first part;
    `mutations` gives what it has changed so far, kept as it happens: its end, which tells of it, may never come."""

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

    def part(self) -> LogPart | None:
        """What is new; None when there is nothing."""
        new = self.stream.entries[self._written :]
        changed = () if self.stream.ended else self._changes()[self._mutations :]
        if not new and not changed:
            return None
        frames = [entry.text for entry in new if not entry.asks]
        body: dict[str, Any] = {"frames": frames}
        if not self._written:
            body["head"] = self.head
        if changed:
            body["mutations"] = [self._mutations, [mutation.model_dump() for mutation in changed]]
        sealed = _seal(self.cipher, self.key, self._frames, body)
        return LogPart(
            sealed, self._written + len(new), self._frames + len(frames), self._mutations + len(changed)
        )

    def wrote(self, part: LogPart, parts: int) -> None:
        """The log has so many parts now. When those before are gone from it, all is written again."""
        if parts <= self._parts:
            self.begin_anew()
        else:
            self._written, self._frames, self._mutations = part.written, part.frames, part.mutations
            self._parts = parts

    def begin_anew(self) -> None:
        """It is not known what the log has."""
        self._written = self._frames = self._mutations = self._parts = 0

    @property
    def is_whole(self) -> bool:
        return self.stream.ended and self._written == len(self.stream.entries)


class _Redis(Redis):
    """redis-py 7.4 swallows a cancel that comes while it waits for an answer. A turn that is cancelled just then, or at
    its deadline, would go on; so the wait is cancelled, and the command is not."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await asyncio.shield(super().execute_command(*args, **options))  # type: ignore[no-untyped-call]


class StreamLogWriter:
    """Writes the recordings of one event loop."""

    def __init__(self) -> None:
        self.redis: Redis = _Redis.from_url(settings.REDIS_URL, socket_timeout=3, socket_connect_timeout=3)
        self._recordings: set[StreamRecording] = set()
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, recording: StreamRecording) -> None:
        self._recordings.add(recording)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="stream log")

    def hurry(self) -> None:
        """A turn has ended: write now."""
        self._ended.set()

    async def flush(self) -> None:
        """Until all is written of the turns that there are, which have ended."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        while self._recordings:
            try:
                async with asyncio.timeout(_EVERY_S):
                    await self._ended.wait()
            except TimeoutError:
                pass
            self._ended.clear()
            await self._write()

    async def _write(self) -> None:
        parts = [(recording, part) for recording in self._recordings if (part := recording.part())]
        try:
            if parts:
                async with self.redis.pipeline(transaction=False) as pipeline:
                    for recording, part in parts:
                        pipeline.rpush(recording.key, part.sealed)
                        pipeline.expire(recording.key, LOG_TTL_S)
                    answers = await pipeline.execute()
        except (RedisError, OSError) as error:
            log.warning("chat.log_not_written", streams=len(parts), error=type(error).__name__)
            for recording, _ in parts:
                recording.begin_anew()
                self._count_try(recording)
            return
        for place, (recording, part) in enumerate(parts):
            recording.wrote(part, parts=answers[2 * place])
        for recording in [recording for recording in self._recordings if recording.is_whole]:
            self._recordings.discard(recording)
            recording.saved()
        if any(recording.stream.ended for recording in self._recordings):
            self._ended.set()

    def _count_try(self, recording: StreamRecording) -> None:
        if recording.stream.ended:
            recording.tries += 1
            if recording.tries >= _TRIES:
                self._recordings.discard(recording)
                recording.saved()


class LoggedStream(NamedTuple):
    """What the log has of a turn: the frames' texts in order, what was asked, and what it changed before its end."""

    frames: list[str]
    head: dict[str, Any]
    mutations: list[Mutation]


async def read(*, user_id: uuid.UUID, request_id: str, cipher: UserCipher) -> LoggedStream | None:
    """None when it is gone, or never was. Raise ConnectionError when Redis is away."""
    key = _key(user_id, request_id)
    try:
        found: list[bytes] = await log_writer().redis.lrange(key, 0, -1)  # type: ignore[misc]  # redis' stubs
    except (RedisError, OSError) as error:
        raise ConnectionError("the stream log cannot be reached") from error
    frames: list[str] = []
    head: dict[str, Any] = {}
    mutations: list[dict[str, Any]] = []
    for sealed in found:
        place = int.from_bytes(sealed[:_NUMBER], "big")
        if place > len(frames):  # Redis has forgotten what came before; it comes again
            continue
        try:
            body = orjson.loads(cipher.unseal(sealed[_NUMBER:], "stream", key, str(place)))
        except SealBroken:
            log.error("chat.log_seal_broken")
            continue
        head = body.get("head", head)
        known, changed = body.get("mutations", (len(mutations), ()))
        mutations[known:] = changed
        frames += body["frames"][len(frames) - place :]  # written twice when an answer of Redis was lost
        if frames and is_end(frames[-1]):  # what a process still says that was thought dead does not count
            break
    if not frames and not mutations:
        return None
    return LoggedStream(frames, head, [Mutation.model_validate(mutation) for mutation in mutations])


async def append(*, user_id: uuid.UUID, request_id: str, cipher: UserCipher, frames: int, frame: str) -> None:
    """Add an end to the log of a turn whose process is gone, behind so many frames. Done twice, the first counts."""
    key, place = _key(user_id, request_id), frames
    try:
        await log_writer().redis.rpush(key, _seal(cipher, key, place, {"frames": [frame]}))  # type: ignore[misc]
        await log_writer().redis.expire(key, LOG_TTL_S)
    except (RedisError, OSError) as error:
        log.warning("chat.log_not_written", streams=1, error=type(error).__name__)


def _seal(cipher: UserCipher, key: str, place: int, body: dict[str, Any]) -> bytes:
    return place.to_bytes(_NUMBER, "big") + cipher.seal(
        orjson.dumps(body).decode(), "stream", key, str(place)
    )


def _key(user_id: uuid.UUID, request_id: str) -> str:
    # Hashed, since a client may call its requests what it likes.
    return f"adiuva:stream:{user_id}:{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"


_recorders: WeakKeyDictionary[asyncio.AbstractEventLoop, StreamLogWriter] = WeakKeyDictionary()


def log_writer() -> StreamLogWriter:
    """The one of the running loop."""
    loop = asyncio.get_running_loop()
    found = _recorders.get(loop)
    if found is None:
        found = _recorders[loop] = StreamLogWriter()
    return found
