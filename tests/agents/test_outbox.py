"""Records wait a month for their device, then they expire for all to see."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
from django.utils import timezone

from adiuva.core import db
from adiuva.core.leases import LeaseLost
from adiuva.devices import link as device_link
from adiuva.devices import outbox
from adiuva.devices.link import DeviceLink, DeviceOffline
from adiuva.devices.models import Device, OutboxRecord
from agents import delivery, journal, run_release, runs, services
from agents.claimed_runs import ClaimedRun
from agents.local_folders import DeviceSilent
from agents.models import Agent, Run
from tests.agents.factories import (
    API,
    accepted_by_device,
    claim_run,
    commit_answers,
    commit_tasks,
    create_agent,
    create_device,
    create_run,
)
from tests.devices.link_endpoints import Answer, Frame, Local, answering, result
from tests.factories import Person

if TYPE_CHECKING:
    from rest_framework.test import APIClient

State = OutboxRecord.State


def a_month_passes(*ids: uuid.UUID) -> None:
    OutboxRecord.objects.filter(pk__in=ids).update(created_at=timezone.now() - dt.timedelta(days=31))


def states(*ids: uuid.UUID) -> list[str]:
    found = dict(OutboxRecord.objects.values_list("pk", "state"))
    return [found[key] for key in ids]


def codes(claimed: ClaimedRun) -> list[tuple[str, int]]:
    return [(event["code"], event["count"]) for event in journal.read(Run.objects.get(pk=claimed.run_id))]


def cancelled(claimed: ClaimedRun) -> None:
    run_release.finish(claimed, Run.State.CANCELLED, "cancelled")


def test_undelivered_records_expire_and_are_counted(rest: APIClient, claimed: ClaimedRun) -> None:
    old, other, delivered, new = commit_tasks(claimed, "a", "b", "c", "d")
    commit_answers(claimed, accepted_by_device(delivered))
    cancelled(claimed)
    place = f"{API}/runs/{claimed.run_id}"
    assert rest.get(place).json()["records_waiting"] == 3
    a_month_passes(old, other, delivered)
    assert runs.sweep()["records_expired"] == 2
    assert states(old, other, delivered, new) == ["expired", "expired", "delivered", "waiting"]
    assert OutboxRecord.objects.get(pk=old).sealed is None
    assert codes(claimed)[-1] == ("records_expired", 2)
    for seen in (rest.get(place).json(), rest.get(f"{API}/runs").json()[0]):
        assert (seen["records_waiting"], seen["records_expired"]) == (1, 2)
    assert runs.sweep()["records_expired"] == 0


def test_records_of_a_deleted_agent_expire_too(claimed: ClaimedRun) -> None:
    ids = commit_tasks(claimed, "a", "b")
    cancelled(claimed)
    services.delete(agent=Agent.objects.get(pk=claimed.agent_id))
    a_month_passes(*ids)
    assert runs.sweep()["records_expired"] == 2
    assert codes(claimed)[-1] == ("records_expired", 2)


def test_records_of_a_run_in_progress_do_not_expire(claimed: ClaimedRun) -> None:
    a_month_passes(*commit_tasks(claimed, "a"))
    assert runs.sweep()["records_expired"] == 0
    cancelled(claimed)
    assert runs.sweep()["records_expired"] == 1


def test_records_expire_in_batches(claimed: ClaimedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_BATCH_SIZE", 2)
    ids = commit_tasks(claimed, *"abcde")
    cancelled(claimed)
    a_month_passes(*ids)
    assert [runs.sweep()["records_expired"] for _ in range(4)] == [2, 2, 1, 0]


def test_records_that_a_device_may_have_are_not_sent_again_after_they_expired(claimed: ClaimedRun) -> None:
    (sent,) = commit_tasks(claimed, "a")
    outbox.mark_sent([sent])  # to a device that does not dedupe
    cancelled(claimed)
    a_month_passes(sent)
    runs.sweep()
    assert (states(sent), codes(claimed)[-1]) == (["uncertain"], ("outcome_unknown", 1))
    again = claim_run(create_run(Agent.objects.get(pk=claimed.agent_id)))
    assert commit_tasks(again, "a") == []


def test_an_expired_record_that_is_found_again_is_sent_under_its_old_id(claimed: ClaimedRun) -> None:
    ids = commit_tasks(claimed, "a", "b")
    commit_answers(claimed, accepted_by_device(ids[1]))
    cancelled(claimed)
    a_month_passes(*ids)
    runs.sweep()
    again = claim_run(create_run(Agent.objects.get(pk=claimed.agent_id)))
    assert commit_tasks(again, "a", "b") == ids[:1]
    (pending,) = outbox.waiting(cipher=again.cipher, user_id=again.user_id, run_id=again.run_id)
    assert (pending.id, pending.data["title"]) == (ids[0], "a")
    assert runs.sweep()["records_expired"] == 0  # it waits anew


def test_the_counts_of_a_page_of_runs_are_one_query(ada: Person) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    made = []
    for number in range(3):
        agent = create_agent(ada.id)
        create_device(agent) if not number else None
        claimed = claim_run(create_run(agent))
        commit_tasks(claimed, *(f"step {number}{letter}" for letter in "abc"[:number]), path=f"/{number}.md")
        made.append(claimed.run_id)
    with CaptureQueriesContext(connection) as queries:
        left = outbox.count_outstanding(made)
    assert len(queries) == 1
    assert [left[run]["waiting"] for run in made] == [0, 1, 2]


def create_waiting(user_id: uuid.UUID, *titles: str) -> tuple[ClaimedRun, uuid.UUID, list[uuid.UUID]]:
    """A run that has found tasks, its device, and the tasks' ids."""
    agent = create_agent(user_id)
    device = create_device(agent)
    claimed = claim_run(create_run(agent))
    return claimed, device.pk, commit_tasks(claimed, *titles)


async def deliver(
    link: DeviceLink,
    claimed: ClaimedRun,
    any_device: bool = False,
    settle: Callable[[delivery.Outcomes], Awaitable[None]] | None = None,
) -> None:
    about = {"cipher": claimed.cipher, "user_id": claimed.user_id, "run_id": claimed.run_id}
    waiting = await db.run(outbox.waiting, **about)

    async def settle_at_once(outcomes: delivery.Outcomes) -> None:
        await db.run(outbox.settle, cipher=claimed.cipher, outcomes=outcomes)

    if any_device:
        assert link.device is not None
        await delivery.deliver_unassigned(link, link.device, waiting, settle or settle_at_once)
    else:
        await delivery.deliver_records(link, waiting, settle or settle_at_once)


def not_saved(call: Frame) -> Frame:
    error = "the device could not save this (database or disk is full)"
    return {"id": call["id"], "error": error, "code": "not_saved"}


def saves_only(record: uuid.UUID) -> Answer:
    return lambda call: result(call) if call["id"] == str(record) else not_saved(call)


async def test_records_behind_a_lost_connection_wait_for_a_device_that_does_not_dedupe(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_link, "_MAX_CALLS_IN_FLIGHT", 1)
    claimed, device, ids = await db.run(create_waiting, person.id, "answered", "sent", "behind", "last")
    async with DeviceLink(person.id, device, wait_s=20) as link:
        async with Local("http://local", person.access_token) as socket:
            await socket.hello(1, "desk")
            delivering = asyncio.create_task(deliver(link, claimed))
            answered = await socket.receive("tool_call")
            await socket.send({"type": "tool_result", **result(answered)})
            await socket.receive("tool_call")
            link.wait_s = 0
            await socket.drop()
            with pytest.raises(DeviceOffline):
                await delivering
        assert await db.run(states, *ids) == ["delivered", "uncertain", "waiting", "waiting"]
        link.wait_s = 20
        async with (
            Local("http://local", person.access_token) as socket,
            answering(socket, 1, device_id="desk"),
        ):
            await deliver(link, claimed)
    assert await db.run(states, *ids) == ["delivered", "uncertain", "delivered", "delivered"]


async def test_records_that_nobody_took_wait_on(person: Person) -> None:
    """The device's process was killed, and its lease still runs."""
    claimed, device, ids = await db.run(create_waiting, person.id, "a", "b")
    async with DeviceLink(person.id, device, wait_s=20) as link:
        async with Local("http://local", person.access_token) as socket:
            await socket.hello(1, "desk")
            silent = await link.target()
            await socket.drop()
        link.current_target, link.wait_s = silent, 0
        with pytest.raises(DeviceOffline):
            await deliver(link, claimed)
    assert await db.run(states, *ids) == ["waiting", "waiting"]


def found_again_after_a_month(claimed: ClaimedRun, *titles: str) -> list[uuid.UUID]:
    """End a run and expire its records; return those that are queued again when a later run finds them again."""
    waiting = list(OutboxRecord.objects.filter(source_run=claimed.run_id).values_list("pk", flat=True))
    cancelled(claimed)
    a_month_passes(*waiting)
    runs.sweep()
    return commit_tasks(claim_run(create_run(Agent.objects.get(pk=claimed.agent_id))), *titles)


@pytest.mark.parametrize("lost_by", ["the connection", "a cancel"])
async def test_records_whose_answer_was_lost_do_not_expire_as_if_they_had_never_been_sent(
    person: Person, lost_by: str
) -> None:
    """A device keeps the ids of calls for a month, so it would insert a row again that is found after that."""
    claimed, device, ids = await db.run(create_waiting, person.id, "a")
    async with (
        DeviceLink(person.id, device, wait_s=20) as link,
        Local("http://local", person.access_token) as socket,
    ):
        await socket.hello(device_id="desk")
        delivering = asyncio.create_task(deliver(link, claimed))
        await socket.receive("tool_batch")
        if lost_by == "a cancel":
            delivering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await delivering
        else:
            link.wait_s = 0
            await socket.drop()
            with pytest.raises(DeviceOffline):
                await delivering
    assert await db.run(found_again_after_a_month, claimed, "a") == []
    assert await db.run(states, *ids) == ["uncertain"]


@pytest.mark.parametrize("end", [asyncio.CancelledError, LeaseLost])
async def test_records_whose_answer_was_not_committed_do_not_expire_as_if_they_had_never_been_sent(
    person: Person, end: type[BaseException]
) -> None:
    claimed, device, ids = await db.run(create_waiting, person.id, "a", "b")

    async def settle(outcomes: delivery.Outcomes) -> None:
        raise end

    async with (
        DeviceLink(person.id, device, wait_s=20) as link,
        Local("http://local", person.access_token) as socket,
        answering(socket, answer=saves_only(ids[0]), device_id="desk"),
    ):
        with pytest.raises(end):
            await deliver(link, claimed, settle=settle)
    assert await db.run(found_again_after_a_month, claimed, "a", "b") == ids[1:]
    assert await db.run(states, *ids) == ["uncertain", "waiting"]


@pytest.mark.parametrize("protocol", [1, 2])
async def test_records_that_a_device_could_not_save_wait_until_it_can(person: Person, protocol: int) -> None:
    claimed, device, ids = await db.run(create_waiting, person.id, "a", "b")
    async with (
        DeviceLink(person.id, device, wait_s=20) as link,
        Local("http://local", person.access_token) as socket,
    ):
        answers = [not_saved, result]
        async with answering(socket, protocol, answer=lambda call: answers[0](call), device_id="desk"):
            with pytest.raises(DeviceSilent, match="device_cannot_save"):
                await deliver(link, claimed)
            assert await db.run(states, *ids) == ["waiting", "waiting"]
            del answers[0]
            await deliver(link, claimed)
    assert await db.run(states, *ids) == ["delivered", "delivered"]


async def test_another_device_gets_what_the_first_could_not_save(person: Person) -> None:
    claimed, full, ids = await db.run(create_waiting, person.id, "a", "b", "c")

    def of_any_device() -> uuid.UUID:
        OutboxRecord.objects.filter(pk__in=ids).update(device=None)
        return Device.objects.create(user_id=person.id, device_id="phone").pk

    other = await db.run(of_any_device)

    async with (
        Local("http://local", person.access_token) as desk,
        answering(desk, answer=saves_only(ids[0]), device_id="desk"),
        DeviceLink(person.id, full, wait_s=20) as link,
    ):
        with pytest.raises(DeviceSilent, match="device_cannot_save"):
            await deliver(link, claimed, any_device=True)
    async with (
        Local("http://local", person.access_token) as phone,
        answering(phone, device_id="phone"),
        DeviceLink(person.id, other, wait_s=20) as link,
    ):
        await deliver(link, claimed, any_device=True)
    assert await db.run(states, *ids) == ["delivered"] * 3
    where = await db.run(lambda: dict(OutboxRecord.objects.filter(pk__in=ids).values_list("pk", "device_id")))
    assert [where[key] for key in ids] == [full, other, other]
