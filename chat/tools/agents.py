"""Tools that list, run, read, set up and stop the user's agents.

The services of `agents` do the work. A text that was read must not start, change or schedule anything: a run starts
unasked only if the user's own words ask for it, and whatever changes an agent waits for a yes (chat.approvals).
"""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Final, Literal

from django.utils import timezone as clock
from django.utils import translation
from django.utils.translation import gettext
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.devices.calls import new_call
from adiuva.devices.models import Device
from adiuva.devices.protocol import Data, ToolResultBody
from agents import (
    run_reports,
    runs,
    schedule_words,
    schedules,
    services,
    set_up,
    template_wishes,
    undo,
    watches,
)
from agents.journeys.trial import trial_summary
from agents.models import Agent, Run
from agents.run_reports import Now, OpenedAgent, RunReport
from agents.runs import NoConnection, RunIsLive
from agents.set_up import CannotSetUp, NothingToChange, Plan, Wish
from agents.waiting import TooManyWaits
from agents.watches import TooManyStarts
from chat.agent_work import AGENTS, AgentWork, Started, agent_work_of
from chat.device_session import DeviceSession, device_session_of
from chat.tools import agent_questions, agent_texts, dates
from chat.tools.agent_texts import TOLD_LATER, agent_label, run_label
from chat.tools.base import OrNull, assistant_tool
from chat.untrusted_text import one_line

_MOST_LISTED: Final = 30
_MOST_RUNS: Final = 10
# How long a stopped run may take to let go.
_STOP_S: Final = 8
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_OUTSIDE: Final = (
    "Those rows could not be looked at, since their device is away: these are the titles as found."
)
_ELSEWHERE: Final = "Some are on another device and could not be looked at."


def _as_list(given: object) -> object:
    """A model may write one name, several between commas, or a list."""
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given


# What a model reads of them is as short as can be: five tools go with every request of Home.
WaitSeconds = Annotated[
    int, Field(ge=0, le=300), WithJsonSchema({"type": "integer", "description": "seconds"})
]
Names = Annotated[list[str] | OrNull, BeforeValidator(_as_list), WithJsonSchema({"type": "string"})]
Word = Annotated[str | OrNull, WithJsonSchema({"type": "string"})]


def _one_or_more(given: object) -> object:
    return [given] if isinstance(given, str) else given


# ── Find ────────────────────────────────────────────────────────────────────────────────────────────────


async def _find_agent(
    work: AgentWork, session: DeviceSession, wanted: str
) -> tuple[OpenedAgent, list[OpenedAgent]]:
    """The agent that is meant, and all of the user's. Raises ToolException if there is none, or several."""
    mine = await db.run(run_reports.agents_of, work.user_id)
    if not mine:
        raise ToolException("Failed: there are no agents yet. Offer to set one up.")
    key, said = _id_of(session, wanted), _plain(wanted)
    found = [each for each in mine if str(each.id) == key] or [
        each for each in mine if _plain(each.name) == said
    ]
    found = found or [each for each in mine if said and said in _plain(each.name)]
    if len(found) > 1:
        listed = ", ".join(f"{agent_label(session, each)} {each.agent.get_type_display()}" for each in found)
        raise ToolException(f"Failed: {len(found)} agents are called so: {listed}. Ask which.")
    if not found:
        listed = agent_texts.names_text(session, mine[:_MOST_LISTED])
        there = "There is only" if len(mine) == 1 else "There are"
        raise ToolException(f"Failed: there is no agent “{one_line(wanted)}”. {there} {listed}.")
    return found[0], mine


def _id_of(session: DeviceSession, wanted: str) -> str:
    found = session.aliases.find(wanted)
    return found[1] if found else wanted.strip(" []").lower()


def _plain(name: str) -> str:
    return " ".join(name.casefold().split()).strip("“”\"'")


def _run_id(session: DeviceSession, wanted: str) -> uuid.UUID | None:
    key = _id_of(session, wanted)
    return uuid.UUID(key) if _UUID.fullmatch(key) else None


async def _report(work: AgentWork, run_id: uuid.UUID) -> RunReport:
    report = await db.run(run_reports.read, work.user_id, run_id)
    if report is None:
        raise ToolException("Failed: there is no such run any more.")
    return report


# ── List ────────────────────────────────────────────────────────────────────────────────────────────────


@assistant_tool(AGENTS, "select", "Looking at your agents")
async def list_agents(config: RunnableConfig, search: str | OrNull = None) -> str:
    """List the agents that read folders and mailboxes for the user."""
    work, session = agent_work_of(config), device_session_of(config)
    found = await db.run(_listed, work.user_id, _plain(search or ""))
    if not found:
        return "No agents match." if search else "There are no agents yet. Offer to set one up."
    shown = found[:_MOST_LISTED]
    lines = [
        agent_texts.agent_line(session, opened, last, device=device, full=len(found) <= 3)
        for opened, last, device in shown
    ]
    if left := len(found) - len(shown):
        lines.append(f"and {left} more; narrow the list with search.")
    return "\n".join([f"{len(found)} agent{'' if len(found) == 1 else 's'}:", *lines])


def _listed(user_id: uuid.UUID, search: str) -> list[tuple[OpenedAgent, Run | None, str]]:
    mine = [opened for opened in run_reports.agents_of(user_id) if search in _plain(opened.name)]
    refs = [opened.id for opened in mine]
    last = Run.objects.of(user_id).filter(agent_ref__in=refs).order_by("agent_ref", "-created_at")
    by_agent = {run.agent_ref: run for run in last.distinct("agent_ref")}
    ids = {opened.agent.device_id for opened in mine}
    devices = {device_id: run_reports.device_name(user_id, device_id) for device_id in ids}
    return [(opened, by_agent.get(opened.id), devices[opened.agent.device_id]) for opened in mine]


# ── Run ─────────────────────────────────────────────────────────────────────────────────────────────────


@assistant_tool(AGENTS, "change", "Starting your agent")
async def run_agent(
    config: RunnableConfig,
    agent: str,
    dry_run: bool = False,
    max_documents: Annotated[int | OrNull, Field(ge=1, le=100), WithJsonSchema({"type": "integer"})] = None,
    wait_for_result: WaitSeconds = 0,
    follow_up: bool = True,
) -> str:
    """Run an agent now, because the user wants it. A dry run only shows. Wait if they want to."""
    work, session = agent_work_of(config), device_session_of(config)
    if max_documents is not None and not dry_run:
        raise ToolException("Failed: max_documents is for dry runs.")
    found, mine = await _find_agent(work, session, agent)
    name, loop_time = agent_label(session, found), work.now()
    if (before := work.started.get(found.id)) is not None and before.is_recent(loop_time, work.heard):
        age = int(loop_time - before.at)
        label = run_label(session, before.run_id)
        return f"Started by you {age} s ago in this conversation ({label}); nothing was started again."
    is_away = await db.run(_check_source, found.agent)
    if not work.user_words().want_run(found.name, misled=work.is_misled, is_only=len(mine) == 1):
        arguments = {"agent": str(found.id), "dry_run": dry_run, "max_documents": max_documents}
        question = agent_questions.run_question(found.name, dry_run=dry_run)
        await work.approvals.confirm(run_agent.name, arguments, "run", AGENTS, question)
    place = work.chat_place(follow_up=follow_up)
    try:
        start = partial(
            runs.start, agent=found.agent, dry_run=dry_run, max_sources=max_documents, place=place
        )
        run = await db.run(start)
    except RunIsLive as live:
        return await _under_way(work, session, live.run_id, name, wait_for_result, follow_up=follow_up)
    except TooManyStarts as error:
        where = "your chats" if error.everywhere else "this conversation"
        raise ToolException(
            f"Failed: {error.count} runs were started from {where} in the last hour, which is the most. The user can "
            "start one in the app."
        ) from None
    except (NoConnection, AdiuvaError) as error:
        raise ToolException(f"Failed: {error.message}.") from None
    work.started[found.id] = Started(run.pk, loop_time, work.heard)
    if wait_for_result:
        return await _wait(work, session, run.pk, found.name, wait_for_result, follow_up=follow_up)
    waits = f" “{one_line(is_away)}” is not connected: it begins once it is." if is_away else ""
    return (
        f"Started {name} ({run_label(session, run.pk)}); it has not ended yet.{waits} {_later(follow_up)}: do not "
        "wait, poll or start it again. Say so and finish your answer."
    )


def _later(follow_up: bool) -> str:
    return TOLD_LATER if follow_up else "Nobody will be told when it ends"


def _check_source(agent: Agent) -> str:
    """The name of the agent's device if that is away, else "". Raises ToolException if nothing can be read at all."""
    label = agent.get_type_display()
    if not agent.is_local:
        if agent.paused == "no_connection":
            raise ToolException(
                f"Failed: its {label} account is not connected any more. The user has to connect it in the app under "
                "Settings, Accounts, and give it to the agent."
            )
        if agent.paused:
            raise ToolException(
                f"Failed: {label} has to be connected again (the permission was taken back or has expired). The user "
                "does that in the app under Settings, Accounts."
            )
        return ""
    device = Device.objects.of(agent.user_id).filter(device_id=agent.device_id).with_online().first()
    if device is None:
        raise ToolException(
            "Failed: its device has never said hello, so no folder can be read. The user has to start Adiuva on it."
        )
    name = device.name or device.device_id
    missing = set_up.ungranted(device, agent.directory_paths)
    if missing and len(missing) == len(agent.directory_paths):
        listed = ", ".join(one_line(path) for path in missing[:3])
        raise ToolException(
            f"Failed: “{one_line(name)}” has not granted {listed}. The user has to grant it there, in the app under "
            "Settings, Folders."
        )
    return "" if getattr(device, "is_online", False) else name


async def _under_way(
    work: AgentWork, session: DeviceSession, run_id: uuid.UUID, name: str, wait: int, *, follow_up: bool
) -> str:
    report = await _report(work, run_id)
    if follow_up:
        await db.run(watches.join, run_id, work.chat_place())
    if wait and report.run.is_live:
        return await _wait(work, session, run_id, report.agent_name, wait, follow_up=follow_up)
    said = agent_texts.underway_text(session, report, clock.now())
    return f"{name} {said}. Nothing new was started. {_later(follow_up)}."


async def _wait(
    work: AgentWork, session: DeviceSession, run_id: uuid.UUID, name: str, wanted: int, *, follow_up: bool
) -> str:
    seconds = work.longest_wait_s(wanted)
    shorter = f" ({wanted} s would not have left time for an answer)" if seconds < wanted - 1 else ""
    try:
        end = await work.wait(run_id, name, seconds)
    except TooManyWaits as error:
        return f"It was started and not waited for: {error.message}. {_later(follow_up)}."
    report = await _report(work, run_id)
    if not report.run.is_live:
        return await _ended(work, session, report)
    said = f"“{one_line(name)}” {agent_texts.underway_text(session, report, clock.now())}"
    if end.by == "user":
        return f"{said}. The user has said something meanwhile: finish your answer. {_later(follow_up)}."
    if end.by == "time":
        return f"After {round(end.waited_s)} s{shorter}: {said}. {_later(follow_up)}: do not wait again."
    return f"{said}. It cannot go on before that: tell the user. {_later(follow_up)}."


# ── Read a run ──────────────────────────────────────────────────────────────────────────────────────────


@assistant_tool(AGENTS, "select", "Looking at what your agent found")
async def view_agent_output(
    config: RunnableConfig,
    agent: str | OrNull = None,
    run: str | OrNull = None,
    when: Annotated[str | OrNull, Field(description="today, yesterday, a date or from..to")] = None,
    wait_if_running: WaitSeconds = 0,
) -> str:
    """What an agent's run has found, and how it went."""
    work, session = agent_work_of(config), device_session_of(config)
    if run:
        if (run_id := _run_id(session, run)) is None:
            raise ToolException("Failed: runs are named by their labels, such as x1.")
        return await _view(work, session, run_id, wait_if_running)
    agent_id = (await _find_agent(work, session, agent))[0].id if agent else None
    since, until = _span(when, session)
    find = partial(
        run_reports.latest, work.user_id, agent_id=agent_id, since=since, until=until, most=_MOST_RUNS
    )
    found = await db.run(find)
    if not found:
        return "There is no run that fits." if when or agent else "No agent has run yet."
    shown = await _view(work, session, found[0].pk, wait_if_running)
    if since is None or len(found) == 1:
        return shown
    others = [await db.run(run_reports.report_of, each) for each in found[1:]]
    lines = [f"- {_brief(session, report)}" for report in others]
    return "\n".join([shown, "Before that:", *lines])


def _brief(session: DeviceSession, report: RunReport) -> str:
    if report.run.is_live:
        return f"“{one_line(report.agent_name)}” {agent_texts.underway_text(session, report, clock.now())}"
    when = agent_texts.moment_text(report.run.completed_at or report.run.created_at, session.zone)
    return f"{when}: {agent_texts.ended_text(session, report)}"


def _span(when: str | None, session: DeviceSession) -> tuple[dt.datetime | None, dt.datetime | None]:
    said = (when or "latest").strip().lower()
    if said == "latest":
        return None, None
    day = {"today": session.today, "yesterday": session.today - dt.timedelta(days=1)}.get(said)
    first, _, last = said.partition("..")
    first, last = (day.isoformat(),) * 2 if day else (first, last or first)
    since = dates.parse_start_ms(first, session.zone, "when")
    until = dates.parse_end_ms(last, session.zone, "when")
    return _moment(since), _moment(until + 1)


def _moment(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


async def _view(work: AgentWork, session: DeviceSession, run_id: uuid.UUID, wait: int) -> str:
    report = await _report(work, run_id)
    if not report.run.is_live:
        return await _ended(work, session, report)
    if wait and report.run.state in (Run.State.QUEUED, Run.State.RUNNING):
        await db.run(watches.join, run_id, work.chat_place())
        return await _wait(work, session, run_id, report.agent_name, wait, follow_up=True)
    return f"“{one_line(report.agent_name)}” {agent_texts.underway_text(session, report, clock.now())}."


async def _ended(work: AgentWork, session: DeviceSession, report: RunReport) -> str:
    """All of a run that has ended. The turn tells it, so nobody else need."""
    said = agent_texts.ended_text(session, report)
    if report.problems or report.records:
        session.foreign.add(agent_texts.RUN_TABLE, str(report.run.pk))
    rows, fates, unseen = await _look_at_rows(work, session, report)
    listed = agent_texts.records_text(session, report, rows, fates, unseen)
    # Noted before: if the turn is cancelled meanwhile, its end has to let go of what the thread may still hold.
    work.asked_runs.add(report.run.pk)
    await db.run(watches.hold, report.run.pk, work.chat_place())
    work.answered_runs.add(report.run.pk)
    return f"{said}\n{listed}" if listed else said


async def _look_at_rows(
    work: AgentWork, session: DeviceSession, report: RunReport
) -> tuple[Mapping[str, Data | None], Mapping[str, Now], str]:
    """The rows of a run's records as the device has them now, what became of each, and why some are not seen."""
    there = [record for record in report.records if record.row_id is not None]
    if not there:
        return {}, {}, ""
    try:
        here = (await session.link.target()).pk
    except AdiuvaError:
        return {}, {}, _OUTSIDE
    mine = [record for record in there if record.device == here]
    calls = [new_call("get", record.table, data={"id": record.row_id}) for record in mine]  # type: ignore[arg-type]
    rows: dict[str, Data | None] = {}
    fates: dict[str, Now] = {}
    for record, outcome in zip(mine, await session.call_many(calls) if calls else [], strict=True):
        if isinstance(outcome, ToolResultBody) and record.row_id is not None:
            rows[record.row_id] = outcome.row
            fates[record.row_id] = record.now(work.claimed.cipher, outcome.row)
    unseen = _OUTSIDE if mine and not rows else _ELSEWHERE if len(mine) < len(there) else ""
    return rows, fates, unseen


# ── Set up ──────────────────────────────────────────────────────────────────────────────────────────────


class SetUpArguments(BaseModel):
    """The arguments of `set_up_agent`; what is left out stays as it is, or is as usual."""

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
    before = (await _find_agent(work, session, agent))[0].agent if agent else None
    if str(given.get("schedule", "")).strip().lower() == "none":
        given["schedule"] = ""
    asked = {name.rstrip("_"): value for name, value in given.items()}
    wanted, chosen = given.pop("template", None), None
    wishes = {"first_day" if n == "from_" else "last_day" if n == "to" else n: v for n, v in given.items()}
    try:
        if wanted is not None:
            chosen = await db.run(template_wishes.choose, work.user_id, wanted, before)
            wishes = await db.run(template_wishes.parts, work.user_id, chosen, wishes)
        plan = await db.run(set_up.plan, work.user_id, before, Wish(**wishes), work.request.device_id)
    except NothingToChange:  # what the user wants is so: models take a failure for a reason to try again
        assert before is not None
        opened, said = await db.run(_about_saved, before)
        return (
            f"The agent {agent_label(session, opened)} is like that already, so nothing was changed. {said}"
        )
    except CannotSetUp as error:
        raise ToolException(f"Failed: {error.message}. Nothing was saved.") from None
    asked |= {"agent": str(before.pk)} if before else {}
    await _confirm(work, session, plan, asked, chosen.name if chosen else "")
    try:
        if chosen is not None:
            await db.run(template_wishes.install, work.user_id, chosen)
        saved = await db.run(set_up.save, plan)
    except AdiuvaError as error:
        raise ToolException(f"Failed: {error.message}. Nothing was saved.") from None
    if saved is None:
        return "The agent is deleted. What it has found stays."
    opened, said = await db.run(_about_saved, saved)
    return f"{'Made' if plan.before is None else 'Changed'} the agent {agent_label(session, opened)}. {said}"


async def _confirm(
    work: AgentWork, session: DeviceSession, plan: Plan, arguments: dict[str, Any], template: str
) -> None:
    """Return once the user has said yes to a plan. Raises ToolException, with what the plan would find."""
    question, found, approvals = (
        await db.run(agent_questions.plan_question, plan, template),
        "",
        work.approvals,
    )
    # To try it out costs money and has a model read documents: not because a text wants it.
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
    asked = f"{question}. {found}" if found and approvals.ask is not None else question
    try:
        await approvals.confirm(set_up_agent.name, arguments, plan.action, AGENTS, asked)
    except ToolException as refused:
        raise ToolException(f"{refused} {told}".strip()) from None


def _about_saved(saved: Agent) -> tuple[OpenedAgent, str]:
    """What is to be said of an agent that was saved: when it runs, from its row, and which others read the same."""
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


# ── Stop ────────────────────────────────────────────────────────────────────────────────────────────────


@assistant_tool(AGENTS, "change", "Stopping your agent")
async def stop_run(config: RunnableConfig, run_or_agent: str, undo: bool = False) -> str:
    """Stop a run; with undo, take back what it did, also later."""
    work, session = agent_work_of(config), device_session_of(config)
    report, only = await _run_to_stop(work, session, run_or_agent, ended_too=undo)
    run, name = report.run, one_line(report.agent_name)
    if not run.is_live and not undo:
        return f"Nothing was stopped, since it does not run. {agent_texts.ended_text(session, report)}"
    if undo or not work.user_words().want_stop(report.agent_name, misled=work.is_misled, is_only=only):
        question = agent_questions.stop_question(report.agent_name, undo=undo, is_live=run.is_live)
        arguments = {"run_or_agent": str(run.pk), "undo": undo}
        await work.approvals.confirm(stop_run.name, arguments, "delete" if undo else "stop", AGENTS, question)
    said = []
    if run.is_live:
        await db.run(watches.drop, run.pk)
        await db.run(_cancel, run)
        end = await work.wait(run.pk, report.agent_name, work.longest_wait_s(_STOP_S))
        report = await _report(work, run.pk)
        if report.run.is_live:
            return f"“{name}” was told to stop; after {round(end.waited_s)} s it has not yet, and will within a minute."
        said.append(agent_texts.ended_text(session, report))
    if undo:
        said.append(await _undone(report.run, name))
    return " ".join(said)


async def _run_to_stop(
    work: AgentWork, session: DeviceSession, wanted: str, *, ended_too: bool
) -> tuple[RunReport, bool]:
    """The run that is meant, and whether no other could be."""
    run_id = _run_id(session, wanted)
    mine = await db.run(run_reports.agents_of, work.user_id)
    if run_id is not None and run_id not in {opened.id for opened in mine}:
        return await _report(work, run_id), False
    found, _ = await _find_agent(work, session, wanted)
    runs_of = await db.run(partial(run_reports.latest, work.user_id, agent_id=found.id, most=1))
    if not runs_of:
        never = agent_texts.never_run_text(found.agent, session.zone)
        raise ToolException(f"Failed: “{one_line(found.name)}” {never}.")
    if not runs_of[0].is_live and not ended_too:
        return await db.run(run_reports.report_of, runs_of[0]), True
    live = await db.run(_count_live, work.user_id)
    return await db.run(run_reports.report_of, runs_of[0]), live <= 1


def _count_live(user_id: uuid.UUID) -> int:
    return Run.objects.of(user_id).live().count()


def _cancel(run: Run) -> None:
    runs.cancel(run=run)


async def _undone(run: Run, name: str) -> str:
    try:
        await db.run(watches.drop, run.pk)
        done = await undo.undo(run=run)
    except undo.UndoStopped as error:
        return f"Failed: the undo has stopped ({error.message}). What was done until then stays done."
    except AdiuvaError as error:
        return f"Failed: nothing was undone: {error.message}."
    kept = f" {len(done.kept)} stay, since the user has changed, approved or uses them." if done.kept else ""
    never = f" {done.never_sent} had not arrived and will not." if done.never_sent else ""
    restored = f", {done.restored} restored" if done.restored else ""
    return f"Undone: {done.deleted} of its records deleted{restored}.{never}{kept}"


AGENT_TOOLS: Final = (list_agents, run_agent, view_agent_output, set_up_agent, stop_run)
READING_AGENT_TOOLS: Final = (list_agents, view_agent_output)
