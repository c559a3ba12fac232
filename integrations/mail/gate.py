"""How many requests may be under way to one mailbox, and when the next one may go: for all its readers together.

Within a process they wait for each other here. Processes share places and times in Redis, which is asked on the event
loop itself: a run has one of its own, and an answer takes a fraction of a millisecond. While Redis is away, each
process keeps to the limit alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
import uuid
from collections import deque
from functools import cache
from typing import Any, Final
from weakref import WeakValueDictionary

import redis
import structlog
from django.conf import settings

from integrations.mail.errors import Throttled

AT_ONCE: Final = 4  # what Outlook allows an app in a mailbox; the others take it well
LONGEST_WAIT_S: Final = 60.0  # that a provider may ask of us before we tell the caller instead
_PLACE_S: Final = 90.0  # longer than any request; then the process that took a place counts as dead
_LOOK_AGAIN_S: Final = 0.03
_ALONE_S: Final = 10.0  # that Redis is left alone when it did not answer

# A place: the milliseconds to wait if it is too early, -1 if all are taken, else 0.
_TAKE: Final = """
local wait = redis.call('PTTL', KEYS[2])
if wait > 0 then return wait end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return -1 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 0
"""
_HOLD: Final = """
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], '1', 'PX', ARGV[1]) end
"""

log = structlog.get_logger("integrations.mail")


class Gate:
    """`async with gate:` holds one of the places. Readers may be on event loops of several threads."""

    def __init__(self, provider: str, mailbox: str) -> None:
        self._provider = provider
        name = hashlib.sha256(f"{provider}\n{mailbox}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._keys = f"adiuva:mailbox:{name}:places", f"adiuva:mailbox:{name}:held"
        self._lock = threading.Lock()
        self._free = AT_ONCE
        self._not_before = 0.0
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._places: deque[str] = deque()  # taken in Redis, the oldest first

    def hold(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._hold_here(seconds)
        _ask(_HOLD, self._keys[1:], int(seconds * 1000) + 1)

    async def wait(self) -> None:
        """Until the provider may be asked. Raise Throttled if that is too long to wait."""
        while (pause := self._not_before - time.monotonic()) > 0:
            if pause > LONGEST_WAIT_S:
                raise Throttled(self._provider, pause)
            await asyncio.sleep(pause)

    async def __aenter__(self) -> None:
        """Take a place, once the provider may be asked. Raise Throttled as `wait` does."""
        while True:
            await self._enter()
            if (held_ms := self._take()) == 0:
                return
            self._leave()
            if held_ms > 0:
                self._hold_here(held_ms / 1000)
            else:
                await asyncio.sleep(_LOOK_AGAIN_S * random.uniform(0.5, 1.5))

    async def __aexit__(self, *_: object) -> None:
        with self._lock:
            place = self._places.popleft() if self._places else None
        if place is not None:
            _ask("return redis.call('ZREM', KEYS[1], ARGV[1])", self._keys[:1], place)
        self._leave()

    # Among all processes

    def _take(self) -> int:
        place = uuid.uuid4().hex
        answer = _ask(_TAKE, self._keys, place, AT_ONCE, int(_PLACE_S * 1000))
        if answer == 0:
            with self._lock:
                self._places.append(place)
        return int(answer or 0)

    # Within this one

    def _hold_here(self, seconds: float) -> None:
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.wait()
            with self._lock:
                if self._free:
                    self._free -= 1
                    more = self._free > 0
                    break
                turn = loop.create_future()
                self._waiting.append((loop, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()  # the place was offered to us: to the next
                raise
        if more:
            self._wake()  # several places may have become free while all had to wait

    def _leave(self) -> None:
        with self._lock:
            self._free += 1
        self._wake()

    def _wake(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                loop, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            try:
                loop.call_soon_threadsafe(_offer, self, turn)
                return
            except RuntimeError:
                continue  # its loop has ended


def _offer(gate: Gate, turn: asyncio.Future[None]) -> None:
    if turn.done():
        gate._wake()
    else:
        turn.set_result(None)


_gates: WeakValueDictionary[tuple[str, str], Gate] = WeakValueDictionary()
_guard = threading.Lock()


def gate(provider: str, mailbox: str) -> Gate:
    """The one gate of a mailbox in this process."""
    key = provider, mailbox.casefold()  # addresses come in the spelling in which they were granted
    with _guard:
        found = _gates.get(key)
        if found is None:
            found = _gates[key] = Gate(*key)
        return found


_alone_until = 0.0


@cache
def _redis() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=1, socket_timeout=1)


def _ask(script: str, keys: tuple[str, ...], *values: Any) -> Any:
    """What a script answers; None while Redis is away."""
    global _alone_until
    if time.monotonic() < _alone_until:
        return None
    try:
        return _scripts(script)(keys=keys, args=values)
    except redis.RedisError as error:
        _alone_until = time.monotonic() + _ALONE_S
        log.warning("mail.gate_alone", error=type(error).__name__)
        return None


@cache
def _scripts(script: str) -> Any:
    return _redis().register_script(script)
