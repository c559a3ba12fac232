"""Reads the facts of a task from a tool's line or object: its state, priority, day, project and people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from adiuva.offline_llm import tool_results
from adiuva.offline_llm.tool_results import Row

_STATUS = re.compile(r"(?:\A|[,(] ?)(todo|open|in[ _]progress|done)\b")
_PRIORITY = re.compile(r"\b(high|medium|low)\b(?= priority|[,)]|\Z)")
_DAY = re.compile(r"\b(?:due |on |date )?\w{0,3} ?(\d{4}-\d{2}-\d{2})\b")
_PROJECT = re.compile(r", project (?P<name>.*?) ?\[(?P<id>[a-z]\d{1,4})\]")
_PEOPLE = re.compile(r"\bassigned to (?P<names>.+?)(?:, project|, suggested|\Z)")


@dataclass(frozen=True)
class Facts:
    row: Row
    status: str
    priority: str
    day: date | None
    project: str
    people: str

    @property
    def is_done(self) -> bool:
        return self.status == "done"


def read_tasks(results: Sequence[str]) -> list[Facts]:
    """Return the rows of all results, each once. A project is named where it is first referred to."""
    rows = {row.id or row.title: row for result in results for row in tool_results.parse_rows(result)}
    names = {
        found["id"]: found["name"]
        for row in rows.values()
        for found in _PROJECT.finditer(f", {row.details}")
        if found["name"]
    }
    return [_facts(row, names) for row in rows.values()]


def _facts(row: Row, project_names: dict[str, str]) -> Facts:
    said = row.details.strip(" ()")
    status, priority, day = _STATUS.search(said), _PRIORITY.search(said), _DAY.search(said)
    project, people = _PROJECT.search(f", {said}"), _PEOPLE.search(said)
    return Facts(
        row,
        status[1].replace("_", " ") if status else "",
        priority[1] if priority else "medium",  # the tool leaves a medium priority out
        _date(day[1]) if day else None,
        (project["name"] or project_names.get(project["id"], "")) if project else "",
        people["names"] if people else "",
    )


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
