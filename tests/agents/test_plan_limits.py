"""Plan limits of agents: at each way in, and after a downgrade."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from adiuva.accounts.models import User
from adiuva.devices.models import Device
from agents import claimed_runs, plan_limits, runs, schedules, services, set_up
from agents.models import Agent, Run
from billing import entitlements, plans, tiers
from billing.entitlements import QuotaExceeded
from billing.models import Override, PlanChange
from integrations import connections, oauth
from integrations.models import Connection
from integrations.oauth_clients import Grant
from tests.agents.factories import API, create_agent, create_run, rest_client
from tests.factories import Person, somebody

STAFF = uuid.uuid4()


@pytest.fixture(autouse=True)
def plans_on(settings: Any) -> Iterator[None]:
    settings.PLANS = True
    plans.forget()
    yield
    plans.forget()  # they are kept in the process, and what a test changed in them is rolled back


@pytest.fixture
def mara(db: None) -> Person:
    return somebody()


def give(person: Person, tier: str) -> Override:
    return tiers.give(user_id=person.id, tier=tier, until=None, reason="a trial", by=STAFF)


def local(**fields: Any) -> dict[str, Any]:
    return {
        "name": "Desk",
        "device_id": "desk",
        "directory_paths": ["/home/m"],
        "data_types": ["tasks"],
        **fields,
    }


def states(person: Person) -> list[str]:
    """Of each agent, the oldest first: runs, held or off."""
    found = Agent.objects.of(person.id).order_by("created_at", "id")
    return ["off" if not one.enabled else "held" if one.held_by_plan else "runs" for one in found]


def ten_agents(person: Person) -> list[Agent]:
    start = timezone.now()
    made = [create_agent(person.id, name=f"Desk {number}", schedule_cron="0 8 * * *") for number in range(10)]
    for number, agent in enumerate(
        made
    ):  # their order must not hang on a clock that all share in one transaction
        Agent.objects.filter(pk=agent.pk).update(created_at=start + dt.timedelta(seconds=number))
    return made


# ── Ways in ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_free_plan_has_room_for_three_agents_of_which_two_are_enabled(mara: Person) -> None:
    client = rest_client(mara)
    for _ in range(2):
        assert client.post(f"{API}/local", local(), format="json").status_code == 201
    third = client.post(f"{API}/local", local(), format="json")
    assert third.status_code == 402
    said = third.json()
    assert said.pop("message")
    assert said == {
        "code": "quota_exceeded", "feature": "agents_enabled", "limit": 2, "used": 2, "tier": "free",
        "upgrade_to": "pro",
    }  # fmt: skip
    made = client.post(f"{API}/local", local(enabled=False), format="json")
    assert made.status_code == 201
    assert client.post(f"{API}/local", local(enabled=False), format="json").json()["feature"] == "agents"
    enabled = client.patch(f"{API}/local/{made.json()['id']}", {"enabled": True}, format="json")
    assert (enabled.status_code, enabled.json()["feature"]) == (402, "agents_enabled")
    renamed = client.patch(f"{API}/local/{made.json()['id']}", {"name": "Other"}, format="json")
    assert renamed.status_code == 200


def test_a_journey_to_a_further_agent_is_refused_before_it_asks_anything(person: Person) -> None:
    for enabled in (True, True, False):
        create_agent(person.id, enabled=enabled)
    answer = rest_client(person).post(f"{API}/journey/start", {"agent_type": "local"}, format="json")
    assert (answer.status_code, answer.json()["feature"]) == (402, "agents")


def test_an_agent_that_is_set_up_in_a_chat_needs_room_too(mara: Person) -> None:
    """There the question was answered with yes while the plan had room."""
    Device.objects.create(user_id=mara.id, device_id="desk")
    wish = set_up.Wish(kind="folder", name="Desk", look_for="Tasks", folders=["/home/m"], enabled=True)
    plan = set_up.plan(mara.id, None, wish, None)
    off = create_agent(mara.id, enabled=False)
    turn_on = set_up.plan(mara.id, off, set_up.Wish(enabled=True), None)
    for _ in range(2):
        create_agent(mara.id)
    with pytest.raises(QuotaExceeded, match="agents in all"):
        set_up.save(plan)
    with pytest.raises(QuotaExceeded, match="enabled agents"):
        set_up.save(turn_on)
    assert sorted(states(mara)) == ["off", "runs", "runs"]


def test_staff_do_not_run_an_agent_that_the_plan_holds(mara: Person) -> None:
    given = give(mara, "pro")
    agents = ten_agents(mara)
    tiers.end(override=given)
    staff = Client()
    staff.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    held = {"action": "run_now", "_selected_action": [agents[9].pk]}
    answer = staff.post(reverse("admin:agents_agent_changelist"), held, follow=True)
    assert "plan has no room for this agent" in answer.content.decode()
    assert not Run.objects.filter(agent=agents[9]).exists()


def test_a_consent_to_a_further_provider_comes_to_nothing_where_the_plan_has_become_smaller(
    mara: Person,
) -> None:
    def connect(provider: str, account: str) -> Connection:
        grant = Grant("access", "refresh", 3600, (), account)
        return connections.connect(user_id=mara.id, provider=provider, grant=grant)

    connect("gmail", "mara@example.com")
    connect("gmail", "other@example.com")  # another mailbox of the same provider
    with pytest.raises(QuotaExceeded, match="providers"):
        connect("outlook", "mara@example.com")
    assert set(Connection.objects.of(mara.id).values_list("provider", flat=True)) == {"gmail"}


def test_plugins_are_for_plans_that_have_them(mara: Person, settings: Any) -> None:
    for locked in (False, True):
        with pytest.raises(entitlements.NotInPlan) as refused:
            entitlements.require(mara.id, "plugins", locked=locked)
        assert refused.value.extra == {"feature": "plugins", "upgrade_to": "power"}
    give(mara, "power")
    entitlements.require(mara.id, "plugins", locked=True)
    settings.PLANS = False
    entitlements.require(somebody().id, "plugins", locked=True)


def test_without_plans_nothing_is_limited(mara: Person, settings: Any) -> None:
    settings.PLANS = False
    ten_agents(mara)
    assert states(mara) == ["runs"] * 10
    assert entitlements.limits_of("free")["agents"] is None


def test_one_provider_is_connected_and_others_are_refused_before_the_consent(mara: Person) -> None:
    Connection.objects.create(
        user_id=mara.id, provider="gmail", account_hash=b"x", account=b"", access_token=b"",
        renew_at=timezone.now(), expires_at=timezone.now(),
    )  # fmt: skip
    with pytest.raises(QuotaExceeded, match="providers"):
        oauth.start_consent(user_id=mara.id, provider="outlook")
    connections.check_room(mara.id, "gmail")  # another mailbox of the same provider


# ── A smaller plan ──────────────────────────────────────────────────────────────────────────────────────


def test_a_downgrade_holds_the_newest_and_an_upgrade_restores_exactly_what_was(mara: Person) -> None:
    given = give(mara, "pro")
    agents = ten_agents(mara)
    services.update(agent=agents[0], values={"enabled": False})
    before = Agent.objects.of(mara.id).count()
    tiers.end(override=given)
    assert states(mara) == ["off", "runs", "runs", *["held"] * 7]
    assert Agent.objects.of(mara.id).count() == before
    shown = rest_client(mara).get(f"{API}/local/{agents[9].pk}").json()
    assert (shown["enabled"], shown["held_by_plan"]) == (True, True)
    give(mara, "pro")
    assert states(mara) == ["off", *["runs"] * 9]


def test_the_user_chooses_which_agents_run(mara: Person) -> None:
    given = give(mara, "pro")
    agents = ten_agents(mara)
    tiers.end(override=given)
    client = rest_client(mara)
    chosen = [str(agents[7].pk)]
    answer = client.post(f"{API}/keep", {"agent_ids": chosen}, format="json")
    assert answer.status_code == 200
    # The chosen one, and of those that ran the oldest.
    assert {*answer.json()["running"]} == {*chosen, str(agents[0].pk)}
    assert len(answer.json()["held"]) == 8
    too_many = client.post(f"{API}/keep", {"agent_ids": [str(one.pk) for one in agents[:3]]}, format="json")
    assert (too_many.status_code, too_many.json()["feature"]) == (402, "agents_enabled")
    stranger = create_agent()
    other = client.post(f"{API}/keep", {"agent_ids": [str(stranger.pk)]}, format="json")
    assert other.status_code == 404


@pytest.mark.parametrize("leave", ["disable", "delete"])
def test_the_oldest_held_agent_takes_the_room_of_one_that_leaves(mara: Person, leave: str) -> None:
    given = give(mara, "pro")
    agents = ten_agents(mara)
    tiers.end(override=given)
    if leave == "disable":
        services.update(agent=agents[0], values={"enabled": False})
    else:
        services.delete(agent=agents[0])
    running = set(Agent.objects.of(mara.id).running().values_list("pk", flat=True))
    assert running == {agents[1].pk, agents[2].pk}


def test_a_held_agent_does_not_run_and_its_journal_says_why_once(mara: Person) -> None:
    given = give(mara, "pro")
    agent = ten_agents(mara)[5]
    queued = create_run(agent)
    Run.objects.filter(pk=queued.pk).update(enqueued_at=timezone.now())
    tiers.end(override=given)
    assert claimed_runs.claim(queued.pk) is None
    with pytest.raises(runs.HeldByPlan):
        runs.start(agent=agent)
    for _ in range(2):
        Agent.objects.filter(pk=agent.pk, next_run_at__isnull=False).update(
            next_run_at=timezone.now() - dt.timedelta(minutes=1)
        )
        schedules.tick()
    told = [
        (run.state, [event.code for event in run.events.all()])
        for run in Run.objects.filter(agent_ref=agent.pk)
    ]
    assert told == [("cancelled", ["held_by_plan"])] * 2  # the one that was queued, and that of the slot
    give(mara, "pro")
    agent.refresh_from_db()
    assert agent.next_run_at is not None and agent.next_run_at > timezone.now()


def test_a_sweep_settles_all_whose_plan_was_edited(mara: Person) -> None:
    for _ in range(2):
        create_agent(mara.id)
    plans.edit(tier="free", values={"agents_enabled": 1}, by=STAFF)
    plans.forget()
    plan_limits.sweep()
    assert sorted(states(mara)) == ["held", "runs"]
    plans.edit(tier="free", values={"agents_enabled": 2}, by=STAFF)
    plans.forget()
    plan_limits.sweep()
    assert states(mara) == ["runs", "runs"]
    assert plan_limits.sweep() == 0


def test_between_edits_a_sweep_looks_at_held_agents_alone_and_a_check_at_all(mara: Person) -> None:
    for _ in range(2):
        create_agent(mara.id)
    plans.edit(tier="free", values={"agents_enabled": 1}, by=STAFF)
    plans.forget()
    PlanChange.objects.update(at=timezone.now() - dt.timedelta(hours=2))
    assert plan_limits.sweep() == 0
    assert plan_limits.check() == 1
    assert sorted(states(mara)) == ["held", "runs"]
    Agent.objects.of(mara.id).filter(held_by_plan=False).delete()
    assert plan_limits.sweep() == 1
    assert states(mara) == ["runs"]


# ── At once ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_comes_at_once_gets_exactly_what_the_plan_allows(committed_db: str) -> None:
    people = [somebody() for _ in range(4)]

    def make(person: Person) -> bool:
        try:
            create_agent(person.id)
        except QuotaExceeded:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(make, people * 6))
    assert sum(made) == 2 * len(people)
    for person in people:
        assert states(person) == ["runs", "runs"]
    User.objects.filter(pk__in=[person.id for person in people]).delete()
