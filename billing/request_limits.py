"""Rate limits of plans: requests over REST and over the socket share one count.

Frames that answer the server (tool results, approvals, pongs) and requests that end work (cancel) never count. While
Redis is away each process counts alone, so nobody is refused for that and nobody gets more than a few times their
share.
"""

from __future__ import annotations

import time
from typing import Final
from uuid import UUID

import redis
from django.conf import settings

from adiuva.core.errors import AdiuvaError, Text
from adiuva.core.logging import log_failure
from adiuva.core.rate_limit import Limit, Limiter, LocalLimiter, Verdict
from billing import plans

# If Redis did not answer, it is left alone for this time: each request would wait for its timeout.
_PAUSE_S: Final = 2.0

_shared: Final = Limiter("request_limits")
_local: Final = LocalLimiter()
_redis_away_until = 0.0


class Throttled(AdiuvaError):
    """The user has made as many requests as their plan allows for now."""

    code, status = "throttled", 429

    def __init__(self, wait_s: float) -> None:
        seconds = max(1, -int(-wait_s // 1))
        super().__init__(
            Text(
                "your plan allows no more requests for now: the next is possible in {seconds} s",
                seconds=seconds,
            ),
            retry_after_s=seconds,
        )


def take(user_id: UUID, tier: str) -> tuple[Limit, Verdict]:
    """Count a request of a user. The verdict says whether it may pass."""
    global _redis_away_until
    plan = plans.plan_of(tier)
    limit = Limit(f"user:{user_id}", plan.requests_per_minute, 60, plan.burst)
    if time.monotonic() >= _redis_away_until:
        try:
            return limit, _shared.take([limit])[0]
        except redis.RedisError as error:
            _redis_away_until = time.monotonic() + _PAUSE_S
            log_failure("request.counted_locally", error, level="warning")
    return limit, _local.take([limit])[0]


def require(user_id: UUID, tier: str) -> None:
    """Count a request of a user. Raises Throttled if it may not pass; does nothing without plans."""
    if settings.PLANS and (wait_s := take(user_id, tier)[1].wait_s):
        raise Throttled(wait_s)
