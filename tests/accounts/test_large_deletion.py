"""An account with many rows is closed at once, and deleted in short transactions by whoever goes on with it."""

from __future__ import annotations

import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from adiuva.accounts import deletion, keys, services
from adiuva.accounts.models import Deletion, User
from adiuva.core import pruning
from adiuva.core.errors import NotAuthenticated
from agents.models import Agent, Run, RunEvent
from memory import entries
from memory.entries import BY_HAND
from memory.models import Embedding, Entry, Exchange, Memory, SourceKind, Tier
from tests.agents.factories import create_agent, create_run
from tests.factories import Person, confirmed

RUNS, EVENTS, ENTRIES = 7, 5, 9


@pytest.fixture
def ada(committed_db: str, monkeypatch: pytest.MonkeyPatch) -> Person:
    monkeypatch.setattr(deletion, "MOST_AT_ONCE", 20)
    monkeypatch.setattr(deletion, "enqueue_on_commit", lambda *_, **__: None)  # no worker goes on with it
    monkeypatch.setattr(deletion, "BATCH", 3)
    monkeypatch.setattr(pruning, "BATCH", 3)
    monkeypatch.setattr(pruning, "_WHOLES", 2)
    person = confirmed()
    agent = create_agent(person.id, schedule_cron="0 7 * * *")
    for number in range(RUNS):
        run = create_run(agent, state=Run.State.SUCCESS)
        RunEvent.objects.bulk_create(RunEvent(run=run, kind="started") for _ in range(EVENTS * (number == 3)))
    create_run(agent)
    for number in range(ENTRIES):
        entries.remember(user_id=person.id, tier=Tier.ASSOCIATIVE, content=f"thing {number}", source=BY_HAND)
    Exchange.objects.create(user_id=person.id, kind=SourceKind.REQUEST, source_id=uuid.uuid4(), sealed=b"x")
    return person


def left(person: Person) -> int:
    owned = (model.objects.filter(user_id=person.id) for model in (Agent, Run, Memory, Entry, Embedding))
    return sum(rows.count() for rows in owned) + RunEvent.objects.filter(run__user_id=person.id).count()


def test_a_large_account_is_closed_at_once(ada: Person) -> None:
    services.delete_account(user=User.objects.get(pk=ada.id))
    assert Deletion.objects.filter(pk=ada.id).exists()
    with pytest.raises(NotAuthenticated):
        services.authenticate(access_token=ada.access_token)
    with pytest.raises(NotAuthenticated):
        services.login(email=ada.email, password=ada.password)
    with pytest.raises(keys.NoSuchUser):
        keys.cipher_for(ada.id)
    agent = Agent.objects.get(user_id=ada.id)
    assert (agent.enabled, agent.next_run_at) == (False, None)
    assert not Run.objects.of(ada.id).live().exists()
    assert not Exchange.objects.filter(user_id=ada.id).exists()
    services.delete_account(user=User.objects.get(pk=ada.id))  # again: nothing more happens
    again = services.register(email=ada.email, password=ada.password)  # the address is free
    other = services.authenticate(access_token=again.access_token).user_id
    User.objects.filter(pk=other).update(email_verified_at=User.objects.get(pk=other).created_at)
    assert other != ada.id


def test_its_rows_go_in_short_transactions_and_whoever_comes_goes_on(
    ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.delete_account(user=User.objects.get(pk=ada.id))
    before = left(ada)
    monkeypatch.setattr(deletion, "_TURN_S", -1.0)
    deletion.resume(ada.id)
    assert 0 < left(ada) < before
    held = Deletion.objects.get(pk=ada.id)
    assert held.lease_until is None
    monkeypatch.setattr(deletion, "_TURN_S", 60.0)
    with CaptureQueriesContext(connection) as queries:
        deletion.resume(ada.id)
    assert left(ada) == 0
    assert not User.objects.filter(pk=ada.id).exists()
    assert not Deletion.objects.filter(pk=ada.id).exists()
    assert len([query for query in queries if query["sql"] == "COMMIT"]) > (RUNS + ENTRIES) / 3
    deletion.resume(ada.id)  # late: there is nothing to do


def test_what_holds_few_rows_goes_in_one_transaction(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "MOST_AT_ONCE", 1_000)
    services.delete_account(user=User.objects.get(pk=ada.id))
    assert left(ada) == 0
    assert not User.objects.filter(pk=ada.id).exists()


def test_an_interrupted_deletion_is_found(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[uuid.UUID] = []
    monkeypatch.setattr(deletion, "enqueue_on_commit", lambda _, user_id, **__: found.append(user_id))
    services.delete_account(user=User.objects.get(pk=ada.id))
    found.clear()
    deletion.sweep()
    assert ada.id in found
    deletion.resume(ada.id)
    assert left(ada) == 0
