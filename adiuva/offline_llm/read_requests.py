"""Handles chat requests that read: lists, counts, due tasks, notes, comments, and the current row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from adiuva.offline_llm import dates, task_groups, time_spans, tool_results
from adiuva.offline_llm.turn_state import Answer, TurnState

_TABLE_PATTERNS = {
    "tasks": re.compile(r"\b(?:tasks?|to-?dos?|to dos)\b"),
    "projects": re.compile(r"\bprojects?\b"),
    "notes": re.compile(r"\bnotes?\b"),
    "timelines": re.compile(r"\b(?:timelines?|milestones?|deadlines?)\b"),
    "clients": re.compile(r"\b(?:clients?|customers?)\b"),
}
_STATUS_PATTERNS = {
    "in_progress": re.compile(r"\bin progress\b"),
    "done": re.compile(r"\b(?:done|finished|completed)\b"),
    "open": re.compile(r"\b(?:open|to do|todo|left|pending|unfinished)\b"),
}
_STATUS_ADJECTIVES = {"open": "open ", "todo": "open ", "in_progress": "started ", "done": "finished "}
_HOW_MANY = re.compile(r"\b(?:how many|count|number of)\b", re.IGNORECASE)
# Such as "due in spring": today's tasks would answer another question.
_UNKNOWN_TIME = re.compile(
    r"\bdue (?:in|on|by|until|within|after|during|at|this|next|the) (?P<when>(?!the project\b|my\b)[\w' -]{2,40})"
)
_THIS_PROJECT = re.compile(r"\b(?:this|the) project\b|\bhere\b", re.IGNORECASE)


def task_status(turn: TurnState, said: str) -> str | None:
    """Return the status that the text names, as the tool spells it, or None."""
    found = next((name for name, pattern in _STATUS_PATTERNS.items() if pattern.search(said)), None)
    return "todo" if found == "open" and not turn.tools.accepts("list tasks", "status", "open") else found


def list_rows(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """List or count the tables that the request names, with one call for each in a single round."""
    said = turn.request.lower()
    kinds = [kind for kind, pattern in _TABLE_PATTERNS.items() if pattern.search(said)]
    at = turn.scope if turn.scope and turn.scope.kind == "project" and _THIS_PROJECT.search(said) else None
    if at is not None:
        kinds = [kind for kind in kinds if kind != "projects"]
    if not kinds:
        return None
    given: dict[str, Any] = {"project": at.id} if at else {}
    if kinds == ["tasks"] and (status := task_status(turn, said)):
        given["status"] = status
    if turn.completed:
        return _describe_counts(turn, given) if _HOW_MANY.search(said) else task_groups.describe(turn)
    everything = re.search(r"\b(?:all|archived)\b", said)
    if "projects" in kinds and everything:
        given["archived"] = True
    operations = [
        "list all projects" if kind == "projects" and everything else f"list {kind}" for kind in kinds
    ]
    return _call_each(turn, operations, given)


def list_due_tasks(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """List the tasks that are due on a day, in a week or month, or overdue."""
    if turn.completed:
        return task_groups.describe(turn)
    said = turn.request.lower()
    by_dates = turn.tools.accepts("list tasks", "from") and turn.tools.accepts("list tasks", "to")
    given: dict[str, Any] = {}
    if status := task_status(turn, "open"):
        given["status"] = status
    if "overdue" in said and by_dates:
        return turn.call_tool("list tasks", {**given, "to": turn.today - timedelta(days=1)})
    if by_dates and (span := time_spans.find_span(said, turn.today)):
        return turn.call_tool("list tasks", {**given, "from": span[0], "to": span[1]})
    found = dates.first_date(said, turn.today)
    if found is not None and found.day != turn.today and by_dates:
        first = turn.today if re.search(r"\b(?:by|until|till|before)\b", said) else found.day
        return turn.call_tool("list tasks", {**given, "from": first, "to": found.day})
    if found is None and (unknown := _UNKNOWN_TIME.search(said)):
        return Answer(
            f"I do not know which days “{unknown['when'].strip()}” is. Name a day, a week or a month."
        )
    return turn.call_tool("due today", {"status": "due"}) or turn.call_tool("list tasks")


def search_notes(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Search the notes."""
    if turn.completed:
        return turn.describe_results()
    query = match["what"].strip(" .?!\"'“”")
    return turn.call_tool("search notes", {"query": query}) or turn.call_tool("list notes", {"search": query})


def read_note(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Read one note: find it by its title, then open it."""
    wanted = match["what"].strip(" .?!\"'“”")
    if not turn.completed:
        return turn.call_tool("list notes", {"search": tool_results.search_words(wanted)})
    if len(turn.completed) > 1 or tool_results.is_failure(turn.completed[0][1]):
        return Answer(tool_results.describe_results(turn.completed[-1:]))
    found = tool_results.best_matches(turn.completed[0][1], wanted)
    if len(found) != 1:
        return turn.describe_results()
    return turn.call_tool("read note", {"id": found[0].id}) or turn.describe_results()


def list_comments(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """List the comments on the current task."""
    if turn.completed:
        return turn.describe_results()
    row = turn.scope or turn.mentioned
    return turn.call_tool("list comments", {"id": row.id}) if row and row.kind == "task" else None


def describe_current_row(turn: TurnState, match: re.Match[str]) -> Answer | None:
    """Describe the row that the user has open."""
    if turn.scope is None:
        return None
    row = turn.scope
    kind = "timeline entry" if row.kind == "timeline" else row.kind
    return Answer(
        f"This is the {kind} “{row.title}”{_details_suffix(row.details)}. {tool_results.entity_tag(row.kind, [row.id])}"
    )


def _details_suffix(more: str) -> str:
    return f": {more.strip(' (),')}" if more else ""


def _call_each(turn: TurnState, operations: list[str], given: Mapping[str, Any]) -> Answer | None:
    calls = [
        call for operation in operations if (call := turn.tools.build_call(operation, given)) is not None
    ]
    return Answer(tool_calls=tuple(calls)) if calls else None


def _describe_counts(turn: TurnState, given: Mapping[str, Any]) -> Answer:
    """Tell the counts in one sentence, or repeat the results if a call failed."""
    numbers = []
    for tool, result in turn.completed:
        if tool_results.is_failure(result):
            return turn.describe_results()
        number, least = tool_results.count_rows(result)
        state_word = _STATUS_ADJECTIVES[given["status"]] if "status" in given else ""
        noun = tool_results.kind_of_tool(tool).replace("timeline", "timeline entry") or "entry"
        plural = noun if number == 1 else f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
        numbers.append(f"{least}{f'{number:,}' if number else 'no'} {state_word}{plural}")
    return Answer(f"You have {' and '.join(numbers)}.")
