"""The tool that makes, changes, schedules and deletes agents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from django.utils import translation
from django.utils.translation import gettext
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.devices.models import Device
from agents import run_reports, schedule_words, schedules, services, set_up, template_set_up
from agents.journeys.trial import trial_summary
from agents.models import Agent
from agents.run_reports import OpenedAgent
from agents.set_up import CannotSetUp, NothingToChange, PlannedChange, Wish
from chat.agent_tool_context import AGENTS, AgentWork, agent_work_of
from chat.device_session import DeviceSession, device_session_of
from chat.tools import agent_confirmations
from chat.tools.agent_lookup import find_agent
from chat.tools.agent_texts import agent_label
from chat.tools.base import OrNull, assistant_tool
from chat.untrusted_text import one_line


def _as_list(given: object) -> object:
    """Return a list: a model may write one name, several between commas, or a list."""
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given


def _one_or_more(given: object) -> object:
    return [given] if isinstance(given, str) else given


# The model's description is as short as possible: five tools of agents go with every request of Home.
Names = Annotated[list[str] | OrNull, BeforeValidator(_as_list), WithJsonSchema({"type": "string"})]
Word = Annotated[str | OrNull, WithJsonSchema({"type": "string"})]


class SetUpArguments(BaseModel):
    """The arguments of `set_up_agent`. An omitted one leaves the agent as it is, or gives a new one the default."""

    agent: Word = None
    kind: Literal["folder", "gmail", "outlook", "teams"] | OrNull = None
    name: Word = None
    look_for: Word = None
    tables: Names = None
    folders: Annotated[list[str] | OrNull, BeforeValidator(_one_or_more)] = None
    extensions: Names = None
    labels: Names = None
    senders: Names = None
    from_: Annotated[Word, Field(alias="from")] = None
    to: Word = None
    schedule: Annotated[str | OrNull, Field(description="cron, or none")] = None
    timezone: Word = None
    catch_up: Literal["once", "skip", "within"] | OrNull = None
    hours: int | OrNull = None
    announce: Literal["never", "problems", "always"] | OrNull = None
    enabled: bool | OrNull = None
    delete: bool = False
    template: Annotated[Word, Field(description="a plugin's name")] = None


@assistant_tool(AGENTS, "change", "Setting up your agent", arguments=SetUpArguments)
async def set_up_agent(config: RunnableConfig, **arguments: Any) -> str:
    """Make an agent, or change, schedule or delete a named one, as the user said. The system asks for the yes."""
    work, session = agent_work_of(config), device_session_of(config)
    agent = arguments.pop("agent", None)
    given = {name: value for name, value in arguments.items() if value not in (None, "", [])}
    before = (await find_agent(work, session, agent))[0].agent if agent else None
    if str(given.get("schedule", "")).strip().lower() == "none":
        given["schedule"] = ""
    named = {name.rstrip("_"): value for name, value in given.items()}
    wanted, chosen = given.pop("template", None), None
    wishes = {"first_day" if n == "from_" else "last_day" if n == "to" else n: v for n, v in given.items()}
    try:
        if wanted is not None:
            chosen = await db.run(template_set_up.choose, work.user_id, wanted, before)
            wishes = await db.run(template_set_up.parts, work.user_id, chosen, wishes)
        plan = await db.run(set_up.plan, work.user_id, before, Wish(**wishes), work.request.device_id)
    except NothingToChange:  # not a failure: models would take that for a reason to try again
        assert before is not None
        opened, said = await db.run(_about_saved, before)
        return (
            f"The agent {agent_label(session, opened)} is like that already, so nothing was changed. {said}"
        )
    except CannotSetUp as error:
        raise ToolException(f"Failed: {error.message}. Nothing was saved.") from None
    named |= {"agent": str(before.pk)} if before else {}
    await _confirm(work, session, plan, named, chosen.name if chosen else "")
    try:
        saved = (
            await db.run(set_up.save, plan)
            if chosen is None
            else await db.run(template_set_up.install_and_save, work.user_id, chosen, plan)
        )
    except AdiuvaError as error:
        raise ToolException(f"Failed: {error.message}. Nothing was saved.") from None
    if saved is None:
        return "The agent is deleted. What it has found stays."
    opened, said = await db.run(_about_saved, saved)
    return f"{'Made' if plan.before is None else 'Changed'} the agent {agent_label(session, opened)}. {said}"


async def _confirm(
    work: AgentWork, session: DeviceSession, plan: PlannedChange, arguments: dict[str, Any], template: str
) -> None:
    """Return once the user has said yes to a plan. Raises ToolException, with the findings if it was tried out."""
    question, found, approvals = (
        await db.run(agent_confirmations.plan_question, plan, template),
        "",
        work.approvals,
    )
    # A trial costs money and has a model read documents, so no text may cause one.
    is_wanted = work.user_words().want_set_up(misled=work.is_misled)
    if is_wanted and set_up.needs_preview(plan) and not approvals.has_grant(set_up_agent.name, arguments):
        work.show_status(gettext("Trying it out on your documents"))
        trial = await set_up.preview(plan, session.zone)
        found = trial_summary(trial)
        session.foreign.add(AGENTS, "preview")
        names = [record.data.get("title") or record.data.get("name") for record in trial.records[:10]]
        shown = "; ".join(filter(None, map(one_line, names)))
        told = f"Tried out, not saved: {found}" + (f" Such as: {shown}." if shown else "")
    else:
        told = ""
    summary = f"{question}. {found}" if found and approvals.ask is not None else question
    try:
        await approvals.confirm(set_up_agent.name, arguments, plan.action, AGENTS, summary)
    except ToolException as refused:
        raise ToolException(f"{refused} {told}".strip()) from None


def _about_saved(saved: Agent) -> tuple[OpenedAgent, str]:
    """Return what to say of a saved agent: from its row, when it runs; and which agents read the same sources."""
    agent = Agent.objects.select_related("user", "connection").get(pk=saved.pk)
    said = []
    with translation.override("en"):
        if agent.schedule_cron and agent.enabled:
            times = schedule_words.moments_text(schedules.upcoming_slots(agent, 3))
            said.append(
                f"It runs {schedule_words.describe(agent.schedule_cron)} ({agent.zone}). Next: {times}."
            )
            if agent.zone == "UTC" and not agent.timezone:
                zones = Device.objects.of(agent.user_id).exclude(timezone__in=("", "UTC"))
                seen = zones.seen_last_first().values_list("timezone", flat=True).first()
                where = f", their device is in {seen}" if seen else ""
                said.append(f"The account's time zone is UTC{where}: ask the user which is theirs.")
        elif agent.schedule_cron:
            said.append("Its schedule is switched off.")
        else:
            said.append("It runs when the user asks for it.")
    said += [
        f"“{one_line(other.name)}” reads the same: each record comes from the one that reads first."
        for other in services.overlapping(agent)[:3]
    ]
    return run_reports.open_agent(agent), " ".join(said)
