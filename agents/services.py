"""Create, change and delete agents, for REST and admin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from django.db import transaction

from adiuva.core.errors import Invalid, NotFound, Text
from adiuva.devices.models import Device
from agents import plan_limits, runs, schedules
from agents.models import Agent, AgentType, CatchUp, Run
from billing import entitlements
from integrations.mail.filters import Filters
from integrations.models import Connection, Health, Provider

_FILTERS: Final = ("labels", "channels", "senders", "date_range")
_SPAN: Final = ("from", "to")


def get_agent(user_id: UUID, agent_id: UUID) -> Agent:
    """Return one of a user's agents. Raises NotFound, also for another user's agent."""
    agent = Agent.objects.of(user_id).select_related("user").filter(pk=agent_id).first()
    if agent is None:
        raise NotFound("there is no such agent")
    return agent


@transaction.atomic
def create_local(*, user_id: UUID, values: dict[str, Any]) -> Agent:
    """Create an agent over local folders. Raises Invalid, or QuotaExceeded where the plan has no room for it."""
    agent = Agent(user_id=user_id, type=AgentType.LOCAL_DIRECTORY, **values)
    return _create(agent)


@transaction.atomic
def create_cloud(*, user_id: UUID, values: dict[str, Any]) -> Agent:
    """Create a cloud agent. Raises Invalid if there is no connection to read with, or QuotaExceeded."""
    values = values | {"connection": connection_for(user_id, values["type"], values.pop("connection", None))}
    agent = Agent(user_id=user_id, **values)
    return _create(agent)


def is_device_known(agent: Agent) -> bool:
    """Return whether the device that an agent reads has ever connected."""
    return Device.objects.of(agent.user_id).filter(device_id=agent.device_id).exists()


def overlapping(agent: Agent) -> list[Agent]:
    """Return the user's other agents that read the same folders of the same device, or the same mailbox."""
    others = Agent.objects.of(agent.user_id).exclude(pk=agent.pk)
    if not agent.is_local:
        return (
            list(others.filter(type=agent.type, connection=agent.connection_id))
            if agent.connection_id
            else []
        )
    same_device = others.local().filter(device_id=agent.device_id)
    return [other for other in same_device if _share_folders(agent.directory_paths, other.directory_paths)]


def _share_folders(some: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether a folder of one list is, or lies in, a folder of the other."""
    mine, theirs = (
        [f"{path.replace(chr(92), '/').rstrip('/')}/" for path in paths] for paths in (some, others)
    )
    return any(one.startswith(other) or other.startswith(one) for one in mine for other in theirs)


def _create(agent: Agent) -> Agent:
    _check_catch_up(agent)
    plan_limits.claim_new(agent)
    agent.next_run_at = schedules.next_run_at(agent)
    agent.save()
    agent.refresh_from_db(fields=["created_at"])
    return agent


def update_cloud(*, agent: Agent, values: dict[str, Any]) -> Agent:
    """Change a cloud agent, as `update` does; a run that waits for the old connection resumes with the new one.

    Raises also Invalid if the provider would change, or the connection does not exist.
    """
    if values.pop("type", agent.type) != agent.type:
        said = Text("This agent reads {provider}: make another one.", provider=AgentType(agent.type).label)
        raise Invalid("the provider stays", fields={"provider": [said]})
    if "connection" in values:
        values = values | {"connection": connection_for(agent.user_id, agent.type, values["connection"])}
    changed = update(agent=agent, values=values)
    if "connection" in values:
        runs.resume_after_reauth(Run.objects.filter(agent=changed))
    return changed


@transaction.atomic
def update(*, agent: Agent, values: dict[str, Any]) -> Agent:
    """Change a configuration. A run in progress keeps the old one; a run that waits for a device that the agent no
    longer reads is cancelled.

    Raises NotFound if the agent was deleted, or QuotaExceeded if it is to be enabled and the plan has no room for that.
    """
    # Before all other locks.
    account = entitlements.lock(agent.user_id) if "enabled" in values else None
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
    if account is not None and locked.enabled and not before[2]:
        plan_limits.require_running(account, locked)
    # A disabled agent is not held by the plan, and frees its room for another.
    locked.held_by_plan &= locked.enabled
    # Recomputed only after such a change: otherwise a slot that is due now would be lost.
    if (locked.schedule_cron, locked.timezone, locked.enabled) != before:
        locked.next_run_at = schedules.next_run_at(locked)
    locked.save()
    if account is not None and before[2] and not locked.enabled:
        plan_limits.settle(agent.user_id)
    return locked


def _check_catch_up(agent: Agent) -> None:
    """Drop hours without `within`, and require them with it. Raises Invalid, also if concurrent changes conflict."""
    if agent.catch_up != CatchUp.WITHIN:
        agent.catch_up_hours = None
    elif agent.catch_up_hours is None:
        raise Invalid("within needs hours", fields={"catch_up_hours": ['Needed for "within".']})


def delete(*, agent: Agent) -> None:
    """Delete an agent and cancel its run in progress; its run history stays. Raises NotFound."""
    _cancel_live(agent)  # in its own transactions: a lock on a run must not wait for the agent's
    with transaction.atomic():
        entitlements.lock(agent.user_id)
        locked = Agent.objects.select_for_update().filter(pk=agent.pk).first()
        if locked is None:
            raise NotFound("there is no such agent")
        _cancel_live(locked)  # a run that started before the agent was locked; from now on none can start
        locked.delete()
        plan_limits.settle(agent.user_id)  # its room goes to another


def stop_all(*, user_id: UUID) -> None:
    """Stop all agents of an account, in the transaction that closes it: none runs again, and runs in progress end."""
    Agent.objects.of(user_id).update(enabled=False, held_by_plan=False, next_run_at=None)
    for run in Run.objects.of(user_id).live():
        runs.cancel(run=run)


def _cancel_live(agent: Agent) -> None:
    for run in agent.runs.live():
        runs.cancel(run=run)


def connection_for(user_id: UUID, provider: str, connection_id: UUID | None) -> Connection:
    """Return a user's connection to a provider; without an id, the only healthy one. Raises Invalid, with the field."""
    mine, label = Connection.objects.of(user_id), Provider(provider).label
    if connection_id is not None:
        found = mine.filter(pk=connection_id).first()
        if found is None:
            raise _no_connection("There is no such connection.")
        if found.provider != provider:
            raise _no_connection(
                Text(
                    "It is a connection to {found}, not to {provider}.",
                    found=found.get_provider_display(),
                    provider=label,
                )
            )
        return found
    healthy = list(mine.filter(provider=provider, health=Health.OK)[:2])
    if not healthy:
        where = f"/api/v1/oauth/{provider}/authorize"
        raise _no_connection(
            Text("No {provider} account is connected: begin with {where}.", provider=label, where=where)
        )
    if len(healthy) > 1:
        raise _no_connection(
            Text("Several {provider} accounts are connected: the id of one is needed.", provider=label)
        )
    return healthy[0]


def _no_connection(why: str) -> Invalid:
    return Invalid("The connection cannot be used.", fields={"connection": [why]})


def clean_filter_config(given: Any) -> dict[str, Any]:
    """Return a filter_config as stored: without empty filters, channels as labels. Raises Invalid, with the fields."""
    if not isinstance(given, Mapping):
        raise _bad_filter("", "Not an object.")
    span = given.get("date_range") or {}
    unknown = [str(name) for name in given if name not in _FILTERS]
    if isinstance(span, Mapping):
        unknown += [f"date_range.{name}" for name in span if name not in _SPAN]
    if unknown:
        raise _bad_filter(
            f".{unknown[0][:50]}", Text("Unknown; there are {names}.", names=", ".join(_FILTERS))
        )
    channels = given.get("channels") or []
    try:
        found = Filters.parse({"labels": channels})
    except Invalid as error:
        raise _bad_filter(".channels", *(error.fields or {"": []}).popitem()[1]) from None
    labels = given.get("labels") or []
    both = [*labels, *found.labels] if isinstance(labels, list) else labels
    found = Filters.parse({**given, "labels": both})
    kept: dict[str, Any] = {"labels": list(found.labels), "senders": list(found.senders)}
    kept["date_range"] = {name: span[name] for name in _SPAN if span.get(name)}
    return {name: value for name, value in kept.items() if value}


def _bad_filter(place: str, *why: str) -> Invalid:
    return Invalid("The filters are not valid.", fields={f"filter_config{place}": list(why)})
