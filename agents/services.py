"""What can be done with an agent's configuration. REST and the admin come here."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import transaction

from adiuva.core.errors import Invalid, NotFound
from agents import cloud, runs, schedules
from agents.models import Agent, AgentType, CatchUp, Run


def of_user(user_id: UUID, agent_id: UUID) -> Agent:
    """One of a user's agents. Raise NotFound, for another's as for none."""
    agent = Agent.objects.of(user_id).select_related("user").filter(pk=agent_id).first()
    if agent is None:
        raise NotFound("there is no such agent")
    return agent


@transaction.atomic
def create_local(*, user_id: UUID, values: dict[str, Any]) -> Agent:
    agent = Agent(user_id=user_id, type=AgentType.LOCAL_DIRECTORY, **values)
    _check_catch_up(agent)
    agent.next_run_at = schedules.next_run_at(agent)
    agent.save()
    agent.refresh_from_db(fields=["created_at"])
    return agent


@transaction.atomic
def create_cloud(*, user_id: UUID, values: dict[str, Any]) -> Agent:
    """Raise Invalid when there is no connection to read with."""
    values = values | {
        "connection": cloud.connection_of(user_id, values["type"], values.pop("connection", None))
    }
    agent = Agent(user_id=user_id, **values)
    _check_catch_up(agent)
    agent.next_run_at = schedules.next_run_at(agent)
    agent.save()
    agent.refresh_from_db(fields=["created_at"])
    return agent


def change_cloud(*, agent: Agent, values: dict[str, Any]) -> Agent:
    """As `change`. With another connection, a run that awaits the old one goes on. Raise Invalid also when the agent
    would read from another provider, or with a connection that is not there."""
    if values.pop("type", agent.type) != agent.type:
        said = f"This agent reads {AgentType(agent.type).label}: make another one."
        raise Invalid("the provider stays", fields={"provider": [said]})
    if "connection" in values:
        values = values | {"connection": cloud.connection_of(agent.user_id, agent.type, values["connection"])}
    changed = change(agent=agent, values=values)
    if "connection" in values:
        runs.go_on(Run.objects.filter(agent=changed))
    return changed


@transaction.atomic
def change(*, agent: Agent, values: dict[str, Any]) -> Agent:
    """Change a configuration. A run under way goes on with the old one; one that waits for a device that the agent
    no longer reads is cancelled. Raise NotFound when the agent is gone."""
    if values.get("device_id", agent.device_id) != agent.device_id:
        for run in agent.runs.filter(state=Run.State.WAITING_DEVICE):
            runs.cancel(run=run)
    locked = (
        Agent.objects.select_for_update(of=("self",), no_key=True)
        .select_related("user")
        .filter(pk=agent.pk)
        .first()
    )
    if locked is None:
        raise NotFound("there is no such agent")
    before = locked.schedule_cron, locked.timezone, locked.enabled
    for name, value in values.items():
        setattr(locked, name, value)
    _check_catch_up(locked)
    if (
        locked.schedule_cron,
        locked.timezone,
        locked.enabled,
    ) != before:  # else a slot that is due would be lost
        locked.next_run_at = schedules.next_run_at(locked)
    locked.save()
    return locked


def _check_catch_up(agent: Agent) -> None:
    """Hours belong to `within`. Raise Invalid; also when two changes at once do not go together."""
    if agent.catch_up != CatchUp.WITHIN:
        agent.catch_up_hours = None
    elif agent.catch_up_hours is None:
        raise Invalid("within needs hours", fields={"catch_up_hours": ['Needed for "within".']})


def delete(*, agent: Agent) -> None:
    """The configuration goes, its runs stay. One under way is cancelled. Raise NotFound when it is gone already."""
    _cancel_live(agent)  # in transactions of its own: who holds a run's row must not wait for the agent's
    with transaction.atomic():
        locked = Agent.objects.select_for_update().filter(pk=agent.pk).first()
        if locked is None:
            raise NotFound("there is no such agent")
        _cancel_live(locked)  # one that started before we had the agent's lock; now none can
        locked.delete()


def _cancel_live(agent: Agent) -> None:
    for run in agent.runs.live():
        runs.cancel(run=run)
