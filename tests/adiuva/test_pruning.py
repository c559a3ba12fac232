"""Pruning of expired rows: found by an index, and deleted a few at a time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.sessions.models import Session as Cookie
from django.db import connection, models
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from adiuva.accounts import browser_sessions
from adiuva.accounts import services as accounts
from adiuva.accounts.models import Session, SessionChange
from adiuva.core import pruning
from adiuva.devices.models import OutboxRecord
from agents import runs
from agents.journeys import services as journeys
from agents.models import JourneySession, Run
from billing import budget_sweep, usage
from billing.models import Allowance, Use
from billing.payments import webhooks
from billing.payments.models import Event
from billing.sso import events, signing_in
from billing.sso.models import SignIn, SsoEvent
from chat import lost_turns
from chat.models import Turn
from integrations import connections
from integrations.models import Consent, Provider
from memory import retention
from memory.models import Receipt
from tests.factories import somebody

pytestmark = pytest.mark.usefixtures("db")

LONG_AGO = timezone.now() - dt.timedelta(days=4_000)


def old_cookies() -> list[Any]:
    return [Cookie(session_key=uuid4().hex, session_data="", expire_date=LONG_AGO) for _ in range(5)]


def old_consents() -> list[Any]:
    return [
        Consent(
            user_id=somebody().id,
            provider=Provider.values[0],
            state_hash=uuid4().bytes,
            redirect_uri="https://example.com",
            verifier=b"sealed",
            expires_at=LONG_AGO,
        )
        for _ in range(5)
    ]


def old_journeys() -> list[Any]:
    return [JourneySession(user_id=somebody().id, state=b"sealed", expires_at=LONG_AGO) for _ in range(5)]


@pytest.mark.parametrize(
    ("old", "delete"),
    [
        (old_cookies, browser_sessions.delete_expired),
        (old_consents, connections.sweep),
        (old_journeys, journeys.delete_expired),
    ],
)
def test_what_is_over_is_deleted_in_short_transactions(
    old: Callable[[], list[Any]], delete: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = old()
    model = type(rows[0])
    model._default_manager.bulk_create(rows)
    monkeypatch.setattr(pruning, "BATCH", 2)
    with CaptureQueriesContext(connection) as queries:
        delete()
    deletes = [
        each["sql"] for each in queries if each["sql"].startswith(f'DELETE FROM "{model._meta.db_table}"')
    ]
    assert len(deletes) >= 3
    assert not model._default_manager.filter(pk__in=[row.pk for row in rows]).exists()


@pytest.mark.parametrize(
    ("model", "delete"),
    [
        (Cookie, browser_sessions.delete_expired),
        (Session, accounts.delete_old_sessions),
        (SessionChange, accounts.delete_old_sessions),
        (Consent, connections.sweep),
        (JourneySession, journeys.delete_expired),
        (SignIn, signing_in.forget_old),
        (SsoEvent, events.forget_old),
        (Use, usage.delete_old),
        (Allowance, budget_sweep.delete_old),
        (Event, webhooks.forget_old),
        (Turn, lost_turns.delete_old_turns),
        (Receipt, retention.delete_expired_receipts),
    ],
)
def test_what_is_over_is_found_by_an_index_however_much_is_kept(
    model: type[models.Model], delete: Callable[[], Any]
) -> None:
    with CaptureQueriesContext(connection) as queries:
        delete()
    table = f'FROM "{model._meta.db_table}"'
    found = [each["sql"] for each in queries if table in each["sql"] and "LIMIT 1000" in each["sql"]]
    assert found
    with connection.cursor() as cursor:
        for way in ("seqscan", "bitmapscan", "sort"):
            cursor.execute(f"SET LOCAL enable_{way} = off")
        for statement in found:
            cursor.execute(f"EXPLAIN {statement}")
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert "Index Cond" in plan and "Sort" not in plan, plan


def test_a_sweep_of_runs_asks_for_all_there_is_to_repair_by_one_statement() -> None:
    Run.objects.update(state=Run.State.SUCCESS, undelivered=False)  # what other tests left
    OutboxRecord.objects.waiting().delete()
    with CaptureQueriesContext(connection) as queries:
        assert not any(runs.sweep().values())
    assert len(queries) == 1, [each["sql"] for each in queries]
