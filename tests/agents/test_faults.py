"""Runs under faults of the model, the device or the worker, and runs that are cancelled or reach their deadline."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.leases import LeaseLost
from agents import claimed_runs, journal, ledger, result_commits, run_queue, run_release, runs, services
from agents.claimed_runs import ClaimedRun
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Agent, Run, Source, SourceInFlight
from agents.result_commits import ExtractionFailed
from tests.agents.device_owner import (
    END_STATES,
    TIMEOUT_S,
    DeviceOwner,
    connected,
    counts_add_up,
    document_text,
    tasks_from_lines,
)
from tests.agents.factories import (
    claim_run,
    commit_document,
    commit_tasks,
    create_agent,
    create_run,
)
from tests.agents.worker_processes import CRASHING_SCRIPT, start_worker
from tests.fakes.provider import Fail, Hold, Provider
from tests.server_processes import Stack
from tests.socket_client import Socket

State = Run.State
SECOND = dt.timedelta(seconds=1)


def seen(claimed: ClaimedRun | Run) -> Run:
    return Run.objects.get(pk=claimed.run_id if isinstance(claimed, ClaimedRun) else claimed.pk)


def codes(run: Run) -> list[str]:
    return [event["code"] for event in journal.read(run)]


def change(run: Run | str, **fields: Any) -> None:
    Run.objects.filter(pk=run if isinstance(run, str) else run.pk).update(**fields)


def again(run: Run) -> ClaimedRun:
    """The next attempt, after the worker of the last has died."""
    change(run, lease_until=timezone.now() - SECOND)
    runs.sweep()
    return claim_run(run)


def source_document(claimed: ClaimedRun, name: str, content_hash: bytes = b"hash") -> SourceDocument:
    return SourceDocument(name, name, "text", claimed.source_key(name), content_hash)


def crashes(agent: Agent) -> dict[bytes, int]:
    return {bytes(each.key): each.crashes for each in SourceInFlight.objects.filter(agent=agent)}


# ── What passes is tried again ──────────────────────────────────────────────────────────────────────────


def is_put_off(seen: dict[str, Any]) -> bool:
    """The row is read before the journal, so it may be the older of the two."""
    return seen["state"] != "running" and any(event["kind"] == "waiting" for event in seen["journal"])


async def test_an_unavailable_model_delays_a_run_and_nothing_is_done_twice(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = lambda request: (
        Fail(503) if "later" in document_text(request) else tasks_from_lines(request)
    )
    desk.write("0.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        run = await desk.start(agent)
        await desk.until(run, lambda seen: seen["items_created"] == 1 or seen["state"] in END_STATES)
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
        assert seen["state"] == "success"
        for number in range(1, 9):
            desk.write(f"{number}.md", f"do step {number}\nlater")
        desk.write("9.md", "do write the offer")
        run = await desk.start(agent)
        seen = await desk.until(run, is_put_off)
        assert (seen["state"], seen["status"], seen["errors"]) == ("queued", "running", [])
        (waiting,) = [event for event in seen["journal"] if event["kind"] == "waiting"]
        assert (waiting["code"], waiting["count"]) == ("model_unavailable", 1)
        assert seen["retries"] == 1
        when = dt.datetime.fromisoformat(seen["not_before"]).astimezone(dt.UTC)
        assert when.isoformat(timespec="seconds") in waiting["message"]

        provider.default = tasks_from_lines
        calls = len(provider.chats)

        def time_passes() -> None:
            change(run, not_before=timezone.now() - SECOND, enqueued_at=timezone.now() - 2 * SECOND)
            runs.wake_workers()

        await db.run(time_passes)
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
        told = [each["content"] for each in (await desk.rest.get("/memory/episodic")).json()]
    assert sorted(words.partition("found ")[2] for words in told) == [
        "1 tasks.",
        "9 tasks.",
    ]  # in both attempts
    assert (seen["state"], seen["errors"], counts_add_up(seen)) == ("success", [], True)
    assert (seen["retries"], seen["not_before"]) == (1, None)
    assert len(provider.chats) - calls in (8, 9)  # the ninth may have been cut off when the others failed
    titles = ["call Ada", "write the offer", *(f"step {number}" for number in range(1, 9))]
    assert sorted(row["title"] for row in desk.rows("tasks")) == sorted(titles)


async def test_documents_unread_because_the_model_was_unavailable_are_read_by_the_next_attempt(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = lambda request: (
        Fail(429, retry_after=100) if "later" in document_text(request) else tasks_from_lines(request)
    )
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do write the offer\nlater")
    async with connected(desk):
        run = await desk.start(await desk.agent())
        await desk.until(run, is_put_off)
        row = await db.run(Run.objects.get, pk=run)
        assert (row.state, row.items_created, row.problems) == (State.QUEUED, 1, 0)
        assert row.not_before is not None and row.not_before > timezone.now() + 60 * SECOND
        # And when the budget is used up, it ends as what it is.
        await db.run(
            change,
            run,
            not_before=None,
            retries=settings.RUNS["retries"],
            enqueued_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        )
        await db.run(runs.wake_workers)
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert (seen["state"], seen["items_created"], counts_add_up(seen)) == ("partial", 1, True)
    assert len(seen["errors"]) == 1 and "two.md" in seen["errors"][0]


async def test_a_run_with_a_silent_device_is_retried_later(desk: DeviceOwner, stack: Stack) -> None:
    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = str((await db.run(lambda: create_run(Agent.objects.get(pk=agent)))).pk)
        await asyncio.to_thread(start_worker, stack, run, ADIUVA_ANSWER_S="0.5")
        seen = await desk.until(run, is_put_off)
    assert (seen["state"], seen["journal"][-1]["code"]) == ("queued", "device_silent")


def test_the_delay_of_retries_grows_and_retries_are_limited(claimed: ClaimedRun) -> None:
    rules = settings.RUNS
    for number in range(rules["retries"]):
        before = db.clock()
        assert run_release.retry_later(claimed, "model_unavailable", "the model cannot be reached")
        run = seen(claimed)
        assert (run.state, run.status, run.retries, run.lease_until) == (
            State.QUEUED,
            "running",
            number + 1,
            None,
        )
        assert run.not_before is not None
        most = min(rules["longest_retry_s"], rules["retry_s"] * 2**number)
        assert before <= run.not_before <= db.clock() + most * SECOND
        assert claimed_runs.claim(run.pk) is None or run.not_before <= db.clock()
        change(run, not_before=None, state=State.QUEUED, lease_until=None)
        claimed = claim_run(run)
    assert not run_release.retry_later(claimed, "model_unavailable")
    assert run_release.finish(claimed, State.ERROR, "model_unavailable").state == State.ERROR


def test_a_provider_is_not_asked_before_its_retry_after(claimed: ClaimedRun) -> None:
    assert run_release.retry_later(claimed, "model_rate_limited", retry_after=1_000)
    run = seen(claimed)
    assert run.not_before is not None and run.not_before > db.clock() + 990 * SECOND


def test_no_run_is_retried_after_its_deadline(claimed: ClaimedRun) -> None:
    assert not run_release.retry_later(claimed, "model_rate_limited", retry_after=3 * 3600)
    assert seen(claimed).state == State.RUNNING


def test_a_delayed_run_cannot_be_claimed_before_its_time_and_is_found_then(db: None) -> None:
    run = create_run(create_agent(), not_before=timezone.now() + 60 * SECOND)
    change(run, enqueued_at=timezone.now() - 300 * SECOND)
    assert claimed_runs.claim(run.pk) is None
    assert run_queue.claim_next() is None and not run_queue.has_waiting()
    change(run, not_before=timezone.now() - SECOND)
    assert run_queue.claim_next(queued_for=10 * SECOND) is None  # it has been due for a second
    assert run_queue.backlog().runs == 1 and 1 <= run_queue.backlog().oldest_s < 10
    claimed = run_queue.claim_next()
    assert claimed is not None and claimed.run_id == run.pk
    assert seen(run).not_before is None


def test_a_worker_that_lost_its_database_requeues_its_run_and_no_source_is_blamed(
    claimed: ClaimedRun,
) -> None:
    ledger.mark_in_flight(claimed, [b"one", b"two"])
    run_release.requeue_interrupted(claimed)
    run = seen(claimed)
    assert (run.state, run.workers_lost, codes(run)[-1]) == (State.QUEUED, 0, "interrupted")
    with pytest.raises(LeaseLost):
        run_release.requeue_interrupted(claimed)
    change(run, not_before=None)
    assert claim_run(run).crash_counts == {}
    assert runs.sweep()["lost"] == 0


# ── A source that kills ─────────────────────────────────────────────────────────────────────────────────

# Its own lease's end comes with its own sweep: another test's, between the two, would give the run to another worker.


async def test_a_document_that_crashes_workers_is_quarantined_and_the_others_arrive_once(
    desk: DeviceOwner, provider: Provider, stack: Stack
) -> None:
    provider.default = tasks_from_lines
    for number in range(40):
        desk.write(f"{number}.md", f"do step {number}")
    desk.write("20a.md", "do harm\ndeadly")
    model = {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": provider.url}
    agent = await desk.agent()

    async def attempt(run: str) -> int:
        worker = await asyncio.to_thread(start_worker, stack, run, CRASHING_SCRIPT, **model)
        assert worker.process is not None
        return await asyncio.to_thread(worker.process.wait, TIMEOUT_S)

    async with connected(desk):
        run = str((await db.run(lambda: create_run(Agent.objects.get(pk=agent)))).pk)
        assert [await attempt(run) for _ in range(4)] == [9, 9, 9, 0]
        seen = await desk.see(run)
        assert (seen["state"], seen["items_created"], counts_add_up(seen)) == ("partial", 40, True)
        assert [
            (event["code"], event["source"]) for event in seen["journal"] if event["kind"] == "source_failed"
        ] == [("killed_workers", str(desk.folder / "20a.md"))]
        assert sorted(row["title"] for row in desk.rows("tasks")) == sorted(f"step {n}" for n in range(40))
        # It is not tried again as it is …
        calls = len(provider.chats)
        assert (await desk.run(agent))["files_unchanged"] == 41
        assert len(provider.chats) == calls
        # … for a day, after which one death more would be enough …
        poison = Source.objects.filter(agent=agent, outcome=Source.Outcome.POISON)
        assert await db.run(poison.update, updated_at=timezone.now() - dt.timedelta(hours=25)) == 1
        assert await db.run(lambda: SourceInFlight.objects.get(agent=agent).crashes) == 2
        assert (await desk.run(agent))["items_created"] == 1
        # … and as another it is.
        desk.write("20a.md", "do no harm")
        assert (await desk.run(agent))["items_created"] == 1
    assert await db.run(lambda: SourceInFlight.objects.filter(agent=agent).count()) == 0


async def test_sources_that_crashed_two_workers_are_read_one_at_a_time(
    desk: DeviceOwner, provider: Provider
) -> None:
    hold = Hold(tasks_from_lines)
    provider.default = hold
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do write the offer")

    def suspect(agent: str) -> None:
        fingerprint = cipher_for(desk.person.id).fingerprint
        for name in ("one.md", "two.md"):
            key = fingerprint(str(desk.folder / name), "source in desk")
            SourceInFlight.objects.create(agent_id=agent, key=key, crashes=2)

    async with connected(desk):
        agents = [await desk.agent(name=name) for name in ("a", "b")]
        for agent in agents:
            await db.run(suspect, agent)
        begun = [await desk.start(agent) for agent in agents]
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
        for run in begun:
            await desk.until(run, lambda seen: seen["files_seen"] == 2)
        hold.release()
        ended = [await desk.until(run, lambda seen: seen["state"] in END_STATES) for run in begun]
        assert [seen["state"] for seen in ended] == ["success", "success"]
        # What one agent finds is known to the other.
        assert sum(seen["items_created"] for seen in ended) == 2
    assert provider.peak == 1
    assert await db.run(lambda: SourceInFlight.objects.filter(agent__in=agents).count()) == 0


def test_sources_in_flight_at_a_crash_are_suspects_and_finished_ones_are_not(claimed: ClaimedRun) -> None:
    one, two = (source_document(claimed, name) for name in ("one", "two"))
    ledger.mark_in_flight(claimed, [one.key, two.key])
    claimed_runs.add_counts(claimed, seen=2)
    commit_document(claimed, one)
    assert again(seen(claimed)).crash_counts == {two.key: 1}


def test_a_suspect_not_in_flight_at_the_next_crash_is_not_counted(
    claimed: ClaimedRun,
) -> None:
    run = seen(claimed)
    ledger.mark_in_flight(claimed, [b"one", b"two"])
    claimed = again(run)
    ledger.mark_in_flight(claimed, [b"one"])
    claimed = again(run)
    assert claimed.crash_counts == {b"one": 2, b"two": 1}
    run_release.finish(claimed, State.CANCELLED, "cancelled")
    # Nor does the next run forget.
    assert claim_run(create_run(Agent.objects.get(pk=claimed.agent_id))).crash_counts == {
        b"one": 2,
        b"two": 1,
    }


def test_a_suspect_that_is_read_without_a_crash_is_cleared(claimed: ClaimedRun) -> None:
    run = seen(claimed)
    ledger.mark_in_flight(claimed, [b"one", b"two"])
    claimed = again(run)
    ledger.mark_in_flight(claimed, [b"one"])
    document = SourceDocument("one", "one", "text", b"one", b"hash")
    failed = JournalEntry(EventKind.SOURCE_FAILED, "model_rejected", source="one")
    result_commits.commit_results(claimed, [ExtractionFailed(document, failed, 1)])
    assert crashes(Agent.objects.get(pk=claimed.agent_id)) == {b"two": 1}


def test_a_quarantined_source_is_read_again_when_it_or_the_configuration_changes(claimed: ClaimedRun) -> None:
    poison = source_document(claimed, "poison")
    claimed_runs.add_counts(claimed, seen=1)
    ledger.quarantine(claimed, poison)
    source = Source.objects.get(agent_id=claimed.agent_id)
    assert (source.outcome, bytes(source.content_hash)) == (
        Source.Outcome.POISON,
        claimed.content_key(b"hash"),
    )
    assert ledger.needs_reading(claimed, [(poison.key, b"hash"), (poison.key, b"other")]) == [False, True]
    assert run_release.finish(claimed).state == State.ERROR  # there was nothing else
    services.update(agent=Agent.objects.get(pk=claimed.agent_id), values={"prompt_template": "Other."})
    assert ledger.needs_reading(
        claim_run(create_run(Agent.objects.get(pk=claimed.agent_id))), [(poison.key, b"hash")]
    ) == [True]


def test_crashes_over_sources_never_end_a_run(claimed: ClaimedRun) -> None:
    run = seen(claimed)
    for number in range(2 * runs.MAX_WORKERS_LOST):
        ledger.mark_in_flight(claimed, [bytes([number])])
        claimed = again(run)
    assert (seen(run).state, seen(run).workers_lost) == (State.RUNNING, 0)


def test_crashes_of_workers_that_make_progress_do_not_end_a_run(claimed: ClaimedRun) -> None:
    run = seen(claimed)
    for number in range(2 * runs.MAX_WORKERS_LOST):
        commit_tasks(claimed, f"step {number}", path=f"{number}.md")
        claimed = again(run)
    assert (seen(run).state, seen(run).workers_lost) == (State.RUNNING, 0)


# ── Cancel and deadline, also when nothing moves ────────────────────────────────────────────────────────


async def test_a_run_with_a_silent_device_can_be_cancelled(desk: DeviceOwner) -> None:
    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await desk.start(agent)
        await socket.receive("tool_call")  # and it says nothing
        await desk.rest.post(f"/agents/runs/{run}/cancel")
        assert (await socket.receive("agent_cancel"))["run_id"] == run
        assert (await desk.see(run))["state"] == "cancelled"


async def test_a_run_whose_device_never_sends_requested_files_can_be_cancelled(desk: DeviceOwner) -> None:
    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await desk.start(agent)
        call = await socket.receive("tool_call")
        await socket.send({"type": "tool_result", "id": call["id"], "rows": []})
        await socket.receive("agent_run")
        await desk.rest.post(f"/agents/runs/{run}/cancel")
        assert (await socket.receive("agent_cancel"))["run_id"] == run
        assert (await desk.see(run))["state"] == "cancelled"


@pytest.mark.parametrize("put_off", [False, True])
async def test_a_run_without_a_worker_is_cancelled_at_once(desk: DeviceOwner, put_off: bool) -> None:
    agent = await desk.agent()
    not_before = timezone.now() + 600 * SECOND if put_off else None
    run = await db.run(lambda: create_run(Agent.objects.get(pk=agent), not_before=not_before))
    answer = await desk.rest.post(f"/agents/runs/{run.pk}/cancel")
    assert (answer.json()["state"], answer.json()["status"]) == ("cancelled", "error")


async def test_a_run_whose_worker_was_killed_is_cancelled_before_its_lease_ends(
    desk: DeviceOwner, provider: Provider, stack: Stack
) -> None:
    hold = Hold()
    provider.script(hold)
    desk.write("one.md", "do call Ada")
    model = {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": provider.url}
    async with connected(desk):
        agent = await desk.agent()
        run = str((await db.run(lambda: create_run(Agent.objects.get(pk=agent)))).pk)
        doomed = await asyncio.to_thread(start_worker, stack, run, **model)
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
        assert doomed.process is not None
        doomed.process.kill()
        await desk.rest.post(f"/agents/runs/{run}/cancel")
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
        assert seen["state"] == "cancelled"
        # With a minute's lease it would have had it still.
        assert timezone.now() < (await db.run(Run.objects.get, pk=run)).created_at + 40 * SECOND


async def test_a_run_ends_at_its_deadline_while_the_model_thinks(
    desk: DeviceOwner, provider: Provider
) -> None:
    hold = Hold()
    provider.script(hold)
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        run = await _with_deadline(agent)
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert (seen["state"], seen["journal"][-1]["code"]) == ("timeout", "deadline")
    assert await asyncio.to_thread(hold.gone.wait, TIMEOUT_S)


async def test_a_run_ends_at_its_deadline_while_its_device_is_silent(desk: DeviceOwner) -> None:
    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await _with_deadline(agent)
        assert (await socket.receive("agent_cancel"))["run_id"] == run
    seen = await desk.see(run)
    assert (seen["state"], seen["journal"][-1]["code"]) == ("timeout", "deadline")


async def _with_deadline(agent: str) -> str:
    def make() -> str:
        run = create_run(
            Agent.objects.get(pk=agent), deadline_at=timezone.now() + 3 * SECOND, enqueued_at=timezone.now()
        )
        runs.wake_workers()
        return str(run.pk)

    return await db.run(make)


def _put_off(run: Run) -> None:
    assert run_release.retry_later(claim_run(run), "model_unavailable")


def _hanging(run: Run) -> None:
    claim_run(run)


@pytest.mark.parametrize("how", [_put_off, _hanging])
def test_the_sweep_ends_runs_past_their_deadline(db: None, how: Callable[[Run], None]) -> None:
    run = create_run(create_agent())
    how(run)
    change(run, deadline_at=timezone.now() - 10 * SECOND)
    assert runs.sweep()["overdue"] == 1
    assert (seen(run).state, codes(run)[-1]) == (State.TIMEOUT, "deadline")
    assert claimed_runs.claim(run.pk) is None


def test_the_sweep_ends_cancelled_runs_that_no_worker_ends(claimed: ClaimedRun) -> None:
    run = seen(claimed)
    runs.cancel(run=run)
    assert runs.sweep()["overdue"] == 0  # its worker is given a moment
    change(run, cancel_requested_at=timezone.now() - 5 * SECOND)
    assert runs.sweep()["overdue"] == 1
    assert seen(run).state == State.CANCELLED
    with pytest.raises(LeaseLost):
        claimed_runs.heartbeat(claimed, renew=True)


# ── Whose clock ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.django_db
@pytest.mark.parametrize("hours", [-2, 2])
def test_a_worker_with_a_wrong_clock_neither_loses_its_run_nor_takes_another(hours: int) -> None:
    mine, anothers = create_run(create_agent()), create_run(create_agent())
    claim_run(anothers)
    with time_machine.travel(timezone.now() + dt.timedelta(hours=hours)):
        claimed = claim_run(mine)
        found = runs.sweep()
        assert (found["lost"], found["overdue"]) == (0, 0)
        assert 7_100 < claimed.seconds_to_deadline <= 7_200
        assert claimed_runs.heartbeat(claimed, renew=True)
        waiting = create_run(create_agent(), not_before=db.clock() + 60 * SECOND)
        assert claimed_runs.claim(waiting.pk) is None
    now = timezone.now()
    for run in (mine, anothers):
        until = seen(run).lease_until
        assert until is not None and abs(until - now - claimed_runs.lease_duration()) < 30 * SECOND
    assert runs.sweep()["lost"] == 0
