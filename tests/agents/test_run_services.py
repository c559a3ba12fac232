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
from adiuva.devices import outbox
from adiuva.devices.link import OutcomeUnknown
from adiuva.devices.models import Device, OutboxRecord
from adiuva.devices.protocol import ToolResultBody
from agents import journal, lease, runs, services
from agents.journal import Entry, Kind
from agents.lease import Job, LeaseLost
from agents.models import Agent, Run, Source
from tests.agents.factories import a_device, a_run, an_agent, answered, claimed, kept, read, settle

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


def lose(run: Run) -> None:
    """Time passes, and its worker does not renew the lease."""
    Run.objects.filter(pk=run.pk).update(lease_until=timezone.now() - dt.timedelta(seconds=1))


def seen(run: Run) -> Run:
    return Run.objects.get(pk=run.pk)


def codes(run: Run) -> list[str]:
    return [event["code"] for event in journal.read(run)]


@pytest.fixture
def job(db: None) -> Job:
    agent = an_agent()
    a_device(agent)
    return claimed(a_run(agent))


def run_of(job: Job) -> Run:
    return Run.objects.get(pk=job.run_id)


def test_of_many_workers_one_gets_a_run(committed_db: str) -> None:
    run = a_run(an_agent())
    got = [job for job in at_once(6, lambda: lease.claim(run.pk)) if job is not None]
    assert len(got) == 1 and isinstance(got[0], Job)
    assert (seen(run).fence, seen(run).attempt) == (1, 1)


def test_of_many_starts_one_makes_a_run_and_the_others_name_it(committed_db: str) -> None:
    agent = an_agent()
    got = at_once(6, lambda: runs.start(agent=agent))
    (made,) = [each for each in got if isinstance(each, Run)]
    others = [each for each in got if isinstance(each, runs.RunIsLive)]
    assert len(others) == 5
    assert {error.extra["run_id"] for error in others} == {str(made.pk)}
    assert Run.objects.filter(agent_ref=agent.pk).count() == 1


def test_a_run_that_starts_while_its_agent_is_deleted_is_not_left_alive(committed_db: str) -> None:
    agent = an_agent()
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


def test_an_old_worker_writes_nothing(db: None) -> None:
    agent = an_agent()
    a_device(agent)
    run = a_run(agent)
    old = claimed(run)
    lose(run)
    runs.sweep()
    new = claimed(run)
    before = Run.objects.filter(pk=run.pk).values().get(), len(journal.read(run))
    tries: list[Callable[[], object]] = [
        lambda: lease.count(old, seen=1, entries=[Entry(Kind.NOTE)]),
        lambda: kept(old, "a"),
        lambda: settle(old, answered(uuid.uuid4())),
        lambda: lease.pulse(old, renew=True),
        lambda: lease.pulse(old, renew=False),
        lambda: lease.wait_for_device(old, epoch=None),
        lambda: lease.finish(old),
    ]
    for attempt in tries:
        with pytest.raises(LeaseLost):
            attempt()
    assert (Run.objects.filter(pk=run.pk).values().get(), len(journal.read(run))) == before
    assert not OutboxRecord.objects.filter(source_run=run.pk).exists()
    assert lease.finish(new).state == State.SUCCESS


def test_a_lost_run_is_done_by_the_next_worker_and_doubles_nothing(db: None) -> None:
    agent = an_agent()
    a_device(agent)
    run = a_run(agent)
    first = claimed(run)
    ids = kept(first, "call Ada", "write the offer")
    settle(first, answered(ids[0]))
    lose(run)
    assert runs.sweep()["lost"] == 1
    assert seen(run).state == State.QUEUED
    second = claimed(run)
    waiting = outbox.waiting(cipher=second.cipher, user_id=second.user_id, run_id=run.pk)
    assert [record.id for record in waiting] == ids[1:]
    settle(second, answered(*ids[1:]))
    assert kept(second, "call Ada", "write the offer") == []  # the same things found again are known
    assert lease.finish(second).items_created == 2


def test_workers_that_keep_dying_end_a_run_in_an_error(db: None) -> None:
    run = a_run(an_agent())
    for _ in range(runs.MOST_DEATHS):
        claimed(run)
        lose(run)
        runs.sweep()
    assert (seen(run).state, seen(run).attempt) == (State.ERROR, runs.MOST_DEATHS)
    assert codes(run)[-1] == "workers_lost"
    assert lease.claim(run.pk) is None


def test_a_lease_that_is_renewed_is_not_lost(job: Job) -> None:
    lose(run_of(job))
    assert lease.pulse(job, renew=True)
    assert runs.sweep()["lost"] == 0


@pytest.mark.parametrize("state", [State.QUEUED, State.WAITING_DEVICE])
def test_a_run_that_nobody_holds_is_cancelled_at_once(db: None, state: Run.State) -> None:
    run = a_run(an_agent(), state=state)
    assert runs.cancel(run=run).state == State.CANCELLED
    assert lease.claim(run.pk) is None
    assert codes(run) == ["cancelled"]


def test_a_run_that_a_worker_holds_is_asked_to_end(job: Job) -> None:
    assert lease.pulse(job, renew=False)
    assert runs.cancel(run=run_of(job)).state == State.RUNNING
    assert not lease.pulse(job, renew=False)
    lease.finish(job, State.CANCELLED, "cancelled")
    assert run_of(job).status == "error"


@pytest.mark.parametrize("state", [State.SUCCESS, State.PARTIAL, State.ERROR, State.CANCELLED, State.TIMEOUT])
def test_a_run_that_ended_stays_as_it_ended(db: None, state: Run.State) -> None:
    run = a_run(an_agent(), state=state)
    assert runs.cancel(run=run).state == state
    assert codes(run) == []


def test_a_cancel_is_not_forgotten_when_the_device_or_the_worker_goes(db: None) -> None:
    agent = an_agent()
    device_gone, worker_gone = a_run(agent), a_run(an_agent())
    job = claimed(device_gone)
    runs.cancel(run=device_gone)
    lease.wait_for_device(job, epoch=None)
    claimed(worker_gone)
    runs.cancel(run=worker_gone)
    lose(worker_gone)
    runs.sweep()
    assert (seen(device_gone).state, seen(worker_gone).state) == (State.CANCELLED, State.CANCELLED)


def test_what_a_cancelled_run_did_not_deliver_is_the_next_runs_to_deliver(job: Job) -> None:
    ids = kept(job, "call Ada")
    lease.finish(job, State.CANCELLED, "cancelled")
    assert codes(run_of(job))[-2:] == ["records_left_over", "cancelled"]
    following = claimed(a_run(Agent.objects.get(pk=job.agent_id)))
    waiting = outbox.waiting(cipher=following.cipher, user_id=following.user_id, run_id=following.run_id)
    assert [record.id for record in waiting] == ids
    assert "records_taken_over" in codes(run_of(following))


def test_another_agents_records_are_not_taken_over(job: Job) -> None:
    kept(job, "call Ada")
    lease.finish(job, State.CANCELLED, "cancelled")
    other = claimed(a_run(an_agent(job.user_id)))
    assert outbox.count_waiting(other.run_id) == 0


def test_a_run_that_waits_is_woken_by_its_device_alone(db: None) -> None:
    agent = an_agent()
    run = a_run(agent)
    lease.wait_for_device(claimed(run), epoch=None)
    assert (seen(run).state, seen(run).attempt) == (State.WAITING_DEVICE, 0)
    assert runs.wake(user_id=agent.user_id, device_id="another") == 0
    assert runs.wake(user_id=agent.user_id, device_id=agent.device_id) == 1
    assert seen(run).state == State.QUEUED


def test_a_device_that_is_back_already_wakes_a_run_that_just_lost_it(
    db: None, django_capture_on_commit_callbacks: Any
) -> None:
    agent = an_agent()
    run = a_run(agent)
    device = a_device(agent)
    Device.objects.filter(pk=device.pk).update(epoch=2, lease_until=timezone.now() + dt.timedelta(minutes=1))
    for lost, state in ((2, State.WAITING_DEVICE), (1, State.QUEUED)):
        Run.objects.filter(pk=run.pk).update(state=State.QUEUED)
        job = claimed(run)
        with django_capture_on_commit_callbacks() as callbacks:
            lease.wait_for_device(job, epoch=lost)
        callbacks[0]()
        assert seen(run).state == state


def test_the_sweep_finds_lost_nudges_and_devices_that_nobody_announced(db: None) -> None:
    old = timezone.now() - dt.timedelta(minutes=5)
    queued = a_run(an_agent(), nudged_at=old)
    agent = an_agent()
    waiting = a_run(agent, state=State.WAITING_DEVICE)
    device = a_device(agent)
    Device.objects.filter(pk=device.pk).update(lease_until=timezone.now() + dt.timedelta(minutes=1))
    found = runs.sweep()
    assert found["nudged"] >= 1 and found["woken"] >= 1  # other tests leave runs as well
    assert seen(queued).nudged_at > old
    assert seen(waiting).state == State.QUEUED


def test_a_device_that_never_comes_ends_a_run_after_a_month(db: None) -> None:
    run = a_run(an_agent(), state=State.WAITING_DEVICE)
    Run.objects.filter(pk=run.pk).update(created_at=timezone.now() - dt.timedelta(days=31))
    assert runs.sweep()["expired"] == 1
    assert (seen(run).state, codes(run)) == (State.TIMEOUT, ["device_never_came"])


def test_an_agent_that_is_deleted_during_its_run_takes_no_more_documents(job: Job) -> None:
    services.delete(agent=Agent.objects.get(pk=job.agent_id))
    assert not lease.pulse(job, renew=False)
    with pytest.raises(lease.AgentGone):
        kept(job, "call Ada")
    assert lease.finish(job, State.CANCELLED, "cancelled").agent_ref == job.agent_id


def test_a_user_who_is_deleted_during_a_run_ends_it_without_a_trace(job: Job) -> None:
    kept(job, "call Ada")
    accounts.delete_account(user=User.objects.get(pk=job.user_id))
    for attempt in (lambda: kept(job, "b"), lambda: lease.see(job), lambda: lease.pulse(job, renew=True)):
        with pytest.raises(LeaseLost):
            attempt()
    assert not OutboxRecord.objects.filter(user_id=job.user_id).exists()


def test_a_run_waits_for_no_device_that_its_agent_left(db: None) -> None:
    agent = an_agent()
    waiting = a_run(agent, state=State.WAITING_DEVICE)
    services.change(agent=agent, values={"device_id": "laptop"})
    assert seen(waiting).state == State.CANCELLED
    queued = a_run(agent)  # of the agent as it was
    assert lease.claim(queued.pk) is None
    assert (seen(queued).state, codes(queued)) == (State.CANCELLED, ["device_changed"])


def test_a_change_during_a_run_counts_from_the_next(job: Job) -> None:
    services.change(agent=Agent.objects.get(pk=job.agent_id), values={"prompt_template": "Other."})
    assert job.prompt_template == "Find what is to be done."
    kept(job, "call Ada", path="/a.md")
    pair = (job.source_key("/a.md"), b"hash")
    assert lease.due(job, [pair]) == [False]
    lease.finish(job)
    assert lease.due(claimed(a_run(Agent.objects.get(pk=job.agent_id))), [pair]) == [True]


def test_what_the_device_refused_or_left_open_is_in_the_run_and_known_later(job: Job) -> None:
    delivered, refused, unknown = kept(job, "a", "b", "c")
    error = ToolResultBody(id=str(refused), error="full " * 1_000)
    settle(job, {**answered(delivered), refused: error, unknown: OutcomeUnknown()}, "/a.md")
    run = lease.finish(job)
    assert (run.state, run.items_created, run.problems) == (State.PARTIAL, 1, 2)
    found = journal.problems([run])[run.pk]
    assert [(event["kind"], event["source"]) for event in found] == [
        ("record_refused", "/a.md"),
        ("record_uncertain", "/a.md"),
    ]
    assert len(found[0]["message"]) <= 1_000
    following = claimed(a_run(Agent.objects.get(pk=job.agent_id)))
    assert kept(following, "a", "b", "c", "d") != []
    assert outbox.count_waiting(following.run_id) == 1  # only what is new


def test_counts_add_up_at_the_end_and_a_gap_is_no_success(job: Job) -> None:
    lease.count(job, seen=3, done=1, unchanged=1)
    run = lease.finish(job)
    assert (run.state, run.files_seen, run.files_done, run.files_failed) == (State.PARTIAL, 3, 3, 2)
    assert run.items_processed == 0
    assert "never_read" in codes(run)


def test_a_document_costs_few_queries(job: Job) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    kept(job, "first")
    with CaptureQueriesContext(connection) as queries:
        read(job, lease.Document("a", "/a", "text", job.source_key("/a"), b"hash"))
    statements = [
        query["sql"]
        for query in queries
        if "SAVEPOINT" not in query["sql"] and '"accounts_' not in query["sql"]  # a key is read once a minute
    ]
    assert len(statements) == 5  # the run, the ledger, in hand no more, the run again, the journal
    assert Source.objects.filter(agent_id=job.agent_id).count() == 2


def test_the_problems_of_a_page_of_runs_are_one_query(db: None) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    jobs = [claimed(a_run(an_agent())) for _ in range(1)]
    owner = jobs[0].user_id
    jobs += [claimed(a_run(an_agent(owner))) for _ in range(4)]
    for number, job in enumerate(jobs):
        entries = [Entry(Kind.SOURCE_FAILED, f"code-{place}") for place in range(number * 20)]
        lease.count(job, entries=entries)
    found = list(Run.objects.of(owner))
    with CaptureQueriesContext(connection) as queries:
        problems = journal.problems(found)
    assert sum('"accounts_' not in query["sql"] for query in queries) == 1
    assert sorted(len(each) for each in problems.values()) == [0, 20, 40, 50, 50]
    assert all(
        [e["code"] for e in each] == [f"code-{n}" for n in range(len(each))] for each in problems.values()
    )
