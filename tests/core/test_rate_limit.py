"""Rate limits in Redis."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import redis

from adiuva.core import rate_limit
from adiuva.core.rate_limit import Limit, Limiter
from adiuva.core.redis import sync_redis

HOUR = 3600


@pytest.fixture
def key() -> str:
    return f"test:{uuid4().hex}"


def let_pass(key: str, seconds: float) -> None:
    """As if this time had passed for the key."""
    sync_redis("rate_limits").decrby(f"adiuva:rate:{key}", int(seconds * 1_000_000))


def taken(key: str, times: int, *, limit: int) -> int:
    return sum(rate_limit.take(Limit(key, limit, HOUR)) is None for _ in range(times))


def test_exactly_the_limit_passes_when_fifty_threads_come_at_once(key: str) -> None:
    with ThreadPoolExecutor(50) as threads:
        passed = sum(threads.map(lambda _: taken(key, 20, limit=60), range(50)))
    assert passed == 60


def test_after_the_limit_one_passes_for_each_share_of_the_period(key: str) -> None:
    assert taken(key, 20, limit=12) == 12
    for _ in range(3):
        wait = rate_limit.take(Limit(key, 12, HOUR))
        assert wait is not None and 200 < wait <= 300
        let_pass(key, wait)
        assert taken(key, 3, limit=12) == 1
    let_pass(key, HOUR)
    assert taken(key, 20, limit=12) == 12


def test_what_is_refused_makes_the_wait_no_longer(key: str) -> None:
    taken(key, 5, limit=5)
    first = rate_limit.take(Limit(key, 5, HOUR))
    taken(key, 100, limit=5)
    last = rate_limit.take(Limit(key, 5, HOUR))
    assert first is not None and last is not None and last <= first


@pytest.mark.parametrize("planted", ["9000000000000000", "not a number", "-1"])
def test_a_key_with_nonsense_blocks_nobody_for_longer_than_the_period(key: str, planted: str) -> None:
    sync_redis("rate_limits").set(f"adiuva:rate:{key}", planted, ex=60)
    wait = rate_limit.take(Limit(key, 5, HOUR))
    assert wait is None or wait <= HOUR / 5


def test_a_key_is_kept_no_longer_than_it_is_needed(key: str) -> None:
    rate_limit.take(Limit(key, 10, HOUR))
    assert 300_000 < sync_redis("rate_limits").pttl(f"adiuva:rate:{key}") <= 360_000


def test_any_number_of_limits_is_one_command_also_after_redis_forgot_the_script(key: str) -> None:
    client = sync_redis("rate_limits")
    client.script_flush()
    assert taken(key, 1, limit=3) == 1
    client.config_resetstat()
    both = [Limit(key, 3, HOUR), Limit(f"{key}:other", 100, HOUR)]
    assert sum(rate_limit.take(*both) is None for _ in range(5)) == 2
    stats: dict[str, Any] = client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 5
    assert "cmdstat_eval" not in stats and "cmdstat_script|load" not in stats


def test_a_verdict_says_what_is_left_and_when_all_of_it_is_back(key: str) -> None:
    limiter = Limiter("rate_limits")
    first, second, third = (limiter.take([Limit(key, 60, 60, burst=2)])[0] for _ in range(3))
    assert (first.wait_s, first.remaining, round(first.whole_in_s)) == (0, 1, 1)
    assert (second.wait_s, second.remaining, round(second.whole_in_s)) == (0, 0, 2)
    assert 0.5 < third.wait_s <= 1 and third.remaining == 0


def test_a_connection_that_the_server_ended_is_replaced(key: str) -> None:
    assert taken(key, 2, limit=9) == 2
    sync_redis("heartbeat").client_kill_filter(_type="normal", skipme=True)
    assert taken(key, 2, limit=9) == 2


def test_without_redis_nothing_passes(key: str, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    with pytest.raises(redis.RedisError):
        rate_limit.take(Limit(key, 5, HOUR))
