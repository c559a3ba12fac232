"""Adaptive limit of concurrent whole answers at one endpoint: as many as it turns out to take.

The limit grows with each answer that began soon and is halved when the endpoint times out or refuses for being busy
(additive increase, multiplicative decrease). A cloud provider soon gets all that ADIUVA_MODEL_CONCURRENCY allows, a
local server with two slots about what keeps it busy. The asking processes share one limit through Redis, in equal
parts; one round trip a second tells each its part. While Redis is away each process goes on with what it knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Final

import redis
import structlog
from django.conf import settings

from adiuva.core.fair_limit import FairLimit
from adiuva.core.logging import log_failure
from adiuva.core.redis import async_redis
from adiuva.llm import errors

# The limit at an endpoint that nobody has asked yet.
FIRST_LIMIT: Final = 4
# The maximum for all processes together.
_HIGHEST_LIMIT: Final = 1_024
_SYNC_INTERVAL_S: Final = 1.0
# An answer that begins within this share of the allowed silence leaves room for one more at a time; one that takes
# longer than the second share was close to being given up.
_SOON: Final = 1 / 8
_LATE: Final = 1 / 2

# KEYS: the endpoint's state, the processes that ask it. ARGV: id, answers that began soon, 1 if the limit must be
# halved, first limit, highest limit. Returns the limit and the number of processes. A process that has not come back
# for 10 s no longer counts. The limit is halved at most once in 5 s, since all waiting answers fail together.
_SYNC: Final = """
local now = tonumber(redis.call('TIME')[1])
local limit = tonumber(redis.call('HGET', KEYS[1], 'limit') or ARGV[4])
local halved_at = tonumber(redis.call('HGET', KEYS[1], 'halved_at') or 0)
local soon = tonumber(ARGV[2])
limit = math.min(limit + (halved_at > 0 and soon / limit or soon), tonumber(ARGV[5]))
if ARGV[3] == '1' and now - halved_at >= 5 then
    limit = math.max(1, limit / 2)
    redis.call('HSET', KEYS[1], 'halved_at', now)
end
redis.call('HSET', KEYS[1], 'limit', tostring(limit))
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 10)
redis.call('EXPIRE', KEYS[1], 3600)
redis.call('EXPIRE', KEYS[2], 3600)
return {tostring(limit), redis.call('ZCARD', KEYS[2])}
"""

log = structlog.get_logger(__name__)


class AdaptiveLimit:
    """Part of the limit at one endpoint that belongs to this event loop."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        name = hashlib.sha256(endpoint.encode()).hexdigest()[:24]
        self._keys = f"adiuva:model_limit:{{{name}}}", f"adiuva:model_limit:{{{name}}}:askers"
        self._id = secrets.token_hex(8)
        self._loop = asyncio.get_running_loop()
        self._part = float(FIRST_LIMIT)
        self._places = FairLimit(self.allowed, per_caller=self.allowed_per_caller, lends=True)
        self._soon = 0
        self._must_halve = self._was_lowered = False
        self._synced_at = -math.inf
        self._sync: asyncio.Task[None] | None = None
        self._is_redis_away = False

    @property
    def allowed(self) -> int:
        """Return how many answers may be in progress here at once."""
        return max(1, min(math.ceil(self._part), settings.MODEL_CONCURRENCY))

    @property
    def allowed_per_caller(self) -> int:
        """Return how many of those answers one caller may have. A quarter is left to other callers.

        So calls that hang keep nobody else waiting. One or two places cannot be shared: FairLimit lends one more.
        """
        left = self.allowed // 4 if self.allowed > 2 else 0
        return min(self.allowed - left, settings.MODEL_CONCURRENCY_PER_USER)

    @asynccontextmanager
    async def slot(self, caller: Hashable = None) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place, by turns with other callers, and hold it. The holder reports when the answer begins.

        An error by which the endpoint shows that it is busy lowers the limit.
        """
        if self._synced_at == -math.inf:
            await asyncio.shield(self._begin_sync())
        async with self._places.slot(caller):
            self._sync_if_due()
            asked_at, began_s = self._loop.time(), math.inf

            def began() -> None:
                nonlocal began_s
                began_s = min(began_s, self._loop.time() - asked_at)

            try:
                yield began
            except (errors.ModelTimeout, errors.ModelRateLimited, errors.ModelUnavailable):
                self._lower()
                raise
            began()
            self._count(began_s)

    def _count(self, began_s: float) -> None:
        """Learn from an answer that began after this many seconds."""
        if began_s > settings.MODEL_TIMEOUT_S * _LATE:
            self._lower()
        elif (
            began_s < settings.MODEL_TIMEOUT_S * _SOON
            and self._places.is_waited_for
            and self._part < settings.MODEL_CONCURRENCY
        ):
            self._soon += 1
            self._set_part(self._part + (1 / self._part if self._was_lowered else 1))

    async def aclose(self) -> None:
        """Stop asking, so that the others get this loop's part at once."""
        if self._sync is not None:
            self._sync.cancel()
            await asyncio.gather(self._sync, return_exceptions=True)
        if self._synced_at == -math.inf:
            return
        try:
            await async_redis("model_limits").zrem(self._keys[1], self._id)
        except (redis.RedisError, OSError, RuntimeError) as error:
            log_failure(
                "model.limit_not_shared", error, logger=log, level="warning"
            )  # it is dropped after 10 s

    def _lower(self) -> None:
        if not self._must_halve:
            self._must_halve = self._was_lowered = True
            self._set_part(self._part / 2)
            log.info("model.limit_lowered", endpoint=self._endpoint, allowed=self.allowed)

    def _sync_if_due(self) -> None:
        if self._loop.time() - self._synced_at >= _SYNC_INTERVAL_S and (
            self._sync is None or self._sync.done()
        ):
            self._begin_sync()

    def _begin_sync(self) -> asyncio.Task[None]:
        if self._sync is None or self._sync.done():
            self._sync = self._loop.create_task(self.synchronize(), name="model limit")
        return self._sync

    async def synchronize(self) -> None:
        soon, must_halve = self._soon, self._must_halve
        self._soon, self._must_halve, self._synced_at = 0, False, self._loop.time()
        values = (self._id, soon, int(must_halve), FIRST_LIMIT, _HIGHEST_LIMIT)
        try:
            reply = async_redis("model_limits").execute_command("EVAL", _SYNC, 2, *self._keys, *values)  # type: ignore[no-untyped-call]
            limit, askers = await reply
        except (redis.RedisError, OSError) as error:
            if not self._is_redis_away:
                log_failure("model.limit_not_shared", error, logger=log, level="warning")
            self._is_redis_away = True
            return
        self._is_redis_away = False
        part = float(limit) / int(askers)
        # The next round trip reports what was learnt during this one.
        part += self._soon / part if self._was_lowered else self._soon
        self._set_part(part / 2 if self._must_halve else part)

    def _set_part(self, part: float) -> None:
        self._part = max(1.0, part)
        self._places.resize(self.allowed, per_caller=self.allowed_per_caller)
