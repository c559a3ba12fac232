"""Describes the end of an agent's run: facts for a model, a notice for people, a frame for devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from django.utils.translation import gettext, ngettext

from adiuva.core.crypto import UserCipher
from adiuva.devices.protocol import RunEnded
from agents import run_reports
from agents.models import Run, Watch
from agents.run_reports import RunReport
from chat.request import RunEnds
from chat.untrusted_text import one_line

_TITLES: Final = 20
_CHARS: Final = 300


@dataclass(frozen=True)
class RunEnd:
    """An end that somebody wants to hear of, and what there is to tell of it."""

    watch: Watch
    report: RunReport


def read(watches: Iterable[Watch]) -> list[RunEnd]:
    return [RunEnd(watch, run_reports.report_of(watch.run)) for watch in watches]


def origin_of(ends: Iterable[RunEnd]) -> RunEnds:
    told = list(ends)
    return RunEnds(
        tuple(str(each.watch.run_id) for each in told), tuple(each.report.agent_name for each in told)
    )


def facts(cipher: UserCipher, end: RunEnd) -> str:
    """Describe a run's end for the model: the user's words, the figures and titles; no prose of another model."""
    run, report = end.report.run, end.report
    words = one_line(Watch.asked.unseal_from(cipher, end.watch), _CHARS)
    lines = [
        f"The agent “{one_line(report.agent_name)}” has ended: {run.get_state_display()}.",
        f"The user had said: {words}" if words else "The user had started it by hand.",
        f"Documents: {run.files_seen} seen, {run.files_unchanged} unchanged, {run.files_failed} not readable.",
        "New records: " + (", ".join(f"{count} {table}" for table, count in report.found.items()) or "none"),
    ]
    lines += [f"Problem: {one_line(problem, _CHARS)}" for problem in report.problems]
    lines += [f"- {record.table}: {one_line(record.title)}" for record in report.records[:_TITLES]]
    return "\n".join(lines)


def notice(report: RunReport) -> str:
    """Describe a run's end for its user, what went wrong first. The report is in the active language."""
    run, name = report.run, one_line(report.agent_name)
    problem = one_line(report.problems[0], _CHARS).rstrip(".") if report.problems else ""
    if run.state in (Run.State.ERROR, Run.State.TIMEOUT):
        if problem:
            return gettext("The agent “{name}” has failed: {problem}.").format(name=name, problem=problem)
        return gettext("The agent “{name}” has failed.").format(name=name)
    count = sum(report.found.values())
    if problem:
        said = ngettext(
            "The agent “{name}” has ended with {count} problem: {problem}.",
            "The agent “{name}” has ended with {count} problems, the first: {problem}.",
            report.problem_count,
        ).format(name=name, count=report.problem_count, problem=problem)
        more = ngettext(
            "{count} new record waits for your review.", "{count} new records wait for your review.", count
        )
        return f"{said} {more.format(count=count)}" if count else said
    if not count:
        return gettext("The agent “{name}” has ended and found nothing new.").format(name=name)
    told = ngettext(
        "The agent “{name}” has ended: {count} new record waits for your review.",
        "The agent “{name}” has ended: {count} new records wait for your review.",
        count,
    )
    return told.format(name=name, count=count)


def frame(report: RunReport, conversation_id: object = None) -> RunEnded:
    """Return the frame for devices. `conversation_id`: that of the conversation which tells the end."""
    run = report.run
    return RunEnded(
        run_id=str(run.pk),
        agent_id=str(run.agent_ref),
        agent_name=report.agent_name,
        state=run.state,
        verdict=run.verdict,
        records_created=run.items_created,
        problems=report.problem_count,
        conversation_id=str(conversation_id) if conversation_id is not None else None,
    )
