"""Prices of calls and starts of months: whole numbers, rounded up, and midnights of the user's zone."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pytest_django import Settings

from adiuva.embedded.stack import with_offline_price
from adiuva.llm import prices
from adiuva.llm.metering import ModelUse
from adiuva.llm.types import Usage
from billing.months import month_of
from tests.sampling import fewer

ROME = ZoneInfo("Europe/Rome")
COUNTS = st.integers(0, 10**7)


def test_a_listed_model_has_the_lists_price() -> None:
    price = prices.price_of("openai/gpt-4.1-mini")
    assert price is not None
    assert price.cost_micro(Usage(1_000_000, 0)) == 400_000
    assert price.cost_micro(Usage(0, 1_000_000)) == 1_600_000
    assert price.cost_micro(Usage(1_000_000, 0, cached_tokens=1_000_000)) == 100_000
    assert prices.price_of("anthropic/claude-sonnet-4-5").cost_micro(  # type: ignore[union-attr]
        Usage(100_000, 0, written_tokens=100_000)
    ) == 375_000  # fmt: skip


def test_a_long_call_has_the_price_for_long_calls() -> None:
    price = prices.price_of("gemini/gemini-2.5-pro")
    assert price is not None
    assert price.cost_micro(Usage(200_000, 0)) == 250_000
    assert price.cost_micro(Usage(200_004, 1_000)) == 500_010 + 15_000


def test_what_is_configured_comes_before_the_list(settings: Settings) -> None:
    settings.MODEL_PRICE = "1,2; openai/qwen3=0,0; openai/other=0.5, 1.5, 0.05"
    assert prices.price_of("openai/gpt-4.1-mini").cost_micro(Usage(10**6, 10**6)) == 3_000_000  # type: ignore[union-attr]
    assert prices.price_of("openai/qwen3").cost_micro(Usage(10**6, 10**6)) == 0  # type: ignore[union-attr]
    other = prices.price_of("openai/other")
    assert other is not None and other.cost_micro(Usage(10**6, 0, cached_tokens=10**6)) == 50_000
    # A price for any model is one for chats.
    assert prices.price_of("openai/text-embedding-3-small", is_chat=False).cost_micro(Usage(10**6)) == 20_000  # type: ignore[union-attr]


def test_a_model_that_nobody_lists_has_no_price(settings: Settings) -> None:
    settings.MODEL_PRICE = ""
    assert prices.price_of("openai/qwen3-of-our-own") is None
    use = ModelUse("openai/qwen3-of-our-own")
    use.add(Usage(5, 5), None, is_estimated=False)
    assert (use.cost_micro, use.unpriced_calls) == (0, 1)


def test_the_currency_has_its_rate(settings: Settings) -> None:
    settings.BUDGET_RATE = "0.9"
    assert prices.price_of("openai/gpt-4.1-mini").cost_micro(Usage(10**6)) == 360_000  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["1", "1,2,3,4", "a,b", "-1,2", "=1,2", "nan,1", "1,2;x"])
def test_a_price_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"price|must be|names"):
        prices.configured_prices(text)


@examples(max_examples=fewer(100), deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_a_call_never_costs_more_than_what_was_said_at_most(
    total: int, cached: int, written: int, output: int
) -> None:
    price = prices.price_of("anthropic/claude-sonnet-4-5")
    assert price is not None
    usage = Usage(total, output, cached_tokens=cached, written_tokens=written)
    assert 0 <= price.cost_micro(usage) <= price.most_micro(total, output)


@pytest.mark.parametrize(
    ("now", "day", "starts", "ends"),
    [
        ("2026-11-30T23:30+01:00", 1, "2026-11-01T00:00+01:00", "2026-12-01T00:00+01:00"),
        ("2026-11-30T23:30+00:00", 1, "2026-12-01T00:00+01:00", "2027-01-01T00:00+01:00"),
        ("2026-02-28T12:00+01:00", 31, "2026-02-28T00:00+01:00", "2026-03-31T00:00+02:00"),
        ("2026-02-27T12:00+01:00", 31, "2026-01-31T00:00+01:00", "2026-02-28T00:00+01:00"),
        ("2026-01-05T12:00+01:00", 31, "2025-12-31T00:00+01:00", "2026-01-31T00:00+01:00"),
    ],
)
def test_a_month_begins_at_midnight_of_the_users_zone(now: str, day: int, starts: str, ends: str) -> None:
    window = month_of(dt.datetime.fromisoformat(now), ROME, day)
    assert window.starts_at == dt.datetime.fromisoformat(starts)
    assert window.ends_at == dt.datetime.fromisoformat(ends)


@examples(max_examples=fewer(100), deadline=None)
@given(st.integers(0, 20 * 365 * 24 * 3_600), st.integers(1, 31))
def test_months_follow_each_other_without_a_gap(seconds: int, day: int) -> None:
    moment = dt.datetime(2020, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
    window = month_of(moment, ROME, day)
    assert window.starts_at <= moment < window.ends_at
    assert month_of(window.ends_at, ROME, day).starts_at == window.ends_at
    assert month_of(window.starts_at - dt.timedelta(seconds=1), ROME, day).ends_at == window.starts_at


@pytest.mark.parametrize(
    "set_to", ["", "gpt-x=0.4,1.6;", "openai/adiuva-offline=1,2", "1,2", "gpt-x=1,2; 3,4"]
)
def test_make_run_gives_the_offline_llm_a_price_and_keeps_what_was_set(set_to: str) -> None:
    before, after = (prices.configured_prices(each) for each in (set_to, with_offline_price(set_to)))
    named = before.get("openai/adiuva-offline") or before.get("")
    assert {name: after[name] for name in before} == before
    offline = after.get("openai/adiuva-offline") or after[""]
    assert offline == (named or prices.Price(prices.Rates(0, 0, 0, 0)))
