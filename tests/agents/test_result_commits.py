"""What lanes bring at the same time is committed together, as if it had come one after the other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from adiuva.core import db
from adiuva.devices.link import DeviceOffline, OutcomeUnknown
from adiuva.devices.models import OutboxRecord
from adiuva.devices.protocol import ToolResultBody
from agents import journal, lease, result_commits, runs, services
from agents.extraction import Document
from agents.journal import Entry, Kind
from agents.lease import Job, LeaseLost
from agents.models import Agent, Run, RunEvent, Source, SourceInFlight
from agents.records import Record
from agents.result_commits import Answered, GroupCommit, Read, Result, Unread
from tests.agents.factories import a_device, a_run, an_agent, answered, claimed, kept
from tests.agents.test_run_services import lose

State = OutboxRecord.State


@pytest.fixture
def job(db: None) -> Job:
    return a_job()


def a_job(**fields: Any) -> Job:
    agent = an_agent()
    a_device(agent)
    return claimed(a_run(agent, **fields))


def run_of(job: Job) -> Run:
    return Run.objects.get(pk=job.run_id)


def a_document(job: Job, name: str) -> Document:
    return Document(name, name, "text", job.source_key(name), f"hash of {name}".encode())


def gave(job: Job, name: str, *titles: str, entries: Sequence[Entry] = ()) -> Read:
    return Read(
        a_document(job, name), [Record("tasks", {"title": title}) for title in titles], entries, model_calls=2
    )


def failed(name: str) -> Entry:
    return Entry(Kind.SOURCE_FAILED, "bad_output", source=name, message="no JSON")


def some_results(job: Job) -> list[Result]:
    """Of all kinds; the last two come of a device that sends a document twice."""
    said = Entry(Kind.RECORD_QUARANTINED, "bad_value", 3, "two", "tasks: status is not one of")
    before = kept(job, "delivered", "refused", "unknown", "not sent", path="before")
    outcomes: dict[uuid.UUID, Any] = {
        **answered(before[0]),
        before[1]: ToolResultBody(id=str(before[1]), error="full"),
        before[2]: OutcomeUnknown(),
        before[3]: DeviceOffline(),
        uuid.uuid4(): ToolResultBody(id="another", row={"id": "a-row"}),
    }
    return [
        gave(job, "one", "call Ada", "write the offer"),
        gave(job, "two", "call Ada", entries=[said]),
        Answered(outcomes, "before"),
        gave(job, "empty"),
        Unread(a_document(job, "three"), failed("three"), 2),
        Unread(a_document(job, "four"), None, 1),
        gave(job, "five", "rest"),
        gave(job, "five", "rest", "and rest"),
    ]


def all_of(job: Job) -> dict[str, Any]:
    """What is in the database of a run, without what differs between two of the same."""
    run = run_of(job)
    counts = ("files_done", "files_failed", "model_calls", "items_created", "problems")
    names = {
        job.source_key(name): name for name in ("one", "two", "empty", "three", "four", "five", "before")
    }
    return {
        "run": [getattr(run, name) for name in counts],
        "events": sorted(
            (e["kind"], e["code"], e["count"] or 0, e["source"], e["message"]) for e in journal.read(run)
        ),
        "ledger": sorted(
            (names[bytes(each.key)], bytes(each.content_hash), each.outcome)
            for each in Source.objects.filter(agent_id=job.agent_id)
        ),
        "outbox": sorted(
            (names[bytes(each.source)], each.state, each.sealed is None, each.row_id_sealed is None)
            for each in OutboxRecord.objects.filter(source_run=job.run_id)
        ),
        "in hand": SourceInFlight.objects.filter(agent_id=job.agent_id).count(),
    }


def test_together_they_leave_what_they_leave_one_after_the_other(db: None) -> None:
    jobs = [a_job(), a_job()]
    new = []
    for job, together in zip(jobs, (True, False), strict=True):
        given = some_results(job)
        keys = {result.document.key for result in given if not isinstance(result, Answered)}
        lease.take(job, [*keys, b"another"])
        groups = [given] if together else [[result] for result in given]
        found = [records for group in groups for records in result_commits.commit(job, group)]
        new.append([[record.data["title"] for record in records] for records in found])
    assert new[0] == [["call Ada", "write the offer"], ["call Ada"], [], [], [], [], ["rest"], ["and rest"]]
    assert new[0] == new[1]
    together, alone = (all_of(job) for job in jobs)
    assert together == alone
    assert together["in hand"] == 1
    assert together["run"] == [7, 1, 14, 1, 3 + 1 + 1 + 1]


def test_a_group_costs_the_statements_of_one(job: Job) -> None:
    def statements(given: Sequence[Result]) -> int:
        with CaptureQueriesContext(connection) as queries:
            result_commits.commit(job, given)
        return sum('"accounts_' not in query["sql"] for query in queries)

    (one,) = kept(job, "before")
    alone = statements([gave(job, "first", "call Ada", "rest"), Answered(answered(one))])
    ids = kept(job, *"abcd", path="also before")
    many = [gave(job, f"file {number}", "call Ada", "rest") for number in range(10)]
    assert statements([*many, *(Answered(answered(key)) for key in ids)]) == alone


def test_nothing_of_a_group_is_committed_by_a_worker_that_lost_its_lease(job: Job) -> None:
    run, (waiting,) = run_of(job), kept(job, "call Ada", path="before")
    lose(run)
    runs.sweep()
    claimed(run)
    before = all_of(job)
    with pytest.raises(LeaseLost):
        result_commits.commit(job, [gave(job, "one", "call Ada"), Answered(answered(waiting))])
    assert all_of(job) == before


def test_of_a_deleted_agent_only_what_the_device_has_taken_is_entered(job: Job) -> None:
    (waiting,) = kept(job, "call Ada")
    services.delete(agent=Agent.objects.get(pk=job.agent_id))
    with pytest.raises(lease.AgentGone):
        result_commits.commit(job, [gave(job, "one", "rest"), Answered(answered(waiting))])
    assert dict(OutboxRecord.objects.filter(source_run=job.run_id).values_list("pk", "state")) == {
        waiting: State.DELIVERED
    }
    assert run_of(job).items_created == 1


async def test_what_comes_while_a_transaction_runs_is_in_the_next_one(committed_db: str) -> None:
    job = await db.run(a_job)
    group = GroupCommit(job)
    held, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold() -> None:
        """Keeps the run's row, so that the first transaction waits."""
        with transaction.atomic():
            lease.held(job)
            loop.call_soon_threadsafe(held.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        connections.close_all()

    holding = asyncio.create_task(asyncio.to_thread(hold))
    await held.wait()
    lanes = [asyncio.create_task(group.commit(gave(job, f"file {n}", f"task {n}"))) for n in range(20)]
    await asyncio.sleep(0)  # all of them have brought theirs
    go_on.set()
    found = await asyncio.gather(*lanes)
    await holding
    assert [[record.data["title"] for record in new] for new in found] == [[f"task {n}"] for n in range(20)]
    # Each transaction's events have its time.
    done = await db.run(
        lambda: list(
            RunEvent.objects.filter(run=job.run_id, kind=Kind.SOURCE_DONE).values_list("at", flat=True)
        )
    )
    assert (len(done), len(set(done))) == (20, 2)


async def test_whoever_is_in_a_group_that_fails_is_told_and_the_next_are_not_hurt(committed_db: str) -> None:
    job = await db.run(a_job)
    group = GroupCommit(job)
    fence = await db.run(lambda: run_of(job).fence)
    await db.run(Run.objects.filter(pk=job.run_id).update, fence=fence + 1)
    lanes = [group.commit(gave(job, f"file {n}", "task")) for n in range(5)]
    failures = await asyncio.gather(*lanes, return_exceptions=True)
    assert [type(failure) for failure in failures] == [LeaseLost] * 5
    await db.run(Run.objects.filter(pk=job.run_id).update, fence=fence)
    assert len(await group.commit(gave(job, "another", "task"))) == 1
