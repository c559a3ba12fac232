"""The rate limit of one process, against what its rule says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.core.rate_limit import Limit, LocalLimiter

SECOND = 1_000_000


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(1, 10), st.lists(st.integers(0, 3 * SECOND), max_size=60))
def test_no_window_lets_more_through_than_the_burst_and_its_share(
    allowed: int, burst: int, pauses: list[int]
) -> None:
    limit, limiter = Limit("a", allowed, 10, burst), LocalLimiter()
    now, passed = 0, []
    for pause in pauses:
        now += pause
        verdict = limiter.take([limit], now_us=now)[0]
        if not verdict.wait_s:
            passed.append(now)
        else:
            assert limiter.take([limit], now_us=now + int(verdict.wait_s * SECOND) - 1)[0].wait_s > 0
    for index, start in enumerate(passed):
        for count, end in enumerate(passed[index:], 1):
            assert count <= burst + (end - start) // limit.times_us[0]


def test_after_the_wait_exactly_one_passes() -> None:
    limit, limiter = Limit("a", 60, 60, 3), LocalLimiter()
    assert [limiter.take([limit], now_us=0)[0].remaining for _ in range(3)] == [2, 1, 0]
    refused = limiter.take([limit], now_us=0)[0]
    assert refused.wait_s == 1
    assert limiter.take([limit], now_us=SECOND)[0].wait_s == 0
    assert limiter.take([limit], now_us=SECOND)[0].wait_s == 1
