"""Requests that read: lists, counts, what is due, notes, the row before the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from adiuva.offline_model import dates, results
from adiuva.offline_model.turn import Answer, Turn

_KINDS = {
    "tasks": re.compile(r"\b(?:tasks?|to-?dos?|to dos)\b"),
    "projects": re.compile(r"\bprojects?\b"),
    "notes": re.compile(r"\bnotes?\b"),
    "timelines": re.compile(r"\b(?:timelines?|milestones?|deadlines?)\b"),
    "clients": re.compile(r"\b(?:clients?|customers?)\b"),
}
_STATES = {
    "in_progress": re.compile(r"\bin progress\b"),
    "done": re.compile(r"\b(?:done|finished|completed)\b"),
    "open": re.compile(r"\b(?:open|to do|todo|left|pending|unfinished)\b"),
}
_STATE_WORDS = {"open": "open ", "todo": "open ", "in_progress": "started ", "done": "finished "}
_HOW_MANY = re.compile(r"\b(?:how many|count|number of)\b", re.IGNORECASE)
_HERE = re.compile(r"\b(?:this|the) project\b|\bhere\b", re.IGNORECASE)


def state(turn: Turn, said: str) -> str | None:
    """The status that is meant, as the tool has it."""
    found = next((name for name, pattern in _STATES.items() if pattern.search(said)), None)
    return "todo" if found == "open" and not turn.tools.takes("list tasks", "status", "open") else found


def rows(turn: Turn, match: re.Match[str]) -> Answer | None:
    """List or count what the request names: one call a table, all at once."""
    said = turn.request.lower()
    kinds = [kind for kind, pattern in _KINDS.items() if pattern.search(said)]
    at = turn.scope if turn.scope and turn.scope.kind == "project" and _HERE.search(said) else None
    if at is not None:
        kinds = [kind for kind in kinds if kind != "projects"]
    if not kinds:
        return None
    given: dict[str, Any] = {"project": at.id} if at else {}
    if kinds == ["tasks"] and (status := state(turn, said)):
        given["status"] = status
    if turn.done:
        return _counted(turn, given) if _HOW_MANY.search(said) else turn.told()
    everything = re.search(r"\b(?:all|archived)\b", said)
    wishes = ["list all projects" if kind == "projects" and everything else f"list {kind}" for kind in kinds]
    return _look(turn, wishes, given)


def due(turn: Turn, match: re.Match[str]) -> Answer | None:
    """What is due on a day, by the end of the week, or overdue."""
    if turn.done:
        return turn.told()
    said = turn.request.lower()
    by_dates = turn.tools.takes("list tasks", "from") and turn.tools.takes("list tasks", "to")
    given: dict[str, Any] = {}
    if status := state(turn, "open"):
        given["status"] = status
    if "overdue" in said and by_dates:
        return turn.call("list tasks", {**given, "to": turn.today - timedelta(days=1)})
    if re.search(r"\bweek\b", said) and by_dates:
        monday = turn.today - timedelta(days=turn.today.weekday())
        monday += timedelta(days=7 if "next week" in said else 0)
        return turn.call("list tasks", {**given, "from": monday, "to": monday + timedelta(days=6)})
    found = dates.mentioned(said, turn.today)
    if found is not None and found.day != turn.today and by_dates:
        return turn.call("list tasks", {**given, "from": found.day, "to": found.day})
    return turn.call("due today") or turn.call("list tasks")


def notes(turn: Turn, match: re.Match[str]) -> Answer | None:
    """Search the notes."""
    if turn.done:
        return turn.told()
    query = match["what"].strip(" .?!\"'“”")
    return turn.call("search notes", {"query": query}) or turn.call("list notes", {"search": query})


def note(turn: Turn, match: re.Match[str]) -> Answer | None:
    """Read one note: find it by its title, then open it."""
    wanted = match["what"].strip(" .?!\"'“”")
    if not turn.done:
        return turn.call("list notes", {"search": results.key_words(wanted)})
    if len(turn.done) > 1 or results.failed(turn.done[0][1]):
        return Answer(results.told(turn.done[-1:]))
    found = results.matching(turn.done[0][1], wanted)
    if len(found) != 1:
        return turn.told()
    return turn.call("read note", {"id": found[0].id}) or turn.told()


def comments(turn: Turn, match: re.Match[str]) -> Answer | None:
    """The comments on the task before the user."""
    if turn.done:
        return turn.told()
    row = turn.scope or turn.mentioned
    return turn.call("list comments", {"id": row.id}) if row and row.kind == "task" else None


def here(turn: Turn, match: re.Match[str]) -> Answer | None:
    """What the user has before them."""
    if turn.scope is None:
        return None
    row = turn.scope
    kind = "timeline entry" if row.kind == "timeline" else row.kind
    return Answer(f"This is the {kind} “{row.title}”{_facts(row.more)}. {results.tag(row.kind, [row.id])}")


def _facts(more: str) -> str:
    return f": {more.strip(' (),')}" if more else ""


def _look(turn: Turn, wishes: list[str], given: Mapping[str, Any]) -> Answer | None:
    calls = [call for wish in wishes if (call := turn.tools.call(wish, given)) is not None]
    return Answer(wishes=tuple(calls)) if calls else None


def _counted(turn: Turn, given: Mapping[str, Any]) -> Answer:
    """How many there are, in a sentence; what failed is told as it is."""
    numbers = []
    for tool, result in turn.done:
        if results.failed(result):
            return turn.told()
        number, least = results.count(result)
        state_word = _STATE_WORDS[given["status"]] if "status" in given else ""
        noun = results.kind_of(tool).replace("timeline", "timeline entry") or "entry"
        plural = noun if number == 1 else f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
        numbers.append(f"{least}{f'{number:,}' if number else 'no'} {state_word}{plural}")
    return Answer(f"You have {' and '.join(numbers)}.")
