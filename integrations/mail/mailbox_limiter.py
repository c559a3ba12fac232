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
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final
from weakref import WeakValueDictionary

import redis
import structlog

from adiuva.core.redis import sync_redis
from integrations.mail.errors import ProviderThrottled

MAX_CONCURRENT_REQUESTS: Final = 4  # what Outlook allows an app in a mailbox; the others take it well
MAX_WAIT_S: Final = 60.0  # that a provider may ask of us before we tell the caller instead
_PERMIT_TTL_S: Final = (
    12.0  # that a place is taken for, unless it is renewed: so long a process that was killed blocks it
)
_RENEW_S: Final = 4.0
_POLL_S: Final = 0.03
_REDIS_RETRY_S: Final = 10.0  # that Redis is left alone when it did not answer

# A place: the milliseconds to wait if it is too early, -1 if all are taken, else 0.
_ACQUIRE: Final = """
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
_RENEW: Final = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE: Final = "redis.call('ZREM', KEYS[1], ARGV[1])"
_BLOCK: Final = """
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], '1', 'PX', ARGV[1]) end
"""

log = structlog.get_logger("integrations.mail")


class MailboxLimiter:
    """`async with gate.permit():` holds one of the places. Readers may be on event loops of several threads."""

    def __init__(self, provider: str, mailbox: str) -> None:
        self._provider = provider
        name = hashlib.sha256(f"{provider}\n{mailbox}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._keys = f"adiuva:mailbox:{name}:places", f"adiuva:mailbox:{name}:held"
        self._lock = threading.Lock()
        self._free = MAX_CONCURRENT_REQUESTS
        self._not_before = 0.0
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    def block(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._block_locally(seconds)
        _run_script(_BLOCK, self._keys[1:], int(seconds * 1000) + 1)

    async def wait(self) -> None:
        """Until the provider may be asked. Raise ProviderThrottled if that is too long to wait."""
        while (pause := self._not_before - time.monotonic()) > 0:
            if pause > MAX_WAIT_S:
                raise ProviderThrottled(self._provider, pause)
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def permit(self) -> AsyncGenerator[None]:
        """One of the places, once the provider may be asked. Raise ProviderThrottled as `wait` does."""
        name = await self._acquire()
        renewing = asyncio.create_task(self._renew(name)) if name else None
        try:
            yield
        finally:
            if renewing is not None:
                renewing.cancel()
                _run_script(_RELEASE, self._keys[:1], name)
            self._leave_process_queue()

    # Among all processes

    async def _acquire(self) -> str:
        """What a place is called in Redis; empty while that is away."""
        while True:
            await self._enter_process_queue()
            name = uuid.uuid4().hex
            answer = _run_script(
                _ACQUIRE, self._keys, name, MAX_CONCURRENT_REQUESTS, int(_PERMIT_TTL_S * 1000)
            )
            if answer is None:
                return ""
            if answer == 0:
                return name
            self._leave_process_queue()
            if answer > 0:
                self._block_locally(answer / 1000)
            else:
                await asyncio.sleep(_POLL_S * random.uniform(0.5, 1.5))

    async def _renew(self, name: str) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            _run_script(_RENEW, self._keys[:1], name, int(_PERMIT_TTL_S * 1000))

    # Within this one

    def _block_locally(self, seconds: float) -> None:
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    async def _enter_process_queue(self) -> None:
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

    def _leave_process_queue(self) -> None:
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


def _offer(gate: MailboxLimiter, turn: asyncio.Future[None]) -> None:
    if turn.done():
        gate._wake()
    else:
        turn.set_result(None)


_limiters: WeakValueDictionary[tuple[str, str], MailboxLimiter] = WeakValueDictionary()
_lock = threading.Lock()


def limiter_of(provider: str, mailbox: str) -> MailboxLimiter:
    """The one gate of a mailbox in this process."""
    key = provider, mailbox.casefold()  # addresses come in the spelling in which they were granted
    with _lock:
        found = _limiters.get(key)
        if found is None:
            found = _limiters[key] = MailboxLimiter(*key)
        return found


_redis_down_until = 0.0


def _run_script(script: str, keys: tuple[str, ...], *values: Any) -> Any:
    """What a script answers; None while Redis is away."""
    global _redis_down_until
    if time.monotonic() < _redis_down_until:
        return None
    try:
        return _registered_script(script)(keys=keys, args=values)
    except redis.RedisError as error:
        _redis_down_until = time.monotonic() + _REDIS_RETRY_S
        log.warning("mail.gate_alone", error=type(error).__name__)
        return None


@cache
def _registered_script(script: str) -> Any:
    return sync_redis("mailbox_limiter").register_script(script)
