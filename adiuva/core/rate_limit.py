"""Rate limits over all processes, kept in Redis, by the generic cell rate algorithm (GCRA).

A limit of 10 in 60 s lets 10 through at once and then one every 6 s. Redis keeps one number for each key: the time when
its allowance will be whole again. One script reads and writes it, so that simultaneous requests at several processes
are all counted, and a request costs one round trip however many limits it has. The time is that of Redis, because a
machine with a clock that is ahead would close the limit for all others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from adiuva.core.redis import Purpose
from adiuva.core.redis_script import RedisScript

# Times are whole microseconds, which Lua's numbers hold exactly until the year 2255. A time further ahead than the
# allowance can reach is cut: Redis's own clock was put back, or the limit was changed.
_TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
for index, key in ipairs(KEYS) do
    local interval, allowance = tonumber(ARGV[2 * index - 1]), tonumber(ARGV[2 * index])
    local whole_at = tonumber(redis.call('GET', key) or now) or now
    whole_at = math.max(now, math.min(whole_at, now + allowance))
    local wait = whole_at + interval - now - allowance
    if wait <= 0 then
        whole_at = whole_at + interval
        redis.call('SET', key, string.format('%.0f', whole_at), 'PX', math.ceil((whole_at - now) / 1000))
    end
    answers[2 * index - 1], answers[2 * index] = math.max(wait, 0), whole_at - now
end
return answers
"""
_MICRO: Final = 1_000_000


class Limit(NamedTuple):
    """Limit on uses of `key` in a period. `burst`: how many at once; without it, as many as in a period."""

    key: str
    allowed: int
    period_s: int
    burst: int = 0

    @property
    def times_us(self) -> tuple[int, int]:
        """Return the time until the next one may pass, and the time until the whole allowance is back."""
        interval = max(1, self.period_s * _MICRO // max(1, self.allowed))
        return interval, interval * (self.burst or self.allowed)


class Verdict(NamedTuple):
    """Outcome of a request. `wait_s`: seconds until one may pass; 0 if this one did. `remaining`: how many may pass
    now. `whole_in_s`: seconds until the whole allowance is back."""

    wait_s: float
    remaining: int
    whole_in_s: float


class Limiter:
    """Limits in Redis, over the connections of one purpose."""

    def __init__(self, purpose: Purpose) -> None:
        self._script = RedisScript(purpose, _TAKE)

    def take(self, limits: Sequence[Limit]) -> list[Verdict]:
        """Count one use against each limit that allows it; a refused use is not counted. Raises redis.RedisError."""
        keys: list[str] = []
        numbers: tuple[int, ...] = ()
        for limit in limits:
            keys.append(f"adiuva:rate:{limit.key}")
            numbers += limit.times_us
        answers = self._script(keys, numbers)
        return [
            _verdict(limit, answers[2 * index], answers[2 * index + 1]) for index, limit in enumerate(limits)
        ]


def _verdict(limit: Limit, wait_us: int, used_us: int) -> Verdict:
    interval, allowance = limit.times_us
    return Verdict(wait_us / _MICRO, max(0, (allowance - used_us) // interval), used_us / _MICRO)


class LocalLimiter:
    """Limiter of this process alone, for work that must continue while Redis is unavailable."""

    _MOST_KEYS: Final = 10_000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whole_at: dict[str, int] = {}

    def take(self, limits: Sequence[Limit], *, now_us: int | None = None) -> list[Verdict]:
        now = time.monotonic_ns() // 1000 if now_us is None else now_us
        with self._lock:
            if len(self._whole_at) > self._MOST_KEYS:
                self._whole_at = {key: at for key, at in self._whole_at.items() if at > now}
            return [self._take(limit, now) for limit in limits]

    def _take(self, limit: Limit, now: int) -> Verdict:
        interval, allowance = limit.times_us
        whole_at = max(now, min(self._whole_at.get(limit.key, now), now + allowance))
        wait = whole_at + interval - now - allowance
        if wait <= 0:
            whole_at += interval
            self._whole_at[limit.key] = whole_at
        return _verdict(limit, max(wait, 0), whole_at - now)


_sign_ins: Final = Limiter("rate_limits")


def take(*limits: Limit) -> float | None:
    """Count one use. Returns None if all of these limits allow it, or else the seconds until the next one may pass.

    Each limit that allows it counts it, even if another refuses. Raises redis.RedisError.
    """
    longest = max(verdict.wait_s for verdict in _sign_ins.take(limits))
    return longest or None
