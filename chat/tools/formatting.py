"""Formats rows and lists for a model.

A row's texts come from the user, or from a stranger if an agent delivered them. Titles are put on one line, and each
line of a longer text gets a bar in front, so that neither can pose as a row or a message of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import orjson

from adiuva.devices.protocol import Data, TableName
from adiuva.devices.tables import NOUNS, TABLES
from chat.device_session import DeviceSession, Selected
from chat.tools import dates
from chat.untrusted_text import is_row_id, one_line

MAX_ROWS: Final = 36
MAX_CHARS: Final = 8_000
# Up to this many rows are shown with long excerpts of their texts.
_FEW_ROWS: Final = 5
_LONG_EXCERPT_CHARS: Final = 2_000
_SHORT_EXCERPT_CHARS: Final = 120
_STATUS_WORDS: Final = {status: status.replace("_", " ") for status in ("todo", "in_progress", "done")}
_TABLE_OF_COLUMN: Final = {"projectId": "projects", "clientId": "clients", "parentId": "clients"}
_TEXT_COLUMNS: Final = {"tasks": "description", "projects": "aiSummary"}


def count_text(number: int, table: str) -> str:
    """Return a count with its noun, such as `3 tasks`."""
    one, many = NOUNS[table]
    return f"{number:,} {one if number == 1 else many}"


def title_with_alias(session: DeviceSession, table: str, key: str, title: str) -> str:
    alias = f"[{session.aliases.alias(table, key)}]"
    return f"{title} {alias}" if title else alias


def row_text(session: DeviceSession, table: TableName, found: Data) -> str:
    """Return a row on one line, its alias right behind its title."""
    title = one_line(found.get(TABLES[table].title)) or "(untitled)"
    if table == "taskComments":
        return ", ".join([title_with_alias(session, table, found["id"], ""), *_comment_facts(session, found)])
    return ", ".join([title_with_alias(session, table, found["id"], title), *_FACTS[table](session, found)])


def change_text(session: DeviceSession, verb: str, table: TableName, found: Data) -> str:
    """Return a sentence such as `Created the task Call Ada [t1], todo.`"""
    return f"{verb} the {NOUNS[table][0]} {row_text(session, table, found)}."


def deletion_text(session: DeviceSession, table: TableName, key: str) -> str:
    return (
        f"Deleted the {NOUNS[table][0]} {title_with_alias(session, table, key, session.titles.get(key, ''))}."
    )


def list_text(session: DeviceSession, table: TableName, found: Selected, *, narrow: str) -> str:
    """Return a list with its count. `narrow`: the arguments that narrow it."""
    if not found.rows:
        return f"No {NOUNS[table][1]} match."
    least = "At least " if found.is_cut else ""
    return f"{least}{count_text(len(found.rows), table)}:\n{row_lines(session, table, found, narrow=narrow)}"


def row_lines(session: DeviceSession, table: TableName, selected: Selected, *, narrow: str) -> str:
    """Return a line for each row, up to MAX_ROWS and MAX_CHARS, and how many are left out."""
    rows = selected.rows
    shown: list[str] = []
    size = 0
    for found in rows[:MAX_ROWS]:
        line = _row_with_excerpt(session, table, found, few=len(rows) <= _FEW_ROWS)
        size += len(line) + 1
        if shown and size > min(MAX_CHARS, session.max_result_chars):
            break
        shown.append(line)
    if left := len(rows) - len(shown):
        least = "At least " if selected.is_cut else ""
        are = "is" if left == 1 else "are"
        more = count_text(left, table).replace(" ", " more ", 1)
        shown.append(f"{least}{more} {are} not shown; narrow the list with {narrow}.")
    return "\n".join(shown)


def quote(text: object, most: int, *, start: int = 0, indent: str = "") -> str:
    """Return a longer text with a bar in front of each line, and the number of characters left out."""
    whole = text if isinstance(text, str) else ""
    part = whole[start : start + most]
    shown = [f"{indent}| {_printable(line)}".rstrip() for line in part.splitlines()]
    if left := max(0, len(whole) - start - len(part)):
        shown.append(f"{indent}({left:,} more characters are not shown.)")
    return "\n".join(shown)


def _printable(line: str) -> str:
    """Return a line without its control and other unprintable characters."""
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() or letter in "\t\u200c\u200d" else " " for letter in line)


def _row_with_excerpt(session: DeviceSession, table: TableName, found: Data, *, few: bool) -> str:
    line = f"- {row_text(session, table, found)}"
    text = found.get("content" if table == "taskComments" else _TEXT_COLUMNS.get(table, ""))
    if not isinstance(text, str) or not text.strip():
        return line
    if few or table == "taskComments":
        return f"{line}\n{quote(text.strip(), _LONG_EXCERPT_CHARS, indent='  ')}"
    return f"{line}\n  | {one_line(text, _SHORT_EXCERPT_CHARS)}"


def _task_facts(session: DeviceSession, found: Data) -> list[str]:
    facts: list[str] = []
    status, priority = found.get("status"), found.get("priority")
    if isinstance(status, str) and status in _STATUS_WORDS:
        facts.append(_STATUS_WORDS[status])
    if priority in ("high", "low"):  # medium is the default
        facts.append(f"{priority} priority")
    if (due := found.get("dueDate")) is not None:
        when = dates.format_date(due, session.zone)
        late = when is not None and status != "done" and due < dates.day_start_ms(session.today, session.zone)
        facts.append(f"due {when or 'at a time that cannot be read'}{' (overdue)' if late else ''}")
    if (assignee := found.get("assignee")) and (names := _person_names(assignee)):
        facts.append(f"assigned to {names}")
    facts += _reference(session, found, "projectId", "project")
    facts += _review_facts(found)
    return facts


def _project_facts(session: DeviceSession, found: Data) -> list[str]:
    status = found.get("status")
    facts = [str(status)] if status in ("active", "archived") else []
    return [*facts, *_reference(session, found, "clientId", "client")]


def _timeline_facts(session: DeviceSession, found: Data) -> list[str]:
    when = dates.format_date(found.get("date"), session.zone) or "at a time that cannot be read"
    return [when, *_reference(session, found, "projectId", "project"), *_review_facts(found)]


def _note_facts(session: DeviceSession, found: Data) -> list[str]:
    facts = _reference(session, found, "projectId", "project")
    if when := dates.format_date(found.get("updatedAt"), session.zone):
        facts.append(f"updated {when}")
    if isinstance(content := found.get("content"), str):
        facts.append(f"{len(content):,} characters")
    return facts


def _client_facts(session: DeviceSession, found: Data) -> list[str]:
    industry = one_line(found.get("industry"))
    return [*([industry] if industry else []), *_reference(session, found, "parentId", "part of")]


def _comment_facts(session: DeviceSession, found: Data) -> list[str]:
    author, when = one_line(found.get("author")), dates.format_date(found.get("createdAt"), session.zone)
    return [*([f"by {author}"] if author else []), *([when] if when else [])]


_FACTS: Final[Mapping[str, Callable[[DeviceSession, Data], list[str]]]] = {
    "tasks": _task_facts,
    "projects": _project_facts,
    "timelines": _timeline_facts,
    "notes": _note_facts,
    "clients": _client_facts,
}


def _reference(session: DeviceSession, found: Data, column: str, word: str) -> list[str]:
    key = found.get(column)
    if not isinstance(key, str):
        return []
    if key in session.named_references:
        return [f"{word} [{session.aliases.alias(_TABLE_OF_COLUMN[column], key)}]"]
    title = session.titles.get(key, "")
    if title:
        session.named_references.add(key)
    if not is_row_id(key):
        return []
    return [f"{word} {title_with_alias(session, _TABLE_OF_COLUMN[column], key, title)}"]


def _person_names(value: object) -> str:
    """Return names from a JSON array in a string. Any other string is shown as it is."""
    if not isinstance(value, str):
        return ""
    try:
        names = orjson.loads(value)
    except orjson.JSONDecodeError:
        names = [value]
    names = names if isinstance(names, list) else [value]
    return ", ".join(name for name in map(one_line, names[:20]) if name)


def _review_facts(found: Data) -> list[str]:
    suggested = found.get("isAiSuggested") == 1 and found.get("isApproved") != 1
    return ["suggested by an agent, not yet approved"] if suggested else []
