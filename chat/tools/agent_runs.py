"""Tools that run agents, wait for their runs, read what these found, and stop them."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Final

from django.utils import timezone as clock
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import Field, WithJsonSchema

from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.devices.calls import new_call
from adiuva.devices.models import Device
from adiuva.devices.protocol import Data, ToolResultBody
from agents import run_reports, run_watches, runs, set_up, undo
from agents.models import Agent, Run
from agents.run_reports import Now, RunReport
from agents.run_waits import TooManyWaits
from agents.run_watches import TooManyStarts
from agents.runs import NoConnection, RunIsLive
from chat.agent_tool_context import AGENTS, AgentWork, Started, agent_work_of
from chat.device_session import DeviceSession, device_session_of
from chat.tools import agent_confirmations, agent_texts, dates
from chat.tools.agent_lookup import find_agent, read_report, run_id_of
from chat.tools.agent_texts import TOLD_LATER, agent_label, run_label
from chat.tools.base import OrNull, assistant_tool
from chat.untrusted_text import one_line

_MOST_RUNS: Final = 10
# How long a stopped run may take to let go, in seconds.
_STOP_S: Final = 8
_OUTSIDE: Final = (
    "Those rows could not be looked at, since their device is away: these are the titles as found."
)
_ELSEWHERE: Final = "Some are on another device and could not be looked at."

# The model's description is as short as possible: five tools of agents go with every request of Home.
WaitSeconds = Annotated[
    int, Field(ge=0, le=300), WithJsonSchema({"type": "integer", "description": "seconds"})
]


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
    found, mine = await find_agent(work, session, agent)
    name, loop_time = agent_label(session, found), work.now()
    if (before := work.started.get((found.id, dry_run))) is not None and before.is_recent(
        loop_time, work.heard
    ):
        age = int(loop_time - before.at)
        label = run_label(session, before.run_id)
        return f"Started by you {age} s ago in this conversation ({label}); nothing was started again."
    is_away = await db.run(_check_source, found.agent)
    if not work.user_words().want_run(found.name, misled=work.is_misled, is_only=len(mine) == 1):
        arguments = {"agent": str(found.id), "dry_run": dry_run, "max_documents": max_documents}
        question = agent_confirmations.run_question(found.name, dry_run=dry_run)
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
    work.started[found.id, dry_run] = Started(run.pk, loop_time, work.heard)
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
    """Return the name of the agent's device if that is away, else "". Raises ToolException if nothing is readable."""
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
    report = await read_report(work, run_id)
    if follow_up:
        await db.run(run_watches.join, run_id, work.chat_place())
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
    report = await read_report(work, run_id)
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
        if (run_id := run_id_of(session, run)) is None:
            raise ToolException("Failed: runs are named by their labels, such as x1.")
        return await _view(work, session, run_id, wait_if_running)
    agent_id = (await find_agent(work, session, agent))[0].id if agent else None
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
    report = await read_report(work, run_id)
    if not report.run.is_live:
        return await _ended(work, session, report)
    if wait and report.run.state in (Run.State.QUEUED, Run.State.RUNNING):
        await db.run(run_watches.join, run_id, work.chat_place())
        return await _wait(work, session, run_id, report.agent_name, wait, follow_up=True)
    return f"“{one_line(report.agent_name)}” {agent_texts.underway_text(session, report, clock.now())}."


async def _ended(work: AgentWork, session: DeviceSession, report: RunReport) -> str:
    """Describe a run that has ended. The turn tells its end, so no other turn need."""
    said = agent_texts.ended_text(session, report)
    if report.problems or report.records:
        session.foreign.add(agent_texts.RUN_TABLE, str(report.run.pk))
    rows, fates, unseen = await _look_at_rows(work, session, report)
    listed = agent_texts.records_text(session, report, rows, fates, unseen)
    # Noted before the watches are held: if the turn is cancelled meanwhile, its end must release any that the thread
    # still takes.
    work.asked_runs.add(report.run.pk)
    await db.run(run_watches.hold, report.run.pk, work.chat_place())
    work.answered_runs.add(report.run.pk)
    return f"{said}\n{listed}" if listed else said


async def _look_at_rows(
    work: AgentWork, session: DeviceSession, report: RunReport
) -> tuple[Mapping[str, Data | None], Mapping[str, Now], str]:
    """Return the rows of a run's records as the device has them now, what became of each, and why some are missing."""
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
        question = agent_confirmations.stop_question(report.agent_name, undo=undo, is_live=run.is_live)
        arguments = {"run_or_agent": str(run.pk), "undo": undo}
        await work.approvals.confirm(stop_run.name, arguments, "delete" if undo else "stop", AGENTS, question)
    said = []
    if run.is_live:
        await db.run(run_watches.drop, run.pk)
        await db.run(_cancel, run)
        end = await work.wait(run.pk, report.agent_name, work.longest_wait_s(_STOP_S))
        report = await read_report(work, run.pk)
        if report.run.is_live:
            return f"“{name}” was told to stop; after {round(end.waited_s)} s it has not yet, and will within a minute."
        said.append(agent_texts.ended_text(session, report))
    if undo:
        said.append(await _undone(report.run, name))
    return " ".join(said)


async def _run_to_stop(
    work: AgentWork, session: DeviceSession, wanted: str, *, ended_too: bool
) -> tuple[RunReport, bool]:
    """Return the run that is meant, and whether no other could be meant."""
    run_id = run_id_of(session, wanted)
    mine = await db.run(run_reports.agents_of, work.user_id)
    if run_id is not None and run_id not in {opened.id for opened in mine}:
        return await read_report(work, run_id), False
    found, _ = await find_agent(work, session, wanted)
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
        await db.run(run_watches.drop, run.pk)
        done = await undo.undo(run=run)
    except undo.UndoStopped as error:
        return f"Failed: the undo has stopped ({error.message}). What was done until then stays done."
    except AdiuvaError as error:
        return f"Failed: nothing was undone: {error.message}."
    kept = f" {len(done.kept)} stay, since the user has changed, approved or uses them." if done.kept else ""
    never = f" {done.never_sent} had not arrived and will not." if done.never_sent else ""
    restored = f", {done.restored} restored" if done.restored else ""
    return f"Undone: {done.deleted} of its records deleted{restored}.{never}{kept}"
