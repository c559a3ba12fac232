"""Limits concurrent requests to one mailbox, and keeps the pauses that its provider demands, across all processes.

Within a process, requests queue for permits here. Processes share permits and pauses in Redis. While Redis is down,
each process applies the limit by itself.
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
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog
from redis.exceptions import RedisError

from adiuva.core.background import BackgroundTasks
from adiuva.core.redis import async_redis
from integrations.mail.errors import ProviderThrottled

# Outlook allows an app four concurrent requests per mailbox; the other providers accept as many.
MAX_CONCURRENT_REQUESTS: Final = 4
# A longer Retry-After raises ProviderThrottled instead of waiting.
MAX_WAIT_S: Final = 60.0
# Life of a permit without renewal; also how long a killed process blocks one.
_PERMIT_TTL_S: Final = 12.0
_RENEW_S: Final = 4.0
_POLL_S: Final = 0.03
# After a failure, Redis is left alone for this time.
_REDIS_RETRY_S: Final = 10.0

# Acquires a permit: returns the milliseconds to wait if it is too early, -1 if all permits are taken, else 0.
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

log = structlog.get_logger(__name__)

_background = BackgroundTasks("mailbox_limiter.release_failed", log)


class MailboxLimiter:
    """A mailbox's permits: `async with limiter.permit():` holds one. Loops of several threads may share a limiter."""

    def __init__(self, provider: str, mailbox: str) -> None:
        self._provider = provider
        name = hashlib.sha256(f"{provider}\n{mailbox}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._keys = f"adiuva:mailbox:{name}:permits", f"adiuva:mailbox:{name}:blocked"
        self._lock = threading.Lock()
        self._free = MAX_CONCURRENT_REQUESTS
        self._not_before = 0.0
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    async def block(self, seconds: float) -> None:
        """Allow no request for this time: the provider sent a Retry-After."""
        self._block_locally(seconds)
        await _run_script(_BLOCK, self._keys[1:], int(seconds * 1000) + 1)

    async def wait(self) -> None:
        """Wait until a request is allowed. Raises ProviderThrottled if that takes longer than MAX_WAIT_S."""
        while (pause := self._not_before - time.monotonic()) > 0:
            if pause > MAX_WAIT_S:
                raise ProviderThrottled(self._provider, pause)
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def permit(self) -> AsyncGenerator[None]:
        """Hold a permit, once a request is allowed. Raises ProviderThrottled like `wait`."""
        name = await self._acquire()
        renewing = asyncio.create_task(self._renew(name)) if name else None
        try:
            yield
        finally:
            try:
                if renewing is not None:
                    renewing.cancel()
                    await asyncio.shield(self._release(name))  # a request may be cancelled twice
            finally:
                self._leave_process_queue()

    # ── Across processes ────────────────────────────────────────────────────────────────────────────────────

    async def _acquire(self) -> str:
        """Return the permit's name in Redis; empty while Redis is down."""
        while True:
            await self._enter_process_queue()
            name = uuid.uuid4().hex
            try:
                answer = await self._ask(name)
            except asyncio.CancelledError:
                self._leave_process_queue()
                raise
            if answer is None:
                return ""
            if answer == 0:
                return name
            self._leave_process_queue()
            if answer > 0:
                self._block_locally(answer / 1000)
            else:
                await asyncio.sleep(_POLL_S * random.uniform(0.5, 1.5))

    async def _ask(self, name: str) -> int | None:
        """Ask Redis for a permit. If the caller is cancelled meanwhile, give back a permit that still comes."""
        ttl_ms = int(_PERMIT_TTL_S * 1000)
        request = _background.spawn(
            _run_script(_ACQUIRE, self._keys, name, MAX_CONCURRENT_REQUESTS, ttl_ms), "ask for a permit"
        )
        try:
            answer: int | None = await asyncio.shield(request)
        except asyncio.CancelledError:
            request.add_done_callback(lambda _: self._release(name))
            raise
        return answer

    def _release(self, name: str) -> asyncio.Task[Any]:
        return _background.spawn(_run_script(_RELEASE, self._keys[:1], name), "release a permit")

    async def _renew(self, name: str) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            await _run_script(_RENEW, self._keys[:1], name, int(_PERMIT_TTL_S * 1000))

    # ── Within this process ─────────────────────────────────────────────────────────────────────────────────

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
                waiter = loop.create_future()
                self._waiting.append((loop, waiter))
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_next()  # the permit was offered to this task: pass it on
                raise
        if more:
            self._wake_next()  # several permits may have become free during a pause

    def _leave_process_queue(self) -> None:
        with self._lock:
            self._free += 1
        self._wake_next()

    def _wake_next(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                loop, waiter = self._waiting.popleft()
            if waiter.cancelled():
                continue
            try:
                loop.call_soon_threadsafe(_offer, self, waiter)
                return
            except RuntimeError:
                continue  # the waiter's loop is closed


def _offer(limiter: MailboxLimiter, waiter: asyncio.Future[None]) -> None:
    if waiter.done():
        limiter._wake_next()
    else:
        waiter.set_result(None)


_limiters: WeakValueDictionary[tuple[str, str], MailboxLimiter] = WeakValueDictionary()
_lock = threading.Lock()


def limiter_of(provider: str, mailbox: str) -> MailboxLimiter:
    """Return this process's limiter of a mailbox."""
    key = provider, mailbox.casefold()  # the spelling of an address may change with each consent
    with _lock:
        found = _limiters.get(key)
        if found is None:
            found = _limiters[key] = MailboxLimiter(*key)
        return found


_redis_down_until = 0.0


async def _run_script(script: str, keys: tuple[str, ...], *values: Any) -> Any:
    """Return the result of a script; None while Redis is down."""
    global _redis_down_until
    if time.monotonic() < _redis_down_until:
        return None
    try:
        return await async_redis("mailbox_limiter").register_script(script)(keys=keys, args=values)
    except (RedisError, OSError) as error:
        _redis_down_until = time.monotonic() + _REDIS_RETRY_S
        log.warning("mailbox_limiter.redis_failed", error=type(error).__name__)
        return None
