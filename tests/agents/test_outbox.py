"""Records wait a month for their device, then they expire for all to see."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING

import pytest
from django.utils import timezone

from adiuva.devices import outbox
from adiuva.devices.models import OutboxRecord
from agents import journal, lease, runs, services
from agents.lease import Job
from agents.models import Agent, Run
from tests.agents.factories import a_device, a_run, an_agent, answered, claimed, kept, settle
from tests.agents.test_rest import API, client_of
from tests.factories import Person, somebody

if TYPE_CHECKING:
    from rest_framework.test import APIClient

State = OutboxRecord.State


@pytest.fixture
def ada(db: None) -> Person:
    return somebody()


@pytest.fixture
def rest(ada: Person) -> APIClient:
    return client_of(ada)


@pytest.fixture
def job(ada: Person) -> Job:
    agent = an_agent(ada.id)
    a_device(agent)
    return claimed(a_run(agent))


def a_month_passes(*ids: uuid.UUID) -> None:
    OutboxRecord.objects.filter(pk__in=ids).update(created_at=timezone.now() - dt.timedelta(days=31))


def states(*ids: uuid.UUID) -> list[str]:
    found = dict(OutboxRecord.objects.values_list("pk", "state"))
    return [found[key] for key in ids]


def codes(job: Job) -> list[tuple[str, int]]:
    return [(event["code"], event["count"]) for event in journal.read(Run.objects.get(pk=job.run_id))]


def cancelled(job: Job) -> None:
    lease.finish(job, Run.State.CANCELLED, "cancelled")


def test_what_no_device_came_for_expires_and_is_counted(rest: APIClient, job: Job) -> None:
    old, other, delivered, new = kept(job, "a", "b", "c", "d")
    settle(job, answered(delivered))
    cancelled(job)
    place = f"{API}/runs/{job.run_id}"
    assert rest.get(place).json()["records_waiting"] == 3
    a_month_passes(old, other, delivered)
    assert runs.sweep()["records_expired"] == 2
    assert states(old, other, delivered, new) == ["expired", "expired", "delivered", "waiting"]
    assert OutboxRecord.objects.get(pk=old).sealed is None
    assert codes(job)[-1] == ("records_expired", 2)
    for seen in (rest.get(place).json(), rest.get(f"{API}/runs").json()[0]):
        assert (seen["records_waiting"], seen["records_expired"]) == (1, 2)
    assert runs.sweep()["records_expired"] == 0


def test_records_of_a_deleted_agent_expire_too(job: Job) -> None:
    ids = kept(job, "a", "b")
    cancelled(job)
    services.delete(agent=Agent.objects.get(pk=job.agent_id))
    a_month_passes(*ids)
    assert runs.sweep()["records_expired"] == 2
    assert codes(job)[-1] == ("records_expired", 2)


def test_a_run_under_way_is_left_to_bring_its_own(job: Job) -> None:
    a_month_passes(*kept(job, "a"))
    assert runs.sweep()["records_expired"] == 0
    cancelled(job)
    assert runs.sweep()["records_expired"] == 1


def test_many_expire_in_batches(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_AT_ONCE", 2)
    ids = kept(job, *"abcde")
    cancelled(job)
    a_month_passes(*ids)
    assert [runs.sweep()["records_expired"] for _ in range(4)] == [2, 2, 1, 0]


def test_what_a_device_may_have_is_never_sent_again(job: Job) -> None:
    (sent,) = kept(job, "a")
    outbox.mark_sent([sent])  # to a device that does not dedupe
    cancelled(job)
    a_month_passes(sent)
    runs.sweep()
    assert (states(sent), codes(job)[-1]) == (["uncertain"], ("outcome_unknown", 1))
    again = claimed(a_run(Agent.objects.get(pk=job.agent_id)))
    assert kept(again, "a") == []


def test_what_has_expired_is_sent_when_it_is_found_again_under_its_old_id(job: Job) -> None:
    ids = kept(job, "a", "b")
    settle(job, answered(ids[1]))
    cancelled(job)
    a_month_passes(*ids)
    runs.sweep()
    again = claimed(a_run(Agent.objects.get(pk=job.agent_id)))
    assert kept(again, "a", "b") == ids[:1]
    (pending,) = outbox.waiting(cipher=again.cipher, user_id=again.user_id, run_id=again.run_id)
    assert (pending.id, pending.data["title"]) == (ids[0], "a")
    assert runs.sweep()["records_expired"] == 0  # it waits anew


def test_the_counts_of_a_page_of_runs_are_one_query(ada: Person) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    made = []
    for number in range(3):
        agent = an_agent(ada.id)
        a_device(agent) if not number else None
        job = claimed(a_run(agent))
        kept(job, *"abc"[:number])
        made.append(job.run_id)
    with CaptureQueriesContext(connection) as queries:
        left = outbox.count_outstanding(made)
    assert len(queries) == 1
    assert [left[run]["waiting"] for run in made] == [0, 1, 2]
