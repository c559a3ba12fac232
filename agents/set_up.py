"""Sets up an agent from a request: checked and planned, tried out, and then saved. Nothing is saved before `save`.

The checks are those of the forms, and the trial is that of a journey.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final, Literal, TypeVar
from zoneinfo import ZoneInfo

from django.utils.translation import gettext

from adiuva.accounts.models import User
from adiuva.core.errors import AdiuvaError
from adiuva.devices.models import Device
from agents import configuration, services
from agents.configuration import BadPart
from agents.journeys.interview import AgentProposal
from agents.journeys.samples import SampleRequest
from agents.journeys.trial import TrialResult, run_trial
from agents.models import MAX_CATCH_UP_HOURS, Agent, AgentType, Announce, CatchUp

Kind = Literal["folder", "gmail", "outlook", "teams"]
Given = TypeVar("Given")
Checked = TypeVar("Checked")

# The most folders that a question can name.
MOST_FOLDERS: Final = 10
_MOST_NAMES: Final = 20
_NAME_CHARS: Final = 200
_LOOK_FOR_CHARS: Final = 20_000
_DEFAULT_TABLES: Final = ["tasks", "timelines", "notes"]
_TYPES: Final = {"folder": AgentType.LOCAL_DIRECTORY} | {
    name: AgentType(name) for name in ("gmail", "outlook", "teams")
}
# The parts of an agent of folders, and those of an agent of a mailbox, by their names in a wish.
_OF_FOLDERS: Final = frozenset({"folders", "extensions"})
_OF_MAILBOXES: Final = frozenset({"labels", "senders", "first_day", "last_day"})


class CannotSetUp(AdiuvaError):
    """The agent cannot be made or changed like that. The message says why, and what the user has to do."""

    code, status = "cannot_set_up", 400


class NothingToChange(CannotSetUp):
    """The agent is already as wanted."""

    def __init__(self) -> None:
        super().__init__("the agent is like that already, so nothing is to be changed")


@dataclass(frozen=True)
class Wish:
    """A user's wish for an agent. None: unchanged, or the default for a new agent. `schedule`: cron, "" for none."""

    kind: Kind | None = None
    name: str | None = None
    look_for: str | None = None
    tables: Sequence[str] | None = None
    folders: Sequence[str] | None = None
    extensions: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    senders: Sequence[str] | None = None
    first_day: str | None = None
    last_day: str | None = None
    schedule: str | None = None
    timezone: str | None = None
    catch_up: str | None = None
    hours: int | None = None
    announce: str | None = None
    enabled: bool | None = None
    delete: bool = False

    def given(self) -> set[str]:
        return {name for name, value in vars(self).items() if value is not None and name != "delete"}


@dataclass(frozen=True)
class PlannedChange:
    """The change that a wish amounts to. `agent`: the result, not saved. `values`: the columns that change, in `before`
    if that is given. `device`: the row id of the device whose folders are read.
    """

    action: Literal["insert", "update", "delete"]
    agent: Agent
    before: Agent | None = None
    values: dict[str, Any] = field(default_factory=dict)
    device: uuid.UUID | None = None
    device_name: str = ""


def plan(user_id: uuid.UUID, before: Agent | None, wish: Wish, device_id: uuid.UUID | None) -> PlannedChange:
    """Check a wish. `device_id`: the row of the device that asks. Raises CannotSetUp, NothingToChange."""
    if wish.delete:
        if before is None:
            raise CannotSetUp("to delete an agent, name it")
        return PlannedChange("delete", before, before)
    user = User.objects.get(pk=user_id)
    agent_type = _type_of(before, wish)
    values = _common_values(wish)
    device = None
    if agent_type == AgentType.LOCAL_DIRECTORY:
        device = _device(user_id, before, device_id)
        values |= _folder_values(wish, device, before)
    else:
        values |= _mailbox_values(user_id, agent_type, wish, before)
    if before is None:
        values = _defaults(agent_type, values, wish) | values
        values |= {"device_id": device.device_id} if device else {"type": agent_type}
    else:
        values = {name: value for name, value in values.items() if getattr(before, name) != value}
        if not values:
            raise NothingToChange
    agent = Agent(user=user, type=agent_type) if before is None else _copy(before)
    for name, value in values.items():
        setattr(agent, name, value)
    if agent.catch_up != CatchUp.WITHIN:
        agent.catch_up_hours = None
    name = (device.name or device.device_id) if device else ""
    return PlannedChange(
        "insert" if before is None else "update", agent, before, values, device.pk if device else None, name
    )


def _copy(agent: Agent) -> Agent:
    return Agent.objects.select_related("user", "connection").get(pk=agent.pk)


def _type_of(before: Agent | None, wish: Wish) -> AgentType:
    if before is not None:
        if wish.kind is not None and _TYPES[wish.kind] != before.type:
            raise CannotSetUp("what an agent reads stays folders, or the same mailbox: make another one")
        agent_type = AgentType(before.type)
    elif wish.kind is not None:
        agent_type = _TYPES[wish.kind]
    elif wish.folders:
        agent_type = AgentType.LOCAL_DIRECTORY
    else:
        raise CannotSetUp("kind is needed for a new agent: folder, gmail, outlook or teams")
    wrong = _OF_MAILBOXES if agent_type == AgentType.LOCAL_DIRECTORY else _OF_FOLDERS
    if misplaced := sorted(wrong & wish.given()):
        raise CannotSetUp(f"{misplaced[0]} is nothing that an agent of this kind has")
    return agent_type


def _common_values(wish: Wish) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if wish.name is not None:
        values["name"] = _text("name", " ".join(wish.name.split()), _NAME_CHARS)
    if wish.look_for is not None:
        values["prompt_template"] = _text("look_for", wish.look_for.strip(), _LOOK_FOR_CHARS)
    if wish.tables:
        values["data_types"] = _checked(configuration.tables, wish.tables)
    if wish.schedule is not None:
        values["schedule_cron"] = _checked(configuration.schedule, wish.schedule.strip())
    if wish.timezone is not None:
        values["timezone"] = _checked(configuration.zone, wish.timezone.strip())
    if wish.announce is not None:
        if wish.announce not in Announce.values:
            raise CannotSetUp(f"announce is one of {', '.join(Announce.values)}")
        values["announce"] = Announce(wish.announce)
    if wish.enabled is not None:
        values["enabled"] = wish.enabled
    return values | _catch_up(wish)


def _catch_up(wish: Wish) -> dict[str, Any]:
    way = wish.catch_up or (CatchUp.WITHIN.value if wish.hours is not None else None)
    if way is None:
        return {}
    if way not in CatchUp.values:
        raise CannotSetUp(f"catch_up is one of {', '.join(CatchUp.values)}")
    if way != CatchUp.WITHIN:
        return {"catch_up": CatchUp(way), "catch_up_hours": None}
    if wish.hours is None or not 1 <= wish.hours <= MAX_CATCH_UP_HOURS:
        raise CannotSetUp(f"catch_up within needs hours, 1 to {MAX_CATCH_UP_HOURS}")
    return {"catch_up": CatchUp.WITHIN, "catch_up_hours": wish.hours}


def _text(name: str, text: str, most: int) -> str:
    if not text or len(text) > most:
        raise CannotSetUp(f"{name} has 1 to {most:,} characters")
    return text


def _checked(check: Callable[[Given], Checked], given: Given) -> Checked:
    try:
        return check(given)
    except BadPart as error:
        raise CannotSetUp(str(error).rstrip(".")) from None


# ── Folders ─────────────────────────────────────────────────────────────────────────────────────────────


def _device(user_id: uuid.UUID, before: Agent | None, device_id: uuid.UUID | None) -> Device | None:
    """Return the device whose folders the agent reads; for a new agent, the one that asks, or was seen last."""
    mine = Device.objects.of(user_id)
    if before is not None:
        return mine.filter(device_id=before.device_id).first()
    asking = mine.filter(pk=device_id).first() if device_id else None
    device = asking or mine.seen_last_first().first()
    if device is None:
        raise CannotSetUp(
            "no device has said hello yet, so no folder can be read. The user has to start Adiuva on one"
        )
    return device


def _folder_values(wish: Wish, device: Device | None, before: Agent | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if wish.folders:
        paths = _checked(configuration.folders, wish.folders)
        if len(paths) > MOST_FOLDERS:
            raise CannotSetUp(f"an agent that is made in a chat reads at most {MOST_FOLDERS} folders")
        if device is not None and (foreign := ungranted(device, paths)):
            raise CannotSetUp(
                f"“{device.name or device.device_id}” has not granted {', '.join(foreign)}. The user has to grant it "
                "there, in the app under Settings, Folders; or name another folder"
            )
        values["directory_paths"] = paths
    elif before is None:
        raise CannotSetUp("folders are needed: ask the user which, as absolute paths on their device")
    if wish.extensions is not None:
        values["file_extensions"] = _checked(configuration.extensions, wish.extensions)
    return values


def ungranted(device: Device, paths: Sequence[str]) -> list[str]:
    """Return the folders that lie in none that the device grants; no folders if it did not say which it grants."""
    if (grants := device.grants) is None:
        return []
    granted = [_prefix(grant) for grant in grants]
    return [path for path in paths if not any(_prefix(path).startswith(grant) for grant in granted)]


def _prefix(path: str) -> str:
    return f"{path.replace(chr(92), '/').rstrip('/')}/"


# ── Mailboxes ───────────────────────────────────────────────────────────────────────────────────────────


def _mailbox_values(
    user_id: uuid.UUID, agent_type: AgentType, wish: Wish, before: Agent | None
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if before is None:
        try:
            values["connection"] = services.connection_for(user_id, agent_type.value, None)
        except AdiuvaError as error:
            several = "Several" in str(error.fields)
            raise CannotSetUp(
                f"several {agent_type.label} accounts are connected: the user has to make this agent in the app"
                if several
                else f"no {agent_type.label} account is connected, or it has to be connected again: the user has to do "
                "that in the app, under Settings, Accounts"
            ) from None
    if not _OF_MAILBOXES & wish.given():
        return values
    filters = dict(before.filter_config) if before is not None else {}
    for name in ("labels", "senders"):
        if (given := getattr(wish, name)) is not None:
            if len(given) > _MOST_NAMES:
                raise CannotSetUp(f"at most {_MOST_NAMES} {name}")
            filters[name] = list(given)
    if wish.first_day is not None or wish.last_day is not None:
        span = dict(filters.get("date_range") or {})
        filters["date_range"] = span | {
            end: day for end, day in (("from", wish.first_day), ("to", wish.last_day)) if day is not None
        }
    try:
        values["filter_config"] = services.clean_filter_config(filters)
    except AdiuvaError as error:
        said = "; ".join(line for lines in (error.fields or {}).values() for line in lines)
        raise CannotSetUp(f"the filters cannot be used: {said or error.message}".rstrip(".")) from None
    return values


def _defaults(agent_type: AgentType, values: dict[str, Any], wish: Wish) -> dict[str, Any]:
    if wish.look_for is None:
        raise CannotSetUp("look_for is needed: what the agent is to find, in the user's words")
    if agent_type == AgentType.LOCAL_DIRECTORY:
        folder = values["directory_paths"][0].replace("\\", "/").rstrip("/")
        name = PurePath(folder).name or gettext("Local folders agent")
    else:
        name = gettext("{provider} agent").format(provider=agent_type.label)
    return {"name": name[:_NAME_CHARS], "data_types": list(_DEFAULT_TABLES)}


# ── Try out, and save ───────────────────────────────────────────────────────────────────────────────────


async def preview(plan: PlannedChange, zone: ZoneInfo) -> TrialResult:
    """Return the records that the agent would find in up to three documents. Raises nothing."""
    agent = plan.agent
    proposal = AgentProposal(
        prompt_template=agent.prompt_template,
        data_types=agent.data_types,
        name=agent.name,
        filter_config=agent.filter_config,
        file_extensions=agent.file_extensions,
    )
    return await run_trial(
        SampleRequest(
            agent.user_id,
            uuid.uuid4(),
            AgentType(agent.type),
            plan.before.pk if plan.before else None,
            proposal,
            connection_id=agent.connection_id,
            device=plan.device,
            paths=tuple(agent.directory_paths),
        ),
        zone,
    )


def needs_preview(plan: PlannedChange) -> bool:
    """Return whether the plan changes what the agent reads or looks for."""
    parts = {"prompt_template", "data_types", "directory_paths", "file_extensions", "filter_config"}
    return plan.action != "delete" and bool(parts & plan.values.keys())


def save(plan: PlannedChange) -> Agent | None:
    """Carry a plan out. Returns None if that deletes the agent. Raises NotFound, Invalid."""
    values = dict(plan.values)
    if plan.action == "delete":
        services.delete(agent=plan.agent)
        return None
    if plan.before is not None:
        update = services.update if plan.before.is_local else services.update_cloud
        return update(agent=plan.before, values=values)
    if plan.agent.is_local:
        return services.create_local(user_id=plan.agent.user_id, values=values)
    connection = values.pop("connection")
    return services.create_cloud(user_id=plan.agent.user_id, values=values | {"connection": connection.pk})
