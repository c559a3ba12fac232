"""A run is one worker's at a time, ends once, and loses nothing that was found."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from adiuva.accounts import services as accounts
from adiuva.accounts.models import User
from adiuva.core.errors import NotFound
from adiuva.core.leases import LeaseLost
from adiuva.devices import outbox
from adiuva.devices.link import OutcomeUnknown
from adiuva.devices.models import Device, OutboxRecord
from adiuva.devices.protocol import ToolResultBody
from agents import claimed_runs, journal, ledger, result_commits, run_release, runs, schedules, services
from agents.claimed_runs import ClaimedRun
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Agent, Run, Source, Watch
from agents.record_validation import Record
from agents.result_commits import Extracted
from agents.run_watches import ChatPlace
from tests.agents.factories import (
    accepted_by_device,
    claim_run,
    commit_answers,
    commit_tasks,
    create_agent,
    create_device,
    create_run,
    lose_worker,
)
from tests.factories import a_process

State = Run.State


def at_once(count: int, what: Callable[[], Any]) -> list[Any]:
    """The results, or exceptions, of as many threads that begin together."""
    together = Barrier(count)

    def one(_: int) -> Any:
        try:
            together.wait(60)
            return what()
        except Exception as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def seen(run: Run) -> Run:
    return Run.objects.get(pk=run.pk)


def codes(run: Run) -> list[str]:
    return [event["code"] for event in journal.read(run)]


def run_of(claimed: ClaimedRun) -> Run:
    return Run.objects.get(pk=claimed.run_id)


def test_only_one_of_many_workers_claims_a_run(committed_db: str) -> None:
    run = create_run(create_agent())
    got = [claimed for claimed in at_once(6, lambda: claimed_runs.claim(run.pk)) if claimed is not None]
    assert len(got) == 1 and isinstance(got[0], ClaimedRun)
    assert (seen(run).fence, seen(run).attempt) == (1, 1)


def test_only_one_of_many_starts_makes_a_run_and_the_others_name_it(committed_db: str) -> None:
    agent = create_agent()
    got = at_once(6, lambda: runs.start(agent=agent))
    (made,) = [each for each in got if isinstance(each, Run)]
    others = [each for each in got if isinstance(each, runs.RunIsLive)]
    assert len(others) == 5
    assert {error.extra["run_id"] for error in others} == {str(made.pk)}
    assert Run.objects.filter(agent_ref=agent.pk).count() == 1


def test_an_agent_runs_once_though_chats_rest_and_its_schedule_start_it_together(committed_db: str) -> None:
    agent = create_agent(schedule_cron="0 8 * * *")
    Agent.objects.filter(pk=agent.pk).update(next_run_at=timezone.now() - dt.timedelta(minutes=1))
    chat = ChatPlace(agent.user_id, uuid.uuid4(), device_id="desk")
    from_chat: list[Any] = []

    def start_from_chat() -> Run:
        from_chat.append(runs.start(agent=agent, place=chat))
        return from_chat[-1]

    ways = iter([start_from_chat, lambda: runs.start(agent=agent), schedules.tick] * 10)
    got = at_once(30, lambda: next(ways)())
    failed = [each for each in got if isinstance(each, Exception)]
    assert not [each for each in failed if not isinstance(each, runs.RunIsLive)]
    (run,) = Run.objects.filter(agent_ref=agent.pk)
    by_hand = [each for each in got if isinstance(each, Run)]
    assert [each.pk for each in by_hand] == ([run.pk] if run.trigger == Run.Trigger.MANUAL else [])
    assert Watch.objects.filter(run=run).count() == len(from_chat)


def test_a_run_started_while_its_agent_is_deleted_is_ended(committed_db: str) -> None:
    agent = create_agent()
    steps = iter([lambda: runs.start(agent=agent), lambda: services.delete(agent=agent)] * 2)
    got = at_once(4, lambda: next(steps)())
    assert not [
        each
        for each in got
        if isinstance(each, Exception) and not isinstance(each, NotFound | runs.RunIsLive)
    ]
    assert not Agent.objects.filter(pk=agent.pk).exists()
    for run in Run.objects.filter(agent_ref=agent.pk):
        # A worker may be quicker than the deletion; it finds the agent gone.
        assert run.state in (State.CANCELLED, State.RUNNING, State.WAITING_DEVICE, State.ERROR)
        assert run.agent_id is None


def test_a_worker_that_lost_its_lease_writes_nothing(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    run = create_run(agent)
    old = claim_run(run)
    lose_worker(run)
    runs.sweep()
    new = claim_run(run)
    before = Run.objects.filter(pk=run.pk).values().get(), len(journal.read(run))
    tries: list[Callable[[], object]] = [
        lambda: claimed_runs.add_counts(old, seen=1, entries=[JournalEntry(EventKind.NOTE)]),
        lambda: commit_tasks(old, "a"),
        lambda: commit_answers(old, accepted_by_device(uuid.uuid4())),
        lambda: claimed_runs.heartbeat(old, renew=True),
        lambda: claimed_runs.heartbeat(old, renew=False),
        lambda: run_release.wait_for_device(old, epoch=None),
        lambda: run_release.finish(old),
    ]
    for attempt in tries:
        with pytest.raises(LeaseLost):
            attempt()
    assert (Run.objects.filter(pk=run.pk).values().get(), len(journal.read(run))) == before
    assert not OutboxRecord.objects.filter(source_run=run.pk).exists()
    assert run_release.finish(new).state == State.SUCCESS


def test_a_lost_run_is_finished_by_the_next_worker_without_duplicates(db: None) -> None:
    agent = create_agent()
    create_device(agent)
    run = create_run(agent)
    first = claim_run(run)
    ids = commit_tasks(first, "call Ada", "write the offer")
    commit_answers(first, accepted_by_device(ids[0]))
    lose_worker(run)
    assert runs.sweep()["lost"] == 1
    assert seen(run).state == State.QUEUED
    second = claim_run(run)
    waiting = outbox.waiting(cipher=second.cipher, user_id=second.user_id, run_id=run.pk)
    assert [record.id for record in waiting] == ids[1:]
    commit_answers(second, accepted_by_device(*ids[1:]))
    assert commit_tasks(second, "call Ada", "write the offer") == []  # the same things found again are known
    assert run_release.finish(second).items_created == 2


def test_a_run_whose_workers_keep_crashing_without_progress_ends_in_an_error(db: None) -> None:
    run = create_run(create_agent())
    for _ in range(runs.MAX_WORKERS_LOST):
        claim_run(run)
        lose_worker(run)
        runs.sweep()
    assert (seen(run).state, seen(run).attempt) == (State.ERROR, runs.MAX_WORKERS_LOST)
    assert codes(run)[-1] == "workers_lost"
    assert claimed_runs.claim(run.pk) is None


def test_a_run_with_a_renewed_lease_is_not_reclaimed(claimed: ClaimedRun) -> None:
    lose_worker(run_of(claimed))
    assert claimed_runs.heartbeat(claimed, renew=True)
    assert runs.sweep()["lost"] == 0


@pytest.mark.parametrize("state", [State.QUEUED, State.WAITING_DEVICE])
def test_a_run_that_nobody_holds_is_cancelled_at_once(db: None, state: Run.State) -> None:
    run = create_run(create_agent(), state=state)
    assert runs.cancel(run=run).state == State.CANCELLED
    assert claimed_runs.claim(run.pk) is None
    assert codes(run) == ["cancelled"]


def test_a_run_that_a_worker_holds_is_asked_to_end(claimed: ClaimedRun) -> None:
    assert claimed_runs.heartbeat(claimed, renew=False)
    assert runs.cancel(run=run_of(claimed)).state == State.RUNNING
    assert not claimed_runs.heartbeat(claimed, renew=False)
    run_release.finish(claimed, State.CANCELLED, "cancelled")
    assert run_of(claimed).status == "error"


@pytest.mark.parametrize("state", [State.SUCCESS, State.PARTIAL, State.ERROR, State.CANCELLED, State.TIMEOUT])
def test_a_run_that_ended_stays_as_it_ended(db: None, state: Run.State) -> None:
    run = create_run(create_agent(), state=state)
    assert runs.cancel(run=run).state == state
    assert codes(run) == []


def test_a_cancel_survives_the_loss_of_the_device_or_worker(db: None) -> None:
    agent = create_agent()
    device_gone, worker_gone = create_run(agent), create_run(create_agent())
    claimed = claim_run(device_gone)
    runs.cancel(run=device_gone)
    run_release.wait_for_device(claimed, epoch=None)
    claim_run(worker_gone)
    runs.cancel(run=worker_gone)
    lose_worker(worker_gone)
    runs.sweep()
    assert (seen(device_gone).state, seen(worker_gone).state) == (State.CANCELLED, State.CANCELLED)


def test_the_next_run_adopts_records_that_a_cancelled_run_did_not_deliver(claimed: ClaimedRun) -> None:
    ids = commit_tasks(claimed, "call Ada")
    run_release.finish(claimed, State.CANCELLED, "cancelled")
    assert codes(run_of(claimed))[-2:] == ["records_left_over", "cancelled"]
    following = claim_run(create_run(Agent.objects.get(pk=claimed.agent_id)))
    waiting = outbox.waiting(cipher=following.cipher, user_id=following.user_id, run_id=following.run_id)
    assert [record.id for record in waiting] == ids
    assert "records_taken_over" in codes(run_of(following))


def test_records_of_another_agent_are_not_adopted(claimed: ClaimedRun) -> None:
    commit_tasks(claimed, "call Ada")
    run_release.finish(claimed, State.CANCELLED, "cancelled")
    other = claim_run(create_run(create_agent(claimed.user_id)))
    assert outbox.count_waiting(other.run_id) == 0


def test_only_its_own_device_resumes_a_waiting_run(db: None) -> None:
    agent = create_agent()
    run = create_run(agent)
    run_release.wait_for_device(claim_run(run), epoch=None)
    assert (seen(run).state, seen(run).attempt) == (State.WAITING_DEVICE, 0)
    assert runs.resume_waiting(user_id=agent.user_id, device_id="another") == 0
    assert runs.resume_waiting(user_id=agent.user_id, device_id=agent.device_id) == 1
    assert seen(run).state == State.QUEUED


def test_a_run_that_lost_a_device_which_is_back_already_is_resumed(
    db: None, django_capture_on_commit_callbacks: Any
) -> None:
    agent = create_agent()
    run = create_run(agent)
    device = create_device(agent)
    Device.objects.filter(pk=device.pk).update(epoch=2, process=a_process())
    for lost, state in ((2, State.WAITING_DEVICE), (1, State.QUEUED)):
        Run.objects.filter(pk=run.pk).update(state=State.QUEUED)
        claimed = claim_run(run)
        with django_capture_on_commit_callbacks() as callbacks:
            run_release.wait_for_device(claimed, epoch=lost)
        callbacks[0]()
        assert seen(run).state == state


def test_the_sweep_finds_unannounced_devices(db: None) -> None:
    agent = create_agent()
    waiting = create_run(agent, state=State.WAITING_DEVICE)
    device = create_device(agent)
    Device.objects.filter(pk=device.pk).update(process=a_process())
    assert runs.sweep()["resumed"] >= 1  # other tests leave runs as well
    assert seen(waiting).state == State.QUEUED


def test_runs_whose_device_is_elsewhere_do_not_stand_in_the_way_of_one_whose_device_is_here(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run.objects.filter(state=State.WAITING_DEVICE).delete()  # of other tests
    monkeypatch.setattr(runs, "_BATCH_SIZE", 1)
    process = a_process()
    for name, other in [("desk", "phone"), ("phone", "desk")] * 10:
        away = create_agent(device_id=name)
        create_run(away, state=State.WAITING_DEVICE)
        Device.objects.create(user_id=away.user_id, device_id=other, process=process)
    agent = create_agent()
    waiting = create_run(agent, state=State.WAITING_DEVICE)
    Device.objects.create(user_id=agent.user_id, device_id="desk", process=process)
    assert runs.sweep()["resumed"] == 1
    assert seen(waiting).state == State.QUEUED


@pytest.mark.parametrize(
    ("state", "code"),
    [(State.WAITING_DEVICE, "device_never_came"), (State.AWAITING_BUDGET, "budget_never_came")],
)
def test_a_run_that_waits_for_more_than_a_month_ends(db: None, state: State, code: str) -> None:
    now, day = timezone.now(), dt.timedelta(days=1)
    never_taken, taken = (create_run(create_agent(), state=state) for _ in range(2))
    Run.objects.filter(pk=never_taken.pk).update(created_at=now - 31 * day)
    Run.objects.filter(pk=taken.pk).update(created_at=now - 60 * day, attempted_at=now - 31 * day)
    assert runs.sweep()["expired"] == 0  # a month may have 31 days
    Run.objects.filter(pk=never_taken.pk).update(created_at=now - 33 * day)
    Run.objects.filter(pk=taken.pk).update(attempted_at=now - 33 * day)
    assert runs.sweep()["expired"] == 2
    for run in (never_taken, taken):
        assert (seen(run).state, codes(run)) == (State.TIMEOUT, [code])
        [problem] = journal.problems_of([seen(run)])[run.pk]
        assert journal.problem_text(problem) not in ("", code)


def test_no_document_is_committed_for_a_deleted_agent(claimed: ClaimedRun) -> None:
    services.delete(agent=Agent.objects.get(pk=claimed.agent_id))
    assert not claimed_runs.heartbeat(claimed, renew=False)
    with pytest.raises(claimed_runs.AgentGone):
        commit_tasks(claimed, "call Ada")
    assert run_release.finish(claimed, State.CANCELLED, "cancelled").agent_ref == claimed.agent_id


def test_a_user_who_is_deleted_during_a_run_ends_it_without_a_trace(claimed: ClaimedRun) -> None:
    commit_tasks(claimed, "call Ada")
    accounts.delete_account(user=User.objects.get(pk=claimed.user_id))
    for attempt in (
        lambda: commit_tasks(claimed, "b"),
        lambda: claimed_runs.current_run(claimed),
        lambda: claimed_runs.heartbeat(claimed, renew=True),
    ):
        with pytest.raises(LeaseLost):
            attempt()
    assert not OutboxRecord.objects.filter(user_id=claimed.user_id).exists()


def test_a_run_does_not_wait_for_a_device_that_its_agent_no_longer_reads(db: None) -> None:
    agent = create_agent()
    waiting = create_run(agent, state=State.WAITING_DEVICE)
    services.update(agent=agent, values={"device_id": "laptop"})
    assert seen(waiting).state == State.CANCELLED
    queued = create_run(agent)  # of the agent as it was
    assert claimed_runs.claim(queued.pk) is None
    assert (seen(queued).state, codes(queued)) == (State.CANCELLED, ["device_changed"])


def test_a_change_of_the_agent_counts_from_the_next_run(claimed: ClaimedRun) -> None:
    services.update(agent=Agent.objects.get(pk=claimed.agent_id), values={"prompt_template": "Other."})
    assert claimed.prompt_template == "Find what is to be done."
    commit_tasks(claimed, "call Ada", path="/a.md")
    pair = (claimed.source_key("/a.md"), b"hash")
    assert ledger.needs_reading(claimed, [pair]) == [False]
    run_release.finish(claimed)
    assert ledger.needs_reading(claim_run(create_run(Agent.objects.get(pk=claimed.agent_id))), [pair]) == [
        True
    ]


def test_refused_and_uncertain_records_are_problems_of_the_run_and_stay_known(claimed: ClaimedRun) -> None:
    delivered, refused, unknown = commit_tasks(claimed, "a", "b", "c")
    error = ToolResultBody(id=str(refused), error="full " * 1_000)
    commit_answers(
        claimed, {**accepted_by_device(delivered), refused: error, unknown: OutcomeUnknown()}, "/a.md"
    )
    run = run_release.finish(claimed)
    assert (run.state, run.items_created, run.problems) == (State.PARTIAL, 1, 2)
    found = journal.problems_of([run])[run.pk]
    assert [(event["kind"], event["source"]) for event in found] == [
        ("record_refused", "/a.md"),
        ("record_uncertain", "/a.md"),
    ]
    assert len(found[0]["message"]) <= 1_000
    following = claim_run(create_run(Agent.objects.get(pk=claimed.agent_id)))
    assert commit_tasks(following, "a", "b", "c", "d") != []
    assert outbox.count_waiting(following.run_id) == 1  # only what is new


def test_counts_add_up_at_the_end_and_missing_files_are_no_success(claimed: ClaimedRun) -> None:
    claimed_runs.add_counts(claimed, seen=3, done=1, unchanged=1)
    run = run_release.finish(claimed)
    assert (run.state, run.files_seen, run.files_done, run.files_failed) == (State.PARTIAL, 3, 3, 2)
    assert run.items_processed == 0
    assert "never_read" in codes(run)


def test_a_document_costs_few_queries(claimed: ClaimedRun) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    def statements(name: str, *records: Record) -> int:
        document = SourceDocument(name, name, "text", claimed.source_key(name), name.encode())
        identity = ledger.identify(claimed, [document])[document.key]
        with CaptureQueriesContext(connection) as queries:
            result_commits.commit_results(claimed, [Extracted(document, records, identity=identity)])
        return sum(
            "SAVEPOINT" not in query["sql"]
            and '"accounts_' not in query["sql"]  # a key is read once a minute
            for query in queries
        )

    commit_tasks(claimed, "first")
    # One locks the run; one writes ledger, marks of sources being read, counts of the run, and journal.
    assert statements("/a") == 2
    # With a record, two more: one reads what was found before, one adds to the outbox.
    assert statements("/b", Record("tasks", {"title": "call Ada"})) == 4
    assert Source.objects.filter(agent_id=claimed.agent_id).count() == 3


def test_the_problems_of_a_page_of_runs_are_one_query(db: None) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    jobs = [claim_run(create_run(create_agent())) for _ in range(1)]
    owner = jobs[0].user_id
    jobs += [claim_run(create_run(create_agent(owner))) for _ in range(4)]
    for number, claimed in enumerate(jobs):
        entries = [JournalEntry(EventKind.SOURCE_FAILED, f"code-{place}") for place in range(number * 20)]
        claimed_runs.add_counts(claimed, entries=entries)
    found = list(Run.objects.of(owner))
    with CaptureQueriesContext(connection) as queries:
        problems = journal.problems_of(found)
    assert sum('"accounts_' not in query["sql"] for query in queries) == 1
    assert sorted(len(problems[run.pk]) for run in found) == [0, 20, 40, 50, 50]
    assert all(
        [e["code"] for e in each] == [f"code-{n}" for n in range(len(each))] for each in problems.values()
    )
