"""Texts about agents and their runs for a model: facts first, failures before all else, then possible actions."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import translation

from adiuva.core import number_formats
from adiuva.devices.protocol import Data
from agents import schedule_words
from agents.models import Agent, Run
from agents.run_reports import Now, OpenedAgent, ReportedRecord, RunReport
from chat.device_session import DeviceSession
from chat.tools import dates, formatting
from chat.tools.formatting import count_text
from chat.untrusted_text import one_line

AGENT_TABLE: Final = "agents"
RUN_TABLE: Final = "runs"
_PROBLEM_CHARS: Final = 200
_LOOK_FOR_CHARS: Final = 300
_MOST_FOLDERS: Final = 3
TOLD_LATER: Final = "The user will be told here when it ends"
_STATES: Final = {
    Run.State.CANCELLED: "was stopped",
    Run.State.TIMEOUT: "was broken off",
    Run.State.ERROR: "failed",
    Run.State.PARTIAL: "ended with failures",
    Run.State.SUCCESS: "ended well",
}


def agent_label(session: DeviceSession, opened: OpenedAgent) -> str:
    return f"“{one_line(opened.name)}” [{session.aliases.alias(AGENT_TABLE, str(opened.id))}]"


def run_label(session: DeviceSession, run_id: UUID) -> str:
    return f"run [{session.aliases.alias(RUN_TABLE, str(run_id))}]"


def agent_line(
    session: DeviceSession, opened: OpenedAgent, last: Run | None, *, device: str, full: bool
) -> str:
    """Describe an agent on one line: what it reads and finds, when, and how its last run ended."""
    agent = opened.agent
    facts = [source_text(agent, device), f"finds {', '.join(agent.data_types)}"]
    if full and agent.prompt_template:
        facts.append(f"looks for: {one_line(agent.prompt_template, _LOOK_FOR_CHARS)}")
    facts.append(_schedule(agent))
    if agent.held_by_plan:
        facts.append("held: the user's plan has no room for it")
    if agent.paused == "no_connection":
        facts.append(f"paused: its {agent.get_type_display()} account is not connected any more")
    elif agent.paused:
        facts.append(f"paused: the user has to connect {agent.get_type_display()} again")
    facts.append(f"last {_last_run(session, last)}" if last else never_run_text(agent, session.zone))
    return f"- {agent_label(session, opened)}: {'; '.join(facts)}."


def source_text(agent: Agent, device: str) -> str:
    if agent.is_local:
        named = ", ".join(one_line(path) for path in agent.directory_paths[:_MOST_FOLDERS])
        more = len(agent.directory_paths) - _MOST_FOLDERS
        return f"reads {named}{f' and {more} more folders' if more > 0 else ''} on “{one_line(device)}”"
    filters = agent.filter_config
    chosen = [one_line(word) for name in ("labels", "senders") for word in filters.get(name, ())]
    only = f" ({', '.join(chosen[:5])})" if chosen else ""
    return f"reads {agent.get_type_display()}{only}"


def _schedule(agent: Agent) -> str:
    with translation.override("en"):
        said = schedule_words.schedule_text(agent)
    if not said:
        return "no schedule"
    return said if agent.enabled else f"{said.partition(', next')[0]}, but its schedule is switched off"


def _last_run(session: DeviceSession, run: Run) -> str:
    when = moment_text(run.completed_at or run.created_at, session.zone)
    if run.is_live:
        return f"{run_label(session, run.pk)} is under way"
    return f"{run_label(session, run.pk)} {_STATES.get(Run.State(run.state), run.state)}, {when}"


def never_run_text(agent: Agent, zone: ZoneInfo) -> str:
    """Describe an agent without runs. It may have run before: old runs are deleted (agents/retention.py)."""
    if agent.last_run_at is None:
        return "has never run"
    return f"last ran {moment_text(agent.last_run_at, zone)}, of which nothing is kept any more"


def moment_text(when: dt.datetime, zone: ZoneInfo) -> str:
    return dates.format_date(int(when.timestamp() * 1000), zone) or when.isoformat()


# ── A run ───────────────────────────────────────────────────────────────────────────────────────────────


def underway_text(session: DeviceSession, report: RunReport, now: dt.datetime) -> str:
    """Return `is running (run [r1], 12 of 40 documents read, started 2 min ago)`, or what the run waits for."""
    run, label = report.run, run_label(session, report.run.pk)
    begun = f"started {_ago(now - run.created_at)} ago"
    match run.state:
        case Run.State.WAITING_DEVICE:
            return f"waits for the device “{one_line(report.waits_for)}” to connect ({label}, {begun})"
        case Run.State.AWAITING_REAUTH:
            return (
                f"waits for the user to connect {report.waits_for} again, in the app under Settings, Agents ({label}, "
                f"{begun})"
            )
        case Run.State.AWAITING_BUDGET:
            return f"waits, because this month's allowance for models is used up ({label}, {begun})"
        case Run.State.QUEUED if run.not_before is not None and run.not_before > now:
            return f"is tried again at {moment_text(run.not_before, session.zone)} after a fault ({label}, {begun})"
        case Run.State.QUEUED:
            return f"is about to start ({label}, {begun})"
    read = f", {run.files_done} of {run.files_seen} documents read" if run.files_seen else ""
    return f"is running ({label}{read}, {begun})"


def _ago(span: dt.timedelta) -> str:
    seconds = max(0, int(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7_200:
        return f"{seconds // 60} min"
    return f"{seconds // 3_600} h" if seconds < 172_800 else f"{seconds // 86_400} days"


def ended_text(session: DeviceSession, report: RunReport) -> str:
    """Tell how a run ended, without its records."""
    run, name = report.run, f"“{one_line(report.agent_name)}”"
    label = run_label(session, run.pk)
    if run.state == Run.State.CANCELLED:
        return f"{name} was stopped ({label}). {_counts(report)}"
    if run.state in (Run.State.ERROR, Run.State.TIMEOUT):
        return (
            f"Failed: {name} ended without a result ({label}): {_problems(report)} {_counts(report)}".rstrip()
        )
    what = "The dry run of " if run.dry_run else ""
    if run.state == Run.State.PARTIAL or report.problem_count:
        return f"{what}{name} has ended with failures ({label}): {_problems(report)} Otherwise: {_counts(report)}"
    if not run.files_seen:
        return f"{what}{name} has ended ({label}): there was nothing to read."
    if not report.read:
        return (
            f"{what}{name} has ended ({label}): {_documents(run.files_seen)}, none changed since the last run, so "
            "nothing new was found."
        )
    return f"{what}{name} has ended well ({label}): {_counts(report)}"


def _counts(report: RunReport) -> str:
    run = report.run
    if not run.files_seen and not report.found:
        return "Nothing was read."
    each = ", ".join(count_text(count, table) for table, count in report.found.items())
    total = sum(report.found.values())
    found = f"{total} new ({each})" if total else "nothing new"
    unchanged = f", {run.files_unchanged} unchanged" if run.files_unchanged else ""
    would = " would be" if run.dry_run and total else ""
    counted = f"{_documents(report.read)} read, {found.replace(' new', f'{would} new', 1)}{unchanged}."
    cost = report.would_cost_micro
    if cost is None:
        return counted
    price = number_formats.money(cost, settings.BUDGET_CURRENCY, "en")
    return f"{counted} A real run would read {_documents(run.sources_due)}, for about {price}."


def _documents(count: int) -> str:
    return f"{count} document{'' if count == 1 else 's'}"


def _problems(report: RunReport) -> str:
    if not report.problems:
        return f"{report.problem_count} problems."
    named = "; ".join(one_line(text, _PROBLEM_CHARS).rstrip(".") for text in report.problems)
    more = report.problem_count - len(report.problems)
    return f"{named}{f'; and {more} more' if more > 0 else ''}."


# ── Its records ─────────────────────────────────────────────────────────────────────────────────────────


def records_text(
    session: DeviceSession,
    report: RunReport,
    rows: Mapping[str, Data | None],
    fates: Mapping[str, Now],
    unseen: str,
) -> str:
    """Describe the records of a run, each with what has become of it.

    `rows`, `fates`: by row id. `unseen`: why some have no row.
    """
    total = sum(report.found.values())
    if not total:
        return ""
    lines = [_record_line(session, record, rows, fates) for record in report.records]
    if total > len(lines):
        lines.append(f"and {total - len(lines)} more.")
    return "\n".join([_records_head(report, fates, unseen), *lines])


def _records_head(report: RunReport, fates: Mapping[str, Now], unseen: str) -> str:
    if report.run.dry_run:
        return "It would create, and has not created:"
    parts = []
    if report.waiting:
        parts.append(f"{report.waiting} wait for their device to connect.")
    counts = Counter(fates.values())
    if fates and set(counts) == {"to review"}:
        parts.append("They wait for the user's review:")
    elif fates:
        named = ", ".join(
            f"{counts[fate]} {fate}" for fate in ("to review", "approved", "changed", "gone") if counts[fate]
        )
        parts.append(f"Of those looked at on the device: {named}.")
    if unseen:
        parts.append(unseen)
    return " ".join(parts) or "They are:"


def _record_line(
    session: DeviceSession,
    record: ReportedRecord,
    rows: Mapping[str, Data | None],
    fates: Mapping[str, Now],
) -> str:
    key = record.row_id or ""
    row, fate = rows.get(key), fates.get(key)
    if row is not None:
        shown = formatting.row_text(session, record.table, row)  # type: ignore[arg-type]  # a table of the device
        return f"- {shown}{f' ({fate})' if fate in ('approved', 'changed') else ''}"
    noun = count_text(1, record.table).partition(" ")[2]
    return f"- {noun} {one_line(record.title) or '(untitled)'}{' (gone)' if fate == 'gone' else ''}"


def names_text(session: DeviceSession, agents: Sequence[OpenedAgent]) -> str:
    return ", ".join(agent_label(session, opened) for opened in agents)
