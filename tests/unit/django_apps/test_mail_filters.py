"""Filters of a cloud agent, and cursors: what they take, what they refuse, whom they admit."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from adiuva.core.errors import Invalid
from integrations.mail.cursor import BACKFILL, OVERLAP, Cursor, cursor_owner, sync_start
from integrations.mail.filters import Filters

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def test_days_are_the_users_and_the_last_one_is_included() -> None:
    span = {"date_range": {"from": "2026-11-10", "to": "2026-11-11"}}
    filters = Filters.parse(span, ZoneInfo("Europe/Berlin"))
    assert filters.start == dt.datetime(2026, 11, 9, 23, tzinfo=dt.UTC)
    assert filters.admits_time(dt.datetime(2026, 11, 11, 22, 59, tzinfo=dt.UTC))
    assert not filters.admits_time(dt.datetime(2026, 11, 11, 23, tzinfo=dt.UTC))
    assert not filters.admits_time(dt.datetime(2026, 11, 9, 22, tzinfo=dt.UTC))
    assert filters.admits_time(None)
    for day in ("20261111", "2026-W46-3"):  # the same in other forms
        assert Filters.parse({"date_range": {"to": day}}, ZoneInfo("Europe/Berlin")).end == filters.end
    exact = Filters.parse({"date_range": {"from": "2026-11-10T08:00:00Z"}})
    assert exact.start == dt.datetime(2026, 11, 10, 8, tzinfo=dt.UTC) and exact.end is None


@pytest.mark.parametrize(
    "config",
    [
        {"labels": "INBOX"},
        {"labels": [""]},
        {"labels": [5]},
        {"labels": ["a\r\nb"]},
        {"senders": ["x" * 201]},
        {"senders": ["a"] * 51},
        {"date_range": "today"},
        {"date_range": {"from": "yesterday"}},
        {"date_range": {"to": 5}},
        {"date_range": {"to": "9999-12-31"}},
        {"date_range": {"to": "9999-12-31T23:59:59"}},
        {"date_range": {"from": "0001-01-01"}},
        {"date_range": {"from": "2026-11-11", "to": "2026-11-10"}},
    ],
)
def test_filters_that_make_no_sense_name_the_field(config: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as raised:
        Filters.parse(config)
    assert list(raised.value.fields or {}) == [f"filter_config.{next(iter(config))}"]


@pytest.mark.parametrize(
    ("wanted", "sender", "admitted"),
    [
        ("bea@example.com", "Bea <BEA@example.com>", True),
        ("bea@example.com", "bea@example.com.evil.org", False),
        ("bea@example.com", '"bea@example.com" <x@evil.org>', False),
        ("bea@example.com", "bea@example.com <x@evil.org>", False),
        ("example.com", "<bea@example.com> <x@evil.org>", False),
        ("x@evil.org", "bea@example.com <x@evil.org>", True),
        ("example.com", "x@mail.example.com", True),
        ("@example.com", "x@example.com", True),
        ("example.com", "x@notexample.com", False),
        ("Jürgen", "=?x?= JÜRGEN Roe <j@example.com>", True),
        ("nobody", "", False),
    ],
)
def test_a_sender_is_an_address_a_domain_or_a_part_of_the_name(
    wanted: str, sender: str, admitted: bool
) -> None:
    assert Filters(senders=(wanted,)).admits_sender(sender) is admitted


def test_a_first_reading_goes_back_a_bounded_time_from_the_last_day_that_is_wanted() -> None:
    start, end = NOW - dt.timedelta(days=900), NOW - dt.timedelta(days=700)
    assert sync_start(Filters(start=start, end=end), None) == start
    assert sync_start(Filters(end=end), None) == end - BACKFILL
    for filters in (Filters(), Filters(end=timezone.now() + dt.timedelta(days=9))):
        assert abs(sync_start(filters, None) - (timezone.now() - BACKFILL)) < dt.timedelta(minutes=1)
    assert sync_start(Filters(), NOW) == NOW - OVERLAP


@given(st.text(max_size=40))
def test_only_plain_addresses_are_put_into_queries(sender: str) -> None:
    for address in Filters(senders=(sender,)).addresses():
        assert address.isascii() and not set(address) & set(" '\"(){}[]:|&?#/\\\n")
    assert Filters(senders=("a@b.c", "Jürgen")).addresses() == []


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "",
        "x",
        "[]",
        "{}",
        "5",
        '{"owner": "x", "at": 5, "state": {}}',
        '{"owner":"x","at":"2026-01-01","state":{}}',
    ],
)
def test_a_cursor_that_cannot_be_read_begins_anew(stored: str | None) -> None:
    assert Cursor.load(stored, "x", NOW) == Cursor("x", NOW, {})


def test_a_cursor_is_for_one_account_and_its_filters() -> None:
    own = cursor_owner("Gmail", "ann", Filters())
    stored = Cursor(own, NOW, {"history": "7"}).dump()
    assert Cursor.load(stored, own, NOW).state == {"history": "7"}
    for other in (
        cursor_owner("Gmail", "bea", Filters()),
        cursor_owner("Outlook", "ann", Filters()),
        cursor_owner("Gmail", "ann", Filters(labels=("x",))),
        cursor_owner("Gmail", "ann", Filters(start=NOW)),
    ):
        assert Cursor.load(stored, other, NOW).state == {}
