"""How rows and lists are written for a model.

What a row says is the user's data, or a stranger's that an agent brought: titles are put on one line, longer texts
behind a bar on each line, so that neither can pose as a row or a word of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import orjson

from adiuva.devices.protocol import Data, TableName
from adiuva.devices.tables import TABLES
from chat.device_session import NOUNS, Desk, is_key, one_line
from chat.tools import dates

MAX_ROWS: Final = 50
MAX_CHARS: Final = 8_000
_FEW: Final = 5  # so few rows are shown with their texts
_TEXT_OF_FEW: Final = 2_000
_TEXT_OF_MANY: Final = 120
_STATUS: Final = {status: status.replace("_", " ") for status in ("todo", "in_progress", "done")}
_LONG: Final = {"tasks": "description", "projects": "aiSummary"}


def count(number: int, table: str) -> str:
    """`3 tasks`."""
    one, many = NOUNS[table]
    return f"{number:,} {one if number == 1 else many}"


def named(key: str, title: str) -> str:
    return f"{title} [id {key}]" if title else f"[id {key}]"


def row(desk: Desk, table: TableName, found: Data) -> str:
    """A row on one line, its id right behind its title."""
    title = one_line(found.get(TABLES[table].title)) or "(untitled)"
    if table == "taskComments":
        return ", ".join([f"[id {found['id']}]", *_comment(desk, found)])
    return ", ".join([named(found["id"], title), *_FACTS[table](desk, found)])


def done(desk: Desk, verb: str, table: TableName, found: Data) -> str:
    """`Created the task Call Ada [id …], todo.`"""
    return f"{verb} the {NOUNS[table][0]} {row(desk, table, found)}."


def deleted(desk: Desk, table: TableName, key: str) -> str:
    return f"Deleted the {NOUNS[table][0]} {named(key, desk.seen.get(key, ''))}."


def listed(desk: Desk, table: TableName, rows: Sequence[Data], *, bound: int, narrow: str) -> str:
    """A list with its count. `bound` is how many rows the device was asked for at most, `narrow` how to see fewer."""
    if not rows:
        return f"No {NOUNS[table][1]} match."
    most = "At least " if len(rows) == bound else ""
    return f"{most}{count(len(rows), table)}:\n{lines(desk, table, rows, bound=bound, narrow=narrow)}"


def lines(desk: Desk, table: TableName, rows: Sequence[Data], *, bound: int, narrow: str) -> str:
    """As many rows as may be shown, a line each, and how many are left out."""
    shown: list[str] = []
    size = 0
    for found in rows[:MAX_ROWS]:
        line = _with_text(desk, table, found, few=len(rows) <= _FEW)
        size += len(line) + 1
        if shown and size > MAX_CHARS:
            break
        shown.append(line)
    if left := len(rows) - len(shown):
        least = "At least " if len(rows) == bound else ""
        are = "is" if left == 1 else "are"
        more = count(left, table).replace(" ", " more ", 1)
        shown.append(f"{least}{more} {are} not shown; narrow the list with {narrow}.")
    return "\n".join(shown)


def quoted(text: object, most: int, *, start: int = 0, indent: str = "") -> str:
    """A longer text, each of its lines behind a bar, and how much of it is left out."""
    whole = text if isinstance(text, str) else ""
    part = whole[start : start + most]
    shown = [f"{indent}| {_plain(line)}".rstrip() for line in part.splitlines()]
    if left := max(0, len(whole) - start - len(part)):
        shown.append(f"{indent}({left:,} more characters are not shown.)")
    return "\n".join(shown)


def _plain(line: str) -> str:
    """A line of a text as it is, but for characters that are no text."""
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() or letter in "\t\u200c\u200d" else " " for letter in line)


def _with_text(desk: Desk, table: TableName, found: Data, *, few: bool) -> str:
    line = f"- {row(desk, table, found)}"
    text = found.get("content" if table == "taskComments" else _LONG.get(table, ""))
    if not isinstance(text, str) or not text.strip():
        return line
    if few or table == "taskComments":
        return f"{line}\n{quoted(text.strip(), _TEXT_OF_FEW, indent='  ')}"
    return f"{line}\n  | {one_line(text, _TEXT_OF_MANY)}"


def _task(desk: Desk, found: Data) -> list[str]:
    facts = []
    status, priority = found.get("status"), found.get("priority")
    if isinstance(status, str) and status in _STATUS:
        facts.append(_STATUS[status])
    if priority in ("high", "medium", "low"):
        facts.append(f"{priority} priority")
    if (due := found.get("dueDate")) is not None:
        when = dates.spoken(due, desk.zone)
        late = when is not None and status != "done" and due < dates.start_of(desk.today, desk.zone)
        facts.append(f"due {when or 'at a time that cannot be read'}{' (overdue)' if late else ''}")
    if names := _names(found.get("assignee")):
        facts.append(f"assigned to {names}")
    return [*facts, *_belongs(desk, found, "projectId", "project"), *_review(found)]


def _project(desk: Desk, found: Data) -> list[str]:
    status = found.get("status")
    facts = [str(status)] if status in ("active", "archived") else []
    return [*facts, *_belongs(desk, found, "clientId", "client")]


def _timeline(desk: Desk, found: Data) -> list[str]:
    when = dates.spoken(found.get("date"), desk.zone) or "at a time that cannot be read"
    return [when, *_belongs(desk, found, "projectId", "project"), *_review(found)]


def _note(desk: Desk, found: Data) -> list[str]:
    facts = _belongs(desk, found, "projectId", "project")
    if when := dates.spoken(found.get("updatedAt"), desk.zone):
        facts.append(f"updated {when}")
    if isinstance(content := found.get("content"), str):
        facts.append(f"{len(content):,} characters")
    return facts


def _client(desk: Desk, found: Data) -> list[str]:
    industry = one_line(found.get("industry"))
    return [*([industry] if industry else []), *_belongs(desk, found, "parentId", "part of")]


def _comment(desk: Desk, found: Data) -> list[str]:
    author, when = one_line(found.get("author")), dates.spoken(found.get("createdAt"), desk.zone)
    return [*([f"by {author}"] if author else []), *([when] if when else [])]


_FACTS: Final[Mapping[str, Callable[[Desk, Data], list[str]]]] = {
    "tasks": _task,
    "projects": _project,
    "timelines": _timeline,
    "notes": _note,
    "clients": _client,
}


def _belongs(desk: Desk, found: Data, column: str, word: str) -> list[str]:
    key = found.get(column)
    return [f"{word} {named(key, desk.seen.get(key, ''))}"] if isinstance(key, str) and is_key(key) else []


def _names(value: object) -> str:
    """Names that travel as a JSON array in a string; what is none is shown as it is."""
    if not isinstance(value, str):
        return ""
    try:
        names = orjson.loads(value)
    except orjson.JSONDecodeError:
        names = [value]
    names = names if isinstance(names, list) else [value]
    return ", ".join(name for name in map(one_line, names[:20]) if name)


def _review(found: Data) -> list[str]:
    suggested = found.get("isAiSuggested") == 1 and found.get("isApproved") != 1
    return ["suggested by an agent, not yet approved"] if suggested else []
