"""A mailbox becomes records on a device: real web, device and socket, a provider on loopback; the model is scripted."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone
from pytest_django import Settings

from adiuva import llm
from adiuva.core import db
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink
from adiuva.devices.tables import TABLES
from agents import delivery, result_commits, run_reports, runner, runs, schedules, services, undo
from agents.claimed_runs import ClaimedRun
from agents.journeys import samples, trial
from agents.journeys.interview import AgentProposal
from agents.mailbox import sample_messages
from agents.models import Agent, AgentCursor, AgentType, Run, Source
from agents.result_commits import Result
from billing import plans
from billing.models import Allowance, Hold, Plan
from chat.tools import agent_texts
from integrations import connections
from integrations.models import Connection, Health
from integrations.models import Provider as MailProvider
from memory.models import EntrySource, SourceKind
from tests.agents.factories import create_run
from tests.agents.mailbox_scenario import (
    TIMEOUT_S,
    Inbox,
    connect_account,
    create_inbox,
    create_mail_agent,
    listed_projects,
    raw_mail,
    tasks_from_lines,
)
from tests.factories import somebody
from tests.fakes.google import Google
from tests.fakes.graph import Graph
from tests.fakes.identity import Identity, Refuse
from tests.fakes.mailboxes import Change, Cut, Fail
from tests.fakes.provider import Fail as ModelFail
from tests.fakes.provider import Hold as HoldStep
from tests.fakes.provider import Provider, Say

State = Run.State


@pytest.fixture(scope="module")
def google() -> Iterator[Google]:
    with Google() as server:
        yield server


@pytest.fixture(scope="module")
def _identity() -> Iterator[Identity]:
    with Identity() as identity:
        yield identity


@pytest.fixture
def identity(_identity: Identity) -> Identity:
    _identity.reset()
    return _identity


@pytest.fixture(autouse=True)
def configured(
    settings: Any,
    google: Google,
    identity: Identity,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Workers of other tests do not know these providers.
    monkeypatch.setattr(runs, "wake_workers", lambda: None)
    settings.GOOGLE = {**identity.google(), "api": google.url}
    settings.MODEL = provider.settings()
    provider.default = tasks_from_lines


@pytest.fixture(scope="module")
def graph() -> Iterator[Graph]:
    with Graph() as server:
        yield server


@pytest.fixture
async def inbox(web: str, google: Google, tmp_path: Path) -> AsyncIterator[Inbox]:
    made = await create_inbox(web, google, tmp_path, mails=5)
    yield made
    await db.run(made.end)


class Died(BaseException):
    """What no handler of a run's takes, as a worker that is killed."""


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.02)


def steps(*numbers: int) -> list[str]:
    return sorted(f"step {number}" for number in numbers)


# ── Each message once ───────────────────────────────────────────────────────────────────────────────────


async def test_each_message_reaches_the_device_once_through_all_faults(
    web: str, google: Google, tmp_path: Path, provider: Provider
) -> None:
    many = 80
    inbox = await create_inbox(web, google, tmp_path, mails=many)
    box = inbox.box
    box.page, box.latency_s = 30, 0.005
    box.every(41, "", Fail(500))
    box.every(59, "", Cut())
    box.fault("", *[Change(dict)] * 60, Fail(429, retry_after=0.2))
    async with inbox.device():
        run = await inbox.run()
        assert (run.state, run.items_created, run.problems) == (State.SUCCESS, many, 0)
        assert sorted(inbox.titles()) == steps(*range(many))
        calls, asked = len(provider.chats), len(box.asked)
        run = await inbox.run()
        assert (run.state, run.verdict, run.items_created) == (State.SUCCESS, "empty", 0)
    assert len(provider.chats) == calls == many
    assert [path.partition("?")[0].rpartition("/")[2] for path in box.asked[asked:]] == ["history"]
    assert box.peak <= 4
    assert not box.early


async def test_outlook_and_teams_are_read_by_the_same_run(
    web: str, graph: Graph, settings: Any, identity: Identity, tmp_path: Path
) -> None:
    settings.MICROSOFT = {**identity.microsoft(), "api": graph.api}
    person = await db.run(somebody)
    box = graph.mailbox(person.email)
    box.add("Mail", "Hello,\n\ndo step 1\n\nBea")
    post = box.post("Sales", "General", "<p>do step 2</p>")
    box.post("Sales", "General", "<p>do step 3</p>", reply_to=post)
    for provider in ("outlook", "teams"):
        await db.run(connect_account, person, box, provider)
        inbox = Inbox(web, person, box, await db.run(create_mail_agent, person, provider), tmp_path)
        for _ in range(2):
            run = await inbox.run()
            assert run.state == State.SUCCESS, await inbox.codes(run)
    async with inbox.device():
        await delivery.deliver_waiting(person.id)
        await until(lambda: len(inbox.titles()) == 3)
        assert sorted(inbox.titles()) == steps(1, 2, 3)


async def test_mail_that_comes_during_a_run_is_found_by_the_next(inbox: Inbox, provider: Provider) -> None:
    def meanwhile(request: Any) -> dict[str, Any]:
        if len(inbox.box.messages) < 8:
            inbox.box.add(raw_mail(len(inbox.box.messages)))
        return tasks_from_lines(request)

    provider.default = meanwhile
    async with inbox.device():
        first = await inbox.run()
        second = await inbox.run()
        assert {first.state, second.state} == {State.SUCCESS}
        assert first.items_created == 5
        assert sorted(inbox.titles()) == steps(*range(8))


@pytest.mark.parametrize("dies_after", [0, 3, 7])
async def test_a_run_that_dies_half_way_loses_and_doubles_nothing(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    # Of ten results, what was found and what the device answered: how many are committed together depends on chance.
    results = 0

    def dying(claimed: ClaimedRun, given: Sequence[Result], *arguments: Any) -> Any:
        nonlocal results
        results += len(given)
        if results > dies_after:
            raise Died
        return results_commit(claimed, given, *arguments)

    results_commit = result_commits.commit_results
    monkeypatch.setattr(result_commits, "commit_results", dying)
    async with inbox.device():
        made = await db.run(create_run, inbox.agent)
        with pytest.raises(BaseExceptionGroup):
            await runner.execute(made.pk)
        assert (await inbox.see(made)).state == State.RUNNING
        monkeypatch.setattr(result_commits, "commit_results", results_commit)
        inbox.box.add(raw_mail(5))
        await db.run(
            Run.objects.filter(pk=made.pk).update, lease_until=timezone.now() - dt.timedelta(seconds=1)
        )
        await db.run(runs.sweep)
        await runner.execute(made.pk)
        assert (await inbox.see(made)).state == State.SUCCESS
        assert await inbox.cursor()
        assert sorted(inbox.titles()) == steps(*range(6))


async def test_the_cursor_waits_for_what_the_model_could_not_read(inbox: Inbox, provider: Provider) -> None:
    inbox.box.page = 2
    provider.default = lambda request: (
        ModelFail(400) if "step 2" in str(request.body["messages"][1]) else tasks_from_lines(request)
    )
    async with inbox.device():
        run = await inbox.run()
        assert (run.state, run.items_created, run.files_failed) == (State.PARTIAL, 4, 1)
        assert not await inbox.cursor()
        provider.default = tasks_from_lines
        run = await inbox.run()
        assert (run.state, run.items_created, run.files_unchanged) == (State.SUCCESS, 1, 4)
        assert await inbox.cursor()
        assert sorted(inbox.titles()) == steps(*range(5))


async def test_a_message_that_cannot_be_read_is_listed_and_a_changed_prompt_reads_all_again(
    inbox: Inbox, provider: Provider
) -> None:
    inbox.box.fault("/messages/m000002", Fail(400, "badRequest"))
    run = await inbox.run()
    assert (run.state, run.files_failed, run.problems) == (State.PARTIAL, 1, 1)
    assert "provider_refused" in await inbox.codes(run)
    await db.run(services.update, agent=inbox.agent, values={"prompt_template": "Find everything."})
    calls = len(provider.chats)
    run = await inbox.run()
    assert (run.state, len(provider.chats) - calls) == (State.SUCCESS, 5)
    async with inbox.device():
        await delivery.deliver_waiting(inbox.person.id)
        await until(lambda: len(inbox.titles()) == 5)
        assert sorted(inbox.titles()) == steps(*range(5))


# ── With and without a device ───────────────────────────────────────────────────────────────────────────


async def test_records_wait_for_the_first_device_that_comes_and_go_to_no_other(
    inbox: Inbox, provider: Provider
) -> None:
    run = await inbox.run()
    assert (run.state, run.items_created, run.undelivered) == (State.SUCCESS, 0, True)
    assert listed_projects(provider.chats[0]) == {}
    async with inbox.device("desk") as desk, inbox.device("phone") as phone:
        await asyncio.gather(*(delivery.deliver_waiting(inbox.person.id) for _ in range(4)))
        await until(lambda: len(inbox.titles("desk") + inbox.titles("phone")) == 5)
        assert sorted(inbox.titles("desk") + inbox.titles("phone")) == steps(*range(5))
        assert [] in (inbox.titles("desk"), inbox.titles("phone"))
        rows = [(each.store, row) for each in (desk, phone) for row in each.store.select(TABLES["tasks"])]
        origins = [store.origins([row["id"]])[row["id"]] for store, row in rows]
        assert {run_id for run_id, _ in origins} == {str(run.pk)} and len(set(origins)) == 5
        assert (await inbox.delivered(run)).items_created == 5
        await db.run(runs.sweep)
        await delivery.deliver_waiting(inbox.person.id)
        assert len(inbox.titles("desk") + inbox.titles("phone")) == 5


async def test_a_hello_has_the_worker_bring_what_waits(inbox: Inbox, worker: None) -> None:
    await inbox.run()
    async with inbox.device("desk", capabilities=()) as device:
        await until(lambda: len(inbox.titles()) == 5)
        ids = [row["id"] for row in device.store.select(TABLES["tasks"])]
        assert device.store.origins(ids) == {}  # who does not ask for origins is sent none


async def test_a_device_that_goes_during_a_run_gets_the_rest_when_it_is_back(
    inbox: Inbox, provider: Provider
) -> None:
    held = HoldStep(tasks_from_lines)
    provider.default = lambda request: (
        held if "step 3" in str(request.body["messages"][1]) else tasks_from_lines(request)
    )
    async with inbox.device():
        work = asyncio.create_task(inbox.run())
        await until(lambda: len(inbox.titles()) == 4 and held.reached.is_set())
    held.release()
    run = await work
    assert run.state == State.SUCCESS
    async with inbox.device():
        await delivery.deliver_waiting(inbox.person.id)
        assert (await inbox.delivered(run)).items_created == 5
    assert sorted(inbox.titles()) == steps(*range(5))


async def test_a_delivery_that_dies_is_taken_up_and_doubles_nothing(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await inbox.run()

    def dying(*_: Any) -> None:
        raise Died

    waits = Run.objects.filter(pk=run.pk).update
    await db.run(waits, undelivered=False)  # so that no worker of another test is called
    async with inbox.device():
        async with DeviceLink(inbox.person.id) as link:
            await link.call(new_call("select", "projects", filters={}))  # its hello is over
        await db.run(waits, undelivered=True)
        with monkeypatch.context() as patch:
            patch.setattr(delivery, "_settle", dying)
            with pytest.raises(Died):
                await delivery.deliver_waiting(inbox.person.id)
        assert len(inbox.titles()) == 5  # it has them, and nobody knows
        await delivery.deliver_waiting(inbox.person.id)
        assert (await inbox.see(run)).items_created == 0  # held by the dead one's lease
    await db.run(waits, lease_until=timezone.now() - dt.timedelta(seconds=1))
    async with inbox.device("phone"), inbox.device("desk"):
        await delivery.deliver_waiting(inbox.person.id)
        assert (await inbox.delivered(run)).items_created == 5
        assert (sorted(inbox.titles("desk")), inbox.titles("phone")) == (steps(*range(5)), [])


async def test_an_undo_takes_back_what_no_device_has_yet(inbox: Inbox) -> None:
    run = await inbox.run()
    undone = await undo.undo(run=run)
    assert (undone.never_sent, undone.deleted, undone.kept) == (5, 0, [])
    async with inbox.device():
        await delivery.deliver_waiting(inbox.person.id)
        assert inbox.titles() == []


# ── The account ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_lost_account_pauses_its_agents_and_a_new_consent_goes_on(
    inbox: Inbox, identity: Identity, worker: None
) -> None:
    hour = dt.timedelta(hours=1)
    await db.run(
        Agent.objects.filter(pk=inbox.agent.pk).update,
        schedule_cron="@hourly",
        next_run_at=timezone.now() - hour,
    )
    inbox.box.expire()
    identity.script(Refuse("invalid_grant"))
    async with inbox.device():
        run = await inbox.run()
        assert (run.state, run.status, run.attempt) == (State.AWAITING_REAUTH, "running", 0)
        assert "needs_reauth" in await inbox.codes(run)
        agent = await db.run(Agent.objects.select_related("connection").get, pk=inbox.agent.pk)
        assert agent.paused == "needs_reauth"
        await until(lambda: bool(inbox.errors))  # a worker says it
        with pytest.raises(runs.RunIsLive):
            await db.run(lambda: runs.start(agent=agent))
        assert (inbox.errors[0].code, inbox.errors[0].ref) == ("needs_reauth", str(agent.connection_id))

        def claimed() -> int:
            return schedules._start_due(schedules.Q(user_id=inbox.person.id), None)

        assert await db.run(claimed) == 0
        await db.run(runs.sweep)
        assert (await inbox.see(run)).state == State.AWAITING_REAUTH
        assert len(inbox.errors) == 1
        await db.run(connect_account, inbox.person, inbox.box)
        assert (await inbox.see(run)).state == State.QUEUED
        await runner.execute(run.pk)
        assert (await inbox.see(run)).state == State.SUCCESS
        assert sorted(inbox.titles()) == steps(*range(5))
        agent = await db.run(Agent.objects.select_related("connection").get, pk=inbox.agent.pk)
        assert agent.paused == ""
        assert agent.next_run_at > timezone.now()  # the slot that came meanwhile was this run's


async def test_a_run_ends_at_what_one_run_may_cost_and_the_next_reads_the_rest(
    inbox: Inbox, provider: Provider, settings: Settings
) -> None:
    settings.MODEL_PRICE, settings.PLANS = "1,2", True
    provider.default = lambda request: Say(json.dumps(tasks_from_lines(request)), usage=(4_000, 3_000))
    free = Plan.objects.filter(tier="free")
    before = await db.run(free.get)
    await db.run(lambda: free.update(run_micro=33_000, budget_micro=10**9))
    plans.forget()
    try:
        async with inbox.device():
            ran = set()
            for _ in range(5):
                run = await inbox.run()
                ran.add(run.pk)
                if run.state == State.SUCCESS:
                    break
                assert run.state == State.PARTIAL and "work_budget_spent" in await inbox.codes(run)
            assert run.state == State.SUCCESS and len(provider.chats) == 5
            assert sorted(inbox.titles()) == steps(*range(5))
        told = EntrySource.objects.filter(entry__user_id=inbox.person.id, kind=SourceKind.RUN)
        assert await db.run(lambda: set(told.values_list("source_id", flat=True))) == ran
    finally:
        await db.run(lambda: free.update(run_micro=before.run_micro, budget_micro=before.budget_micro))
        plans.forget()


async def test_a_run_waits_for_money_and_goes_on_where_it_was(
    inbox: Inbox, provider: Provider, settings: Settings
) -> None:
    """Its agent may spend as much as two mails cost; with more, the others are read, and none of them twice."""
    settings.MODEL_PRICE = "1,2"
    provider.default = lambda request: Say(json.dumps(tasks_from_lines(request)), usage=(4_000, 3_000))
    mine = Agent.objects.filter(pk=inbox.agent.pk)
    await db.run(mine.update, budget_micro=33_000)
    async with inbox.device():
        run = await inbox.run()
        assert (run.state, run.status, run.attempt) == (State.AWAITING_BUDGET, "running", 0)
        # Mails are read at once, and while what one may cost is held there may be too little for the next.
        asked = len(provider.chats)
        assert 1 <= asked <= 2 and run.cost_micro == 10_000 * asked
        assert "budget_spent" in await inbox.codes(run)
        await db.run(runs.resume_with_budget)
        assert (await inbox.see(run)).state == State.QUEUED  # a third is left: it tries
        await runner.execute(run.pk)
        assert (await inbox.see(run)).state == State.AWAITING_BUDGET and len(provider.chats) == 2
        await db.run(mine.update, budget_micro=1_000_000)
        await db.run(runs.resume_with_budget)
        await runner.execute(run.pk)
        run = await inbox.see(run)
        assert (run.state, run.cost_micro, run.input_tokens) == (State.SUCCESS, 50_000, 20_000)
        assert len(provider.chats) == 5 and sorted(inbox.titles()) == steps(*range(5))
    assert not await db.run(Hold.objects.filter(user_ref=inbox.person.id).exists)
    spent = await db.run(Allowance.objects.get, agent=inbox.agent.pk)
    assert (spent.spent, spent.reserved) == (50_000, 0)


async def test_who_was_away_when_an_account_was_lost_is_told_once_by_the_next_device(
    inbox: Inbox, identity: Identity, worker: None
) -> None:
    inbox.box.expire()
    identity.script(Refuse("invalid_grant"))
    assert (await inbox.run()).state == State.AWAITING_REAUTH
    await db.run(connections.sweep)
    async with inbox.device():
        await until(lambda: bool(inbox.errors))  # its hello is enough
        for _ in range(3):
            await db.run(connections.sweep)
    async with inbox.device("phone"):
        await db.run(connections.sweep)
        async with DeviceLink(inbox.person.id) as link:
            await link.call(new_call("select", "projects", filters={}))  # behind whatever else is said
    assert [(error.code, "1 agent waits" in error.message) for error in inbox.errors] == [
        ("needs_reauth", True)
    ]


async def test_a_reconnection_that_nobody_heard_of_is_found_by_the_sweep(
    inbox: Inbox, identity: Identity
) -> None:
    inbox.box.expire()
    identity.script(Refuse("invalid_grant"))
    run = await inbox.run()
    await db.run(Connection.objects.filter(user_id=inbox.person.id).update, health=Health.OK, reason="")
    await db.run(runs.sweep)
    assert (await inbox.see(run)).state == State.QUEUED


async def test_a_run_that_awaits_its_account_can_be_cancelled(inbox: Inbox, identity: Identity) -> None:
    inbox.box.expire()
    identity.script(Refuse("invalid_grant"))
    run = await inbox.run()
    assert run.state == State.AWAITING_REAUTH
    assert (await db.run(lambda: runs.cancel(run=run))).state == State.CANCELLED


async def test_a_provider_that_is_away_puts_the_run_off_until_it_wants(inbox: Inbox) -> None:
    inbox.box.fault("/messages/m000003", Fail(429, retry_after=600.0))
    run = await inbox.run()
    assert (run.state, run.retries) == (State.QUEUED, 1)
    assert run.not_before is not None
    assert run.not_before > timezone.now() + dt.timedelta(seconds=590)
    assert "provider_throttled" in await inbox.codes(run)


async def test_without_its_connection_a_run_ends_with_the_reason(inbox: Inbox) -> None:
    await db.run(Connection.objects.filter(user_id=inbox.person.id).delete)
    agent = await db.run(Agent.objects.get, pk=inbox.agent.pk)
    inbox.agent = agent
    run = await inbox.run()
    assert (run.state, await inbox.codes(run)) == (State.ERROR, ["no_connection"])


# ── Without creating anything ───────────────────────────────────────────────────────────────────────────


async def test_a_dry_run_says_what_a_real_one_would_cost(
    inbox: Inbox, provider: Provider, settings: Settings
) -> None:
    """By what its few mails did cost, for all five that are due."""
    provider.default = lambda request: Say(json.dumps(tasks_from_lines(request)), usage=(4_000, 3_000))
    run = await inbox.run(dry_run=True, max_sources=2)
    assert run.sources_due == 5 and run_reports.would_cost_micro(run) is None  # without a price nobody knows
    settings.MODEL_PRICE = "1,2"
    run = await inbox.run(dry_run=True, max_sources=2)
    assert (run.cost_micro, run_reports.would_cost_micro(run)) == (20_000, 50_000)
    report = await db.run(run_reports.report_of, run)
    assert "A real run would read 5 documents, for about €0.05." in agent_texts._counts(report)
    async with inbox.device():
        run = await inbox.run()
        assert (run.cost_micro, run_reports.would_cost_micro(run)) == (50_000, None)
        run = await inbox.run(dry_run=True, max_sources=2)
        assert (run.sources_due, run_reports.would_cost_micro(run)) == (0, 0)


async def test_a_dry_run_shows_a_few_and_keeps_no_cursor(inbox: Inbox, provider: Provider) -> None:
    run = await inbox.run(dry_run=True, max_sources=3)
    assert (run.state, run.files_done, run.undelivered) == (State.SUCCESS, 3, False)
    assert len(provider.chats) == 3
    assert not await inbox.cursor()
    assert not await db.run(Source.objects.filter(agent=inbox.agent).exists)
    await inbox.run()
    run = await inbox.run(dry_run=True, max_sources=2)
    assert (run.state, run.files_done) == (State.SUCCESS, 2)


async def test_mails_that_the_filters_refuse_take_no_place_of_a_dry_run(inbox: Inbox) -> None:
    """Gmail cannot look for a domain or for a part of a name, so it lists them as well."""
    for number in range(6):
        inbox.box.add(raw_mail(f"other {number}").replace(b"Bea <bea@example.com>", b"Max <max@other.test>"))
    for sender in ("example.com", "bea"):
        filters = {"senders": [sender]}
        inbox.agent = await db.run(
            lambda filters=filters: create_mail_agent(inbox.person, filter_config=filters)
        )
        run = await inbox.run(dry_run=True, max_sources=2)
        assert (run.state, run.files_done) == (State.SUCCESS, 2)
        # Of the newest eight mails two passed, so about a quarter of all eleven are due.
        assert run.sources_due == 3
        run = await inbox.run(dry_run=True, max_sources=9)
        assert (run.files_done, run.sources_due) == (5, 5)
    await inbox.run()
    run = await inbox.run(dry_run=True, max_sources=2)
    assert (run.files_done, run.sources_due) == (2, 0)


async def test_a_dry_run_shows_a_few_known_mails_though_a_label_is_missing(inbox: Inbox) -> None:
    inbox.agent = await db.run(
        lambda: create_mail_agent(inbox.person, filter_config={"labels": ["INBOX", "No such"]})
    )
    await inbox.run()
    run = await inbox.run(dry_run=True, max_sources=2)
    assert (run.files_done, run.files_failed) == (3, 1)
    assert (await inbox.codes(run)).count("no_such_folder") == 1


async def test_a_sample_of_a_mailbox_is_the_newest_few(inbox: Inbox) -> None:
    zone = ZoneInfo("Europe/Rome")
    found = await sample_messages(
        user_id=inbox.person.id,
        provider=MailProvider.GMAIL,
        filter_config={"senders": ["example.com"]},
        zone=zone,
    )
    assert [document.name for document in found] == ["Mail 4", "Mail 3", "Mail 2"]
    assert "bea@example.com" in found[0].path
    assert not await db.run(AgentCursor.objects.filter(agent=inbox.agent).exists)


async def test_a_journey_looks_into_the_mailbox_that_is_connected(inbox: Inbox) -> None:
    def wanted(**filters: Any) -> samples.SampleRequest:
        outcome = AgentProposal(
            name="Mail",
            prompt_template="Find what is to be done.",
            data_types=["tasks"],
            filter_config=filters,
        )
        return samples.SampleRequest(inbox.person.id, uuid.uuid4(), AgentType.GMAIL, None, outcome)

    found = await trial.run_trial(wanted(), ZoneInfo("Europe/Rome"))
    assert (found.code, found.counts, len(found.sources)) == ("", {"tasks": 3}, 3)
    assert (
        await trial.run_trial(wanted(senders=["nobody@example.com"]), ZoneInfo("UTC"))
    ).code == "nothing_to_read"
    none = await trial.run_trial(wanted(labels=["Clients"]), ZoneInfo("UTC"))
    assert none.code == "no_such_folder" and none.message.startswith("None of the labels")
    await db.run(Connection.objects.filter(user_id=inbox.person.id).delete)
    assert (await trial.run_trial(wanted(), ZoneInfo("UTC"))).code == "no_mailbox"
    await llm.aclose()
