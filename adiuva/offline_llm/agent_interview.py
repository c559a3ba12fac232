"""Interviews the user about a new or changed agent by fixed questions, then proposes its configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adiuva.offline_llm.messages import delimited_text, message_text

_ASK_WHAT = (
    "What should the agent find: things to do, dates and deadlines, notes worth keeping, projects or clients?"
)
_ASK_WHERE = "In what kind of documents: meeting notes, mails, to-do lists, or all there are?"
_ASK_WHEN = "How often should it look: every hour, every morning, once a week, or only when you start it?"
_ASK_CHANGE = "What should the agent find from now on, beside or instead of what it finds already?"

_TABLE_PATTERNS = {
    "tasks": re.compile(
        r"\b(?:tasks?|to-?dos?|to do|actions?|reminders?|aufgaben?|attività|tâches?)\b", re.I
    ),
    "timelines": re.compile(r"\b(?:dates?|deadlines?|milestones?|timelines?|termine?|scadenz\w+)\b", re.I),
    "notes": re.compile(r"\b(?:notes?|decisions?|summar\w+|notiz\w*|appunt\w*)\b", re.I),
    "projects": re.compile(r"\b(?:projects?|projekte?|progett\w)\b", re.I),
    "clients": re.compile(r"\b(?:clients?|customers?|kunden?|client\w)\b", re.I),
}
_DEFAULT_TABLES = ("tasks", "timelines", "notes", "projects")
_TABLE_PROMPTS = {
    "tasks": "action items, check boxes, TODOs, and what a mail asks for",
    "timelines": "deadlines and milestones, each with its date and its project",
    "notes": "what was said and decided, decisions first",
    "projects": "projects that the document names and that are not listed yet",
    "clients": "clients that the document names",
}
_GO_BACK = re.compile(
    r"\W*(?:please\s|let'?s\s)?(?:go |one (?:step|question) )?(?:back|zurück|indietro)\b", re.I
)
_MANUAL_START = re.compile(r"\b(?:only when|by hand|manual\w*|myself|never)\b", re.I)
# The first match decides. {} stands for the hour.
_CRON_PATTERNS = (
    (re.compile(r"\b(?:hour|hourly|stündlich)\b", re.I), "0 * * * *"),
    (re.compile(r"\b(?:weekdays?|workdays?|mornings?|werktags?)\b", re.I), "0 {} * * 1-5"),
    (re.compile(r"\b(?:weekly|week|woche|wöchentlich)\b", re.I), "0 {} * * 1"),
    (re.compile(r"\b(?:monthly|month|monat\w*)\b", re.I), "0 {} 1 * *"),
    (re.compile(r"\b(?:daily|day|täglich|giorno)\b", re.I), "0 {} * * *"),
)
_HOUR = re.compile(r"\b(?:at|um|alle)\s(\d{1,2})\b", re.I)


def next_step(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the next question, the configuration, or a step back, as far as the schema allows each."""
    asked = next((text for one in messages if "The tables:" in (text := message_text(one))), "")
    said, present = _parse_list(delimited_text(asked, "interview")), delimited_text(asked, "agent")
    answers = [str(one.get("answer", "")) for one in said if isinstance(one, dict)]
    possible = schema.get("properties") or {}
    if not answers or "agent" not in possible:
        return {"question": _ASK_CHANGE if present else _ASK_WHAT}
    if _GO_BACK.match(answers[-1]) and "back" in possible:
        return {"back": True}
    questions = [_ASK_CHANGE, _ASK_WHEN] if present else [_ASK_WHAT, _ASK_WHERE, _ASK_WHEN]
    left = questions[len(answers) :]
    if _schedule(answers) is not None:
        left = [question for question in left if question != _ASK_WHEN]
    return (
        {"question": left[0]} if left and "question" in possible else {"agent": _agent_configuration(answers)}
    )


def _parse_list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _agent_configuration(answers: Sequence[str]) -> dict[str, Any]:
    tables = [name for name, words in _TABLE_PATTERNS.items() if words.search(answers[0])] or list(
        _DEFAULT_TABLES
    )
    lines = [f"- {name}: {_TABLE_PROMPTS[name]}" for name in tables]
    request = " ".join(answers[0].split())
    prompt = "\n".join(["Take out of the document:", *lines, f"What its owner wants, as said: {request}"])
    if len(answers) > 1 and _schedule(answers[1:2]) is None:
        prompt += f"\nMostly found in: {' '.join(answers[1].split())}"
    return {
        "prompt_template": prompt[:8_000],
        "data_types": tables,
        "name": f"{' and '.join(tables[:2]).capitalize()} from my documents",
        "schedule_cron": _schedule(answers) or "",
    }


def _schedule(answers: Sequence[str]) -> str | None:
    """Return the schedule named by the latest answer that names one: a cron line, or "" for a manual start."""
    for said in reversed(answers):
        if _MANUAL_START.search(said):
            return ""
        for words, cron in _CRON_PATTERNS:
            if words.search(said):
                hour = _HOUR.search(said)
                return cron.format(int(hour[1]) if hour and int(hour[1]) < 24 else 8)
    return None
