"""A scripted model that reads documents of lines as a good model would: it is told what was found before, and answers
what became of it; and it words what it finds in another way each time.

A line is an item: `- [ ] words (id)`, with `by 2026-12-03` or `@Ana` in it if it has a date or a person; `[x]` is
ticked, `~~…~~` struck out. The id is what makes it the same item to this model, as meaning does for another.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from tests.agents.device_owner import document_text
from tests.fakes.provider import Request

_LINE = re.compile(
    r"^- \[(?P<tick>[ x])\] (?P<struck>~~)?(?P<words>.+?) \((?P<id>\w+)\)(?:~~)?$", re.MULTILINE
)
_DATE = re.compile(r" by (\d{4}-\d\d-\d\d)")
_PERSON = re.compile(r" @(\w+)")
WORDINGS = ("{}", "Please {}", "{} (as agreed)", "Do: {}", "{} soon")


@dataclass(frozen=True)
class Item:
    key: str
    words: str
    date: str = ""
    person: str = ""
    is_done: bool = False
    is_struck: bool = False

    @property
    def line(self) -> str:
        words = (
            self.words
            + (f" by {self.date}" if self.date else "")
            + (f" @{self.person}" if self.person else "")
        )
        struck = "~~" if self.is_struck else ""
        return f"- [{'x' if self.is_done else ' '}] {struck}{words} ({self.key}){struck}"


def items_of(text: str) -> list[Item]:
    found = []
    for match in _LINE.finditer(text):
        said = match["words"]
        date, person = _DATE.search(said), _PERSON.search(said)
        words = _PERSON.sub("", _DATE.sub("", said))
        found.append(
            Item(
                match["id"],
                words,
                date[1] if date else "",
                person[1] if person else "",
                match["tick"] == "x",
                match["struck"] is not None,
            )
        )
    return found


def known_of(request: Request) -> list[dict[str, Any]]:
    """What the model is told was found before."""
    said = re.search(r"^Known: (\[.*\])$", request.body["messages"][1]["content"], re.MULTILINE)
    return json.loads(said[1]) if said else []


class Reader:
    """The model. `answers_known`: whether it answers in terms of what it is told, as the prompt asks."""

    def __init__(self, *, answers_known: bool = True) -> None:
        self.answers_known = answers_known
        self.wordings = itertools.cycle(WORDINGS)

    def __call__(self, request: Request) -> dict[str, Any]:
        items = [item for item in items_of(document_text(request)) if not item.is_struck]
        known = known_of(request) if self.answers_known else []
        verdicts, left = [], list(items)
        for row in known:
            item = next((each for each in left if f"({each.key})" in row["title"]), None)
            if item is None:
                verdicts.append({"id": row["id"], "now": "gone"})
                continue
            left.remove(item)
            changes: dict[str, Any] = {}
            if item.date and item.date != row.get("dueDate"):
                changes["dueDate"] = item.date
            if item.is_done != (row.get("status") == "done"):
                changes["status"] = "done" if item.is_done else "todo"
            if changes == {"status": "done"}:
                verdicts.append({"id": row["id"], "now": "done"})
            elif changes:
                verdicts.append({"id": row["id"], "now": "changed", "data": changes})
            else:
                verdicts.append({"id": row["id"], "now": "there"})
        answer: dict[str, Any] = {"records": [self._record(item) for item in left]}
        return {"known": verdicts, **answer} if known else answer

    def _record(self, item: Item) -> dict[str, Any]:
        data: dict[str, Any] = {"title": f"{next(self.wordings).format(item.words)} ({item.key})"}
        if item.date:
            data["dueDate"] = item.date
        if item.person:
            data["assignee"] = [item.person]
        data["status"] = "done" if item.is_done else "todo"
        return {"table": "tasks", "data": data}
