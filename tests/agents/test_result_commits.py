"""Group commits of concurrent results: the same as if each had been committed alone, one after the other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from adiuva import llm
from adiuva.core import db
from adiuva.core.leases import LeaseLost
from adiuva.devices import outbox
from adiuva.devices.link import DeviceOffline, OutcomeUnknown
from adiuva.devices.models import OutboxRecord
from adiuva.devices.protocol import ToolResultBody
from adiuva.llm.prices import Price, Rates
from agents import claimed_runs, journal, ledger, result_commits, runs, services
from agents.claimed_runs import ClaimedRun
from agents.extraction import SourceDocument
from agents.group_commit import FoundRecords, GroupCommit, GroupDelivery
from agents.journal import EventKind, JournalEntry
from agents.models import Agent, Run, RunEvent, Source, SourceInFlight
from agents.record_validation import Record
from agents.result_commits import DeviceAnswered, Extracted, ExtractionFailed, Result
from billing import usage
from billing.models import Purpose, Use
from tests.agents.factories import (
    accepted_by_device,
    claim_run,
    commit_tasks,
    create_agent,
    create_device,
    create_run,
    lose_worker,
)

State = OutboxRecord.State
PRICE = Price(Rates(10**6, 10**6, 10**6, 10**6))  # a micro-unit a token


def claim_new_run(**fields: Any) -> ClaimedRun:
    agent = create_agent()
    create_device(agent)
    return claim_run(create_run(agent, **fields))


def run_of(claimed: ClaimedRun) -> Run:
    return Run.objects.get(pk=claimed.run_id)


def source_document(claimed: ClaimedRun, name: str) -> SourceDocument:
    return SourceDocument(name, name, "text", claimed.source_key(name), f"hash of {name}".encode())


def gave(claimed: ClaimedRun, name: str, *titles: str, entries: Sequence[JournalEntry] = ()) -> Extracted:
    return Extracted(
        source_document(claimed, name),
        [Record("tasks", {"title": title}) for title in titles],
        entries,
        model_calls=2,
    )


def failed(name: str) -> JournalEntry:
    return JournalEntry(EventKind.SOURCE_FAILED, "bad_output", source=name, message="no JSON")


def some_results(claimed: ClaimedRun) -> list[Result]:
    """Of all kinds; the last two come of a device that sends a document twice."""
    said = JournalEntry(EventKind.RECORD_QUARANTINED, "bad_value", 3, "two", "tasks: status is not one of")
    before = commit_tasks(claimed, "delivered", "refused", "unknown", "not sent", path="before")
    outcomes: dict[uuid.UUID, Any] = {
        **accepted_by_device(before[0]),
        before[1]: ToolResultBody(id=str(before[1]), error="full"),
        before[2]: OutcomeUnknown(),
        before[3]: DeviceOffline(),
        uuid.uuid4(): ToolResultBody(id="another", row={"id": "a-row"}),
    }
    return [
        gave(claimed, "one", "call Ada", "write the offer"),
        gave(claimed, "two", "call Ada", entries=[said]),
        DeviceAnswered(outcomes, "before"),
        gave(claimed, "empty"),
        ExtractionFailed(source_document(claimed, "three"), failed("three"), 2),
        ExtractionFailed(source_document(claimed, "four"), None, 1),
        gave(claimed, "five", "rest"),
        gave(claimed, "five", "rest", "and rest"),
    ]


def all_of(claimed: ClaimedRun) -> dict[str, Any]:
    """What is in the database of a run, without what differs between two of the same."""
    run = run_of(claimed)
    counts = ("files_done", "files_failed", "model_calls", "items_created", "problems")
    names = {
        claimed.source_key(name): name for name in ("one", "two", "empty", "three", "four", "five", "before")
    }
    contents = {claimed.content_key(f"hash of {name}".encode()): name for name in names.values()}
    return {
        "run": [getattr(run, name) for name in counts],
        "events": sorted(
            (e["kind"], e["code"], e["count"] or 0, e["source"], e["message"]) for e in journal.read(run)
        ),
        "ledger": sorted(
            (names[bytes(each.key)], contents.get(bytes(each.content_hash)), each.outcome)
            for each in Source.objects.filter(agent_id=claimed.agent_id)
        ),
        "outbox": sorted(
            (names[bytes(each.source)], each.state, each.sealed is None, each.row_id_sealed is None)
            for each in OutboxRecord.objects.filter(source_run=claimed.run_id)
        ),
        "in hand": SourceInFlight.objects.filter(agent_id=claimed.agent_id).count(),
    }


def test_a_group_commits_the_same_as_its_results_one_by_one(db: None) -> None:
    jobs = [claim_new_run(), claim_new_run()]
    new = []
    for claimed, together in zip(jobs, (True, False), strict=True):
        given = some_results(claimed)
        keys = {result.document.key for result in given if not isinstance(result, DeviceAnswered)}
        ledger.mark_in_flight(claimed, [*keys, b"another"])
        groups = [given] if together else [[result] for result in given]
        found = [records for group in groups for records in result_commits.commit_results(claimed, group)]
        new.append([[record.data["title"] for record in records] for records in found])
    assert new[0] == [["call Ada", "write the offer"], ["call Ada"], [], [], [], [], ["rest"], ["and rest"]]
    assert new[0] == new[1]
    together, alone = (all_of(claimed) for claimed in jobs)
    assert together == alone
    assert together["in hand"] == 1
    assert together["run"] == [7, 1, 14, 1, 3 + 1 + 1 + 1]


def test_a_group_needs_as_many_statements_as_one_result(claimed: ClaimedRun) -> None:
    def statements(given: Sequence[Result]) -> int:
        with CaptureQueriesContext(connection) as queries:
            result_commits.commit_results(claimed, given)
        return sum('"accounts_' not in query["sql"] for query in queries)

    (one,) = commit_tasks(claimed, "before")
    alone = statements([gave(claimed, "first", "call Ada", "rest"), DeviceAnswered(accepted_by_device(one))])
    ids = commit_tasks(claimed, *"abcd", path="also before")
    many = [gave(claimed, f"file {number}", "call Ada", "rest") for number in range(10)]
    assert statements([*many, *(DeviceAnswered(accepted_by_device(key)) for key in ids)]) == alone


def test_what_a_device_created_is_one_statement_with_the_same_result(claimed: ClaimedRun) -> None:
    alone, together = commit_tasks(claimed, "call Ada", "rest"), commit_tasks(claimed, "another", path="two")
    unknown = uuid.uuid4()
    answered = DeviceAnswered(
        accepted_by_device(*alone, unknown), tables=dict.fromkeys([*alone, unknown], "tasks")
    )
    with CaptureQueriesContext(connection) as queries:
        assert result_commits.commit_results(claimed, [answered]) == [[]]
    assert len(queries) == 1
    result_commits.commit_results(claimed, [DeviceAnswered(accepted_by_device(*together))])
    rows = OutboxRecord.objects.filter(source_run=claimed.run_id)
    assert {(row.state, row.sealed, bytes(row.row_hash or b"")) for row in rows} == {
        (State.DELIVERED, None, outbox.row_hash(claimed.cipher, "tasks", {"id": "a-row"}))
    }
    assert {OutboxRecord.row_id_sealed.unseal_from(claimed.cipher, row) for row in rows} == {"a-row"}
    assert run_of(claimed).items_created == 3


def test_a_worker_that_lost_its_lease_writes_nothing_that_a_device_created(claimed: ClaimedRun) -> None:
    run, (waiting,) = run_of(claimed), commit_tasks(claimed, "call Ada", path="before")
    lose_worker(run)
    runs.sweep()
    claim_run(run)
    before = all_of(claimed)
    with pytest.raises(LeaseLost):
        result_commits.commit_results(
            claimed, [DeviceAnswered(accepted_by_device(waiting), tables={waiting: "tasks"})]
        )
    assert all_of(claimed) == before


def test_nothing_of_a_group_is_committed_by_a_worker_that_lost_its_lease(claimed: ClaimedRun) -> None:
    run, (waiting,) = run_of(claimed), commit_tasks(claimed, "call Ada", path="before")
    lose_worker(run)
    runs.sweep()
    claim_run(run)
    before = all_of(claimed)
    with pytest.raises(LeaseLost):
        result_commits.commit_results(
            claimed, [gave(claimed, "one", "call Ada"), DeviceAnswered(accepted_by_device(waiting))]
        )
    assert all_of(claimed) == before


def test_for_a_deleted_agent_only_the_devices_answers_are_committed(claimed: ClaimedRun) -> None:
    (waiting,) = commit_tasks(claimed, "call Ada")
    services.delete(agent=Agent.objects.get(pk=claimed.agent_id))
    with pytest.raises(claimed_runs.AgentGone):
        result_commits.commit_results(
            claimed, [gave(claimed, "one", "rest"), DeviceAnswered(accepted_by_device(waiting))]
        )
    assert dict(OutboxRecord.objects.filter(source_run=claimed.run_id).values_list("pk", "state")) == {
        waiting: State.DELIVERED
    }
    assert run_of(claimed).items_created == 1


async def hold_run(claimed: ClaimedRun, go_on: asyncio.Event) -> asyncio.Task[None]:
    """Lock the run's row until told to go on, so that a commit waits. The task ends with the lock."""
    held, loop = asyncio.Event(), asyncio.get_running_loop()

    def hold() -> None:
        with transaction.atomic():
            claimed_runs.held(claimed)
            loop.call_soon_threadsafe(held.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        connections.close_all()

    holding = asyncio.create_task(asyncio.to_thread(hold))
    await held.wait()
    return holding


async def test_results_that_arrive_during_a_transaction_are_in_the_next_one(committed_db: str) -> None:
    claimed = await db.run(claim_new_run)
    group = GroupCommit(claimed)
    go_on = asyncio.Event()
    holding = await hold_run(claimed, go_on)
    lanes = [asyncio.create_task(group.commit(gave(claimed, f"file {n}", f"task {n}"))) for n in range(20)]
    await asyncio.sleep(0)  # all of them have brought theirs
    go_on.set()
    found = await asyncio.gather(*lanes)
    await holding
    assert [[record.data["title"] for record in new] for new in found] == [[f"task {n}"] for n in range(20)]
    # Each transaction's events have its time.
    done = await db.run(
        lambda: list(
            RunEvent.objects.filter(run=claimed.run_id, kind=EventKind.SOURCE_DONE).values_list(
                "at", flat=True
            )
        )
    )
    assert (len(done), len(set(done))) == (20, 2)


async def test_use_is_charged_once_though_the_lane_is_cancelled_during_the_commit(committed_db: str) -> None:
    claimed = await db.run(claim_new_run)
    also = partial(claimed_runs.add_used, claimed.run_id)
    go_on = asyncio.Event()
    async with usage.metered(claimed.user_id, Purpose.AGENTS, claimed.agent_id, also) as meter:
        meter.add("m", llm.Usage(10, 5), PRICE, is_estimated=False, most_micro=None)
        cost = meter.uses()[0].cost_micro
        group = GroupCommit(claimed, meter)
        holding = await hold_run(claimed, go_on)
        lane, other = (
            asyncio.create_task(group.commit(gave(claimed, name, "task"))) for name in ("one", "two")
        )
        async with asyncio.timeout(30):
            while meter.uses():  # until the lane is in its commit
                await asyncio.sleep(0)
        lane.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait([lane])
        assert lane.cancelled() and len(await other) == 1
        await holding
    run = await db.run(run_of, claimed)
    used = await db.run(Use.objects.get, user_id=claimed.user_id)
    assert cost and (run.cost_micro, used.cost_micro, used.calls) == (cost, cost, 1)
    assert run.files_done == 2


async def test_a_failed_group_fails_its_own_results_only(committed_db: str) -> None:
    claimed = await db.run(claim_new_run)
    group = GroupCommit(claimed)
    fence = await db.run(lambda: run_of(claimed).fence)
    await db.run(Run.objects.filter(pk=claimed.run_id).update, fence=fence + 1)
    lanes = [group.commit(gave(claimed, f"file {n}", "task")) for n in range(5)]
    failures = await asyncio.gather(*lanes, return_exceptions=True)
    assert [type(failure) for failure in failures] == [LeaseLost] * 5
    await db.run(Run.objects.filter(pk=claimed.run_id).update, fence=fence)
    assert len(await group.commit(gave(claimed, "another", "task"))) == 1


async def test_a_lane_that_is_cancelled_on_its_turn_leaves_it_to_the_next(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = await db.run(claim_new_run)
    group = GroupCommit(claimed)
    lanes = [asyncio.create_task(group.commit(gave(claimed, f"file {n}", f"task {n}"))) for n in range(3)]
    hand_over = group._hand_over

    def and_cancel() -> None:
        hand_over()
        lanes[1].cancel()  # woken and has not run yet

    monkeypatch.setattr(group, "_hand_over", and_cancel)
    await lanes[0]
    monkeypatch.undo()
    async with asyncio.timeout(30):
        assert [record.data["title"] for record in await lanes[2]] == ["task 2"]
    assert lanes[1].cancelled()


async def test_documents_that_are_committed_together_are_delivered_together() -> None:
    delivered: list[list[str]] = []
    go_on = asyncio.Event()

    async def deliver(found: Sequence[FoundRecords]) -> None:
        delivered.append([path for _, path in found])
        await go_on.wait()

    group = GroupDelivery(deliver)
    lanes = [asyncio.create_task(group.deliver(FoundRecords([], path))) for path in ("one", "two", "three")]
    await asyncio.sleep(0.01)
    late = asyncio.create_task(group.deliver(FoundRecords([], "late")))  # it waits for nobody
    await asyncio.sleep(0.01)
    assert delivered == [["one", "two", "three"], ["late"]]
    assert not any(lane.done() for lane in [*lanes, late])
    go_on.set()
    await asyncio.gather(*lanes, late)


async def test_a_delivery_that_fails_fails_for_all_documents_in_it() -> None:
    async def deliver(found: Sequence[FoundRecords]) -> None:
        raise DeviceOffline

    group = GroupDelivery(deliver)
    lanes = [group.deliver(FoundRecords([], path)) for path in ("one", "two", "three")]
    failures = await asyncio.gather(*lanes, return_exceptions=True)
    assert [type(failure) for failure in failures] == [DeviceOffline] * 3


async def test_a_delivery_that_is_cancelled_leaves_nobody_waiting() -> None:
    async def never(_: Sequence[FoundRecords]) -> None:
        await asyncio.Event().wait()

    group = GroupDelivery(never)
    lanes = [asyncio.create_task(group.deliver(FoundRecords([], path))) for path in ("one", "two")]
    await asyncio.sleep(0.01)
    lanes[0].cancel()
    async with asyncio.timeout(5):
        await asyncio.wait(lanes)
    assert all(lane.cancelled() for lane in lanes)
