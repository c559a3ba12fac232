"""Runs that ended long ago go, with all that is kept only for them; what still stands in a document stays."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core import db, leases
from adiuva.devices.models import OutboxRecord
from agents import retention, run_release
from agents.models import Agent, FoundRecord, Run, RunEvent
from chat.tools.agent_texts import never_run_text
from tests.agents.device_owner import DeviceOwner, connected
from tests.agents.document_reader import Item, Reader
from tests.agents.factories import claim_run, commit_tasks, create_agent, create_device, create_run
from tests.agents.test_changed_documents import day, text_of
from tests.fakes.provider import Provider


def longer_ago_than_kept() -> dt.datetime:
    return timezone.now() - dt.timedelta(days=settings.RUNS["keep_days"], hours=1)


def create_ended_run(agent: Agent, **fields: object) -> Run:
    values = {"state": Run.State.SUCCESS, "created_at": longer_ago_than_kept()} | fields
    return create_run(agent, **values)


def test_an_old_run_goes_with_its_journal_and_a_young_one_stays(db: None) -> None:
    agent = create_agent()
    old, young = create_ended_run(agent), create_ended_run(agent, created_at=timezone.now())
    RunEvent.objects.bulk_create(RunEvent(run=run, kind="note") for run in [old] * 2_500 + [young] * 3)
    assert retention.delete_expired() == 1
    assert list(Run.objects.of(agent.user_id)) == [young]
    assert RunEvent.objects.filter(run_id=old.pk).count() == 0
    assert young.events.count() == 3


def test_an_agent_whose_runs_are_gone_is_not_said_to_have_never_run(db: None) -> None:
    agent = create_agent()
    assert never_run_text(agent, ZoneInfo("UTC")) == "has never run"
    agent.last_run_at = dt.datetime(2026, 3, 1, 8, 30, tzinfo=dt.UTC)
    said = never_run_text(agent, ZoneInfo("UTC"))
    assert said == "last ran Sun 2026-03-01 08:30, of which nothing is kept any more"


@pytest.mark.parametrize(
    "fields",
    [
        {"state": Run.State.WAITING_DEVICE},
        {"undelivered": True},
        {"announcement": Run.Announcement.DUE},
    ],
    ids=["live", "undelivered", "untold"],
)
def test_a_run_that_is_not_through_stays(db: None, fields: dict[str, object]) -> None:
    run = create_ended_run(create_agent(), **fields)
    assert retention.delete_expired() == 0
    assert Run.objects.filter(pk=run.pk).exists()


@pytest.mark.parametrize("state", [OutboxRecord.State.WAITING, OutboxRecord.State.SENT])
def test_a_run_whose_records_wait_stays_until_they_have_arrived_or_expired(db: None, state: str) -> None:
    agent = create_agent()
    device = create_device(agent)
    run = create_run(agent, enqueued_at=timezone.now())
    (record,) = commit_tasks(claimed := claim_run(run), "Call Ada")
    run_release.finish(claimed, Run.State.CANCELLED, "cancelled")
    Run.objects.filter(pk=run.pk).update(created_at=longer_ago_than_kept())
    OutboxRecord.objects.filter(pk=record).update(state=state, device=device)
    assert retention.delete_expired() == 0
    claim_run(create_run(agent, enqueued_at=timezone.now()))  # takes the record over
    assert OutboxRecord.objects.get(pk=record).source_run != run.pk
    assert retention.delete_expired() == 1


def test_a_run_that_is_being_undone_stays_until_that_is_over(db: None) -> None:
    run = create_ended_run(create_agent())
    (held,) = leases.claim(Run.objects.filter(pk=run.pk), dt.timedelta(minutes=1))
    assert retention.delete_expired() == 0
    held.lease(dt.timedelta(minutes=1)).release()
    assert retention.delete_expired() == 1


def test_with_no_days_all_is_kept(db: None, settings: object) -> None:
    create_ended_run(create_agent())
    settings.RUNS = settings.RUNS | {"keep_days": 0}  # type: ignore[attr-defined]
    assert retention.delete_expired() == 0


def test_records_that_were_taken_back_long_ago_are_forgotten(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    run = create_run(agent, enqueued_at=timezone.now())
    gone, recent = commit_tasks(claim_run(run), "Call Ada", "Write the offer")
    states = OutboxRecord.State
    OutboxRecord.objects.filter(pk=gone).update(state=states.WITHDRAWN, settled_at=longer_ago_than_kept())
    OutboxRecord.objects.filter(pk=recent).update(state=states.UNDONE, settled_at=Now())
    retention.delete_expired()
    assert set(FoundRecord.objects.filter(pk__in=[gone, recent]).values_list("pk", flat=True)) == {recent}
    assert set(OutboxRecord.objects.filter(pk__in=[gone, recent]).values_list("pk", flat=True)) == {recent}


async def test_a_record_follows_its_document_after_its_run_was_deleted_and_goes_with_it(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Reader()
    call = Item("call", "call the printer", date="2026-12-03")
    offer = Item("offer", "send Rossi the offer")
    desk.write("plan.md", text_of(call, offer))
    async with connected(desk):
        agent = await desk.agent()
        run = uuid.UUID((await desk.run(agent))["id"])
        await Run.objects.filter(pk=run).aupdate(created_at=longer_ago_than_kept())
        await db.run(retention.delete_expired)
        assert not await Run.objects.filter(pk=run).aexists()
        assert await OutboxRecord.objects.filter(source_run=run).acount() == 2
        (row,) = [row for row in desk.rows("tasks") if "offer" in row["title"]]
        change = {"id": row["id"], "updates": {"isApproved": 1}}
        desk.device.store.apply([{"id": "approve", "action": "update", "table": "tasks", "data": change}])
        desk.write("plan.md", text_of(replace(call, date="2026-12-10")))
        seen = await desk.run(agent)
    assert seen["state"] == "success"
    due = {row["title"].rpartition("(")[2].rstrip(")"): row["dueDate"] for row in desk.rows("tasks")}
    assert due == {"call": day("2026-12-10"), "offer": None}
    # The user has made the offer their own, so nothing more is to be known of it.
    assert await OutboxRecord.objects.filter(source_run=run).acount() == 1
    assert await FoundRecord.objects.filter(user_id=desk.person.id).acount() == 1
