"""The interview about an agent, by rules: what is to be found, in what, how often; then a configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adiuva.offline_model.extraction import text as text_of
from adiuva.offline_model.turn import fenced

_WHAT = (
    "What should the agent find: things to do, dates and deadlines, notes worth keeping, projects or clients?"
)
_WHERE = "In what kind of documents: meeting notes, mails, to-do lists, or all there are?"
_WHEN = "How often should it look: every hour, every morning, once a week, or only when you start it?"
_CHANGE = "What should the agent find from now on, beside or instead of what it finds already?"

_TABLES = {
    "tasks": re.compile(
        r"\b(?:tasks?|to-?dos?|to do|actions?|reminders?|aufgaben?|attività|tâches?)\b", re.I
    ),
    "timelines": re.compile(r"\b(?:dates?|deadlines?|milestones?|timelines?|termine?|scadenz\w+)\b", re.I),
    "notes": re.compile(r"\b(?:notes?|decisions?|summar\w+|notiz\w*|appunt\w*)\b", re.I),
    "projects": re.compile(r"\b(?:projects?|projekte?|progett\w)\b", re.I),
    "clients": re.compile(r"\b(?:clients?|customers?|kunden?|client\w)\b", re.I),
}
_ALL = ("tasks", "timelines", "notes", "projects")
_MARKS = {
    "tasks": "action items, check boxes, TODOs, and what a mail asks for",
    "timelines": "deadlines and milestones, each with its date and its project",
    "notes": "what was said and decided, decisions first",
    "projects": "projects that the document names and that are not listed yet",
    "clients": "clients that the document names",
}
_BACK = re.compile(
    r"\W*(?:please\s|let'?s\s)?(?:go |one (?:step|question) )?(?:back|zurück|indietro)\b", re.I
)
_BY_HAND = re.compile(r"\b(?:only when|by hand|manual\w*|myself|never)\b", re.I)
_OFTEN = (  # the first that fits; {} is the hour
    (re.compile(r"\b(?:hour|hourly|stündlich)\b", re.I), "0 * * * *"),
    (re.compile(r"\b(?:weekdays?|workdays?|mornings?|werktags?)\b", re.I), "0 {} * * 1-5"),
    (re.compile(r"\b(?:weekly|week|woche|wöchentlich)\b", re.I), "0 {} * * 1"),
    (re.compile(r"\b(?:monthly|month|monat\w*)\b", re.I), "0 {} 1 * *"),
    (re.compile(r"\b(?:daily|day|täglich|giorno)\b", re.I), "0 {} * * *"),
)
_HOUR = re.compile(r"\b(?:at|um|alle)\s(\d{1,2})\b", re.I)


def answer(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The next question, the configuration, or the way back: whichever the schema lets one say."""
    asked = next((text for one in messages if "The tables:" in (text := text_of(one))), "")
    said, present = _list(fenced(asked, "interview")), fenced(asked, "agent")
    answers = [str(one.get("answer", "")) for one in said if isinstance(one, dict)]
    possible = schema.get("properties") or {}
    if not answers or "agent" not in possible:
        return {"question": _CHANGE if present else _WHAT}
    if _BACK.match(answers[-1]) and "back" in possible:
        return {"back": True}
    questions = [_CHANGE, _WHEN] if present else [_WHAT, _WHERE, _WHEN]
    left = questions[len(answers) :]
    if _cron(answers) is not None:
        left = [question for question in left if question != _WHEN]
    return {"question": left[0]} if left and "question" in possible else {"agent": _agent(answers)}


def _list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _agent(answers: Sequence[str]) -> dict[str, Any]:
    tables = [name for name, words in _TABLES.items() if words.search(answers[0])] or list(_ALL)
    lines = [f"- {name}: {_MARKS[name]}" for name in tables]
    wish = " ".join(answers[0].split())
    prompt = "\n".join(["Take out of the document:", *lines, f"What its owner wants, as said: {wish}"])
    if len(answers) > 1 and _cron(answers[1:2]) is None:
        prompt += f"\nMostly found in: {' '.join(answers[1].split())}"
    return {
        "prompt_template": prompt[:8_000],
        "data_types": tables,
        "name": f"{' and '.join(tables[:2]).capitalize()} from my documents",
        "schedule_cron": _cron(answers) or "",
    }


def _cron(answers: Sequence[str]) -> str | None:
    """How often, if one of the answers says so, the last first. "": by hand."""
    for said in reversed(answers):
        if _BY_HAND.search(said):
            return ""
        for words, cron in _OFTEN:
            if words.search(said):
                hour = _HOUR.search(said)
                return cron.format(int(hour[1]) if hour and int(hour[1]) < 24 else 8)
    return None
