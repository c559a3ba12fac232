"""Terminal of a headless device: a person lists, approves, edits and rejects suggestions, and searches their rows."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any, Final

from adiuva.devices.client.store import Row, Store
from adiuva.devices.tables import TABLES, Column, Table

HELP: Final = """\
list               suggestions of your agents that wait for you
show 2             all of the second one
approve 2          keep it; also: approve 1 3, approve all
edit 2 title="…"   change it and keep it; times as 2026-11-20 or 2026-11-20T14:30, and an empty value clears
reject 2           delete it; also: reject 1 3, reject all
approve run 2      all suggestions of the run that found the second one; also: reject run 2
undo               take back the last approve, edit or reject
search words       rows of all tables in which all these words occur
help, quit"""
_MAX_FOUND: Final = 50
_OWNERS: Final = {"projectId": "projects", "taskId": "tasks", "clientId": "clients", "parentId": "clients"}


class Unclear(Exception):
    """Error for a command that cannot be carried out; the message says why."""


# More than 15 methods: one for each command, and those that find the rows a command means.
class Console:
    """Terminal that takes one line at a time: `answer` returns the text to print, or None for quit. Numbers are those
    of the last list."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shown: list[tuple[Table, str]] = []
        # The commands' changes, the last one last: each row as it was, and as it became (None: deleted).
        self._changed: list[list[tuple[Table, Row, Row | None]]] = []

    def answer(self, line: str) -> str | None:
        try:
            words = shlex.split(line)
        except ValueError as error:
            return f"That cannot be read: {error}."
        if not words:
            return ""
        command, *rest = words
        if command in {"quit", "exit"}:
            return None
        commands: Mapping[str, Callable[[list[str]], str]] = {
            "list": self._list,
            "show": self._show,
            "approve": self._approve,
            "edit": self._edit,
            "reject": self._reject,
            "search": self._search,
            "undo": self._undo,
            "help": lambda _: HELP,
        }
        if command not in commands:
            return f"There is no command {command}. These there are:\n{HELP}"
        try:
            return commands[command](rest)
        except Unclear as error:
            return str(error)

    # Commands

    def _list(self, _: Sequence[str]) -> str:
        found = [
            (table, row)
            for table in TABLES.values()
            if table.reviewed
            for row in self._store.select(table)
            if row["isAiSuggested"] and not row["isApproved"]
        ]
        return self._numbered(found) if found else "No suggestions wait for you."

    def _search(self, words: Sequence[str]) -> str:
        if not words:
            raise Unclear("Say what to search for.")
        wanted = [word.casefold() for word in words]
        found = []
        for table in TABLES.values():
            for row in self._store.select(
                table, {"includeArchived": True} if table.name == "projects" else {}
            ):
                text = " ".join(value for value in row.values() if isinstance(value, str)).casefold()
                if all(word in text for word in wanted):
                    found.append((table, row))
        if not found:
            return "Nothing is found."
        more = f"\n{len(found) - _MAX_FOUND} more: search for more words." if len(found) > _MAX_FOUND else ""
        return self._numbered(found[:_MAX_FOUND]) + more

    def _show(self, numbers: Sequence[str]) -> str:
        lines = []
        for table, row in map(self._row, self._chosen(numbers)):
            lines.append(f"{table.name}: {_title(table, row)}")
            if origin := self._store.origins([row["id"]]).get(row["id"]):
                lines.append(f"  found in: {_plain(origin[1])}")
            lines += [
                f"  {column.name}: {self._words(column, row[column.name])}"
                for column in table.columns
                if row[column.name] is not None and column.name not in {"id", table.title}
            ]
        return "\n".join(lines)

    def _approve(self, numbers: Sequence[str]) -> str:
        return self._each(numbers, "update", "Approved", {"isApproved": 1})

    def _reject(self, numbers: Sequence[str]) -> str:
        return self._each(numbers, "delete", "Rejected")

    def _edit(self, words: Sequence[str]) -> str:
        number, changes = words[:1], words[1:]
        if not changes:
            raise Unclear('Say what to change: edit 2 title="Call Ada"')
        ((table, _),) = self._chosen(number)
        updates: Row = {"isApproved": 1} if table.reviewed else {}
        for change in changes:
            name, is_given, value = change.partition("=")
            column = table.by_name.get(name)
            if not is_given or column is None or column.made_by_device:
                known = ", ".join(each.name for each in table.columns if not each.made_by_device)
                raise Unclear(f"{name} is none of {known}.")
            updates[name] = _value(column, value)
        return self._each(number, "update", "Changed", updates)

    # Rows

    def _chosen(self, numbers: Sequence[str]) -> list[tuple[Table, str]]:
        if not numbers:
            raise Unclear("Say which, by its number in the list, or all.")
        if numbers[0] == "run":
            return self._of_runs(numbers[1:])
        if list(numbers) == ["all"]:
            if not self._shown:
                raise Unclear("There is no list yet: list, or search.")
            return list(self._shown)
        found = []
        for number in numbers:
            if not (number.isascii() and number.isdigit() and 1 <= int(number) <= len(self._shown)):
                raise Unclear(f"{number} is no number of the last list.")
            found.append(self._shown[int(number) - 1])
        return list(dict.fromkeys(found))

    def _of_runs(self, numbers: Sequence[str]) -> list[tuple[Table, str]]:
        """Return the rows of the last list that the same runs found."""
        origins = self._store.origins(key for _, key in self._shown)
        chosen = self._chosen(numbers)
        runs = {origins[key][0] for _, key in chosen if key in origins}
        if not runs:
            raise Unclear("It is not known which run found it.")
        return [(table, key) for table, key in self._shown if key in origins and origins[key][0] in runs]

    def _row(self, chosen: tuple[Table, str]) -> tuple[Table, Row]:
        table, key = chosen
        call = {"id": uuid.uuid4().hex, "action": "get", "table": table.name, "data": {"id": key}}
        (answer,) = self._store.apply([call])
        if answer.get("row") is None:
            raise Unclear("It is not there any more: list again.")
        return table, answer["row"]

    def _each(self, numbers: Sequence[str], action: str, done: str, updates: Row | None = None) -> str:
        """Change the chosen rows, as many as can be changed; a row that is refused says why."""
        lines = []
        changed: list[tuple[Table, Row, Row | None]] = []
        rows = [self._row(chosen) for chosen in self._chosen(numbers)]
        for table, _ in rows:
            if action == "update" and updates and "isApproved" in updates and not table.reviewed:
                raise Unclear(f"{table.name} need no approval.")
        for table, row in rows:
            data = {"id": row["id"]} | ({"updates": updates} if updates else {})
            call = {"id": uuid.uuid4().hex, "action": action, "table": table.name, "data": data}
            (answer,) = self._store.apply([call])
            if "error" in answer:
                lines.append(f"Not done: {answer['error']}.")
                continue
            changed.append((table, row, answer.get("row")))
            lines.append(f"{done}: {_title(table, answer.get('row') or row)}")
        if changed:
            self._changed.append(changed)
        return "\n".join(lines)

    def _undo(self, _: Sequence[str]) -> str:
        if not self._changed:
            raise Unclear("Nothing was changed here.")
        lines = []
        for table, before, after in reversed(self._changed.pop()):
            done = self._store.put_back(table, before, over=after)
            lines.append(
                f"{'As before' if done else 'Kept, since it was changed again'}: {_title(table, before)}"
            )
        return "\n".join(lines)

    def _numbered(self, rows: Iterable[tuple[Table, Row]]) -> str:
        listed = list(rows)
        self._shown = [(table, row["id"]) for table, row in listed]
        width = len(str(len(listed)))
        return "\n".join(
            f"{number:>{width}}. {table.name}: {_title(table, row)}{self._about(table, row)}"
            for number, (table, row) in enumerate(listed, 1)
        )

    def _about(self, table: Table, row: Row) -> str:
        said = [
            self._words(table.by_name[name], row[name])
            for name in ("dueDate", "date", "projectId")
            if row.get(name) is not None
        ]
        if table.reviewed and (origin := self._store.origins([row["id"]]).get(row["id"])):
            said.append(f"from {_plain(PurePath(origin[1]).name or origin[1])}")
        return f" ({', '.join(said)})" if said else ""

    def _words(self, column: Column, value: Any) -> str:
        if column.kind == "time":
            return f"{datetime.fromtimestamp(value / 1000).astimezone():%Y-%m-%d %H:%M}"
        if column.kind == "flag":
            return "yes" if value else "no"
        owner = {
            "projectId": "projects",
            "taskId": "tasks",
            "clientId": "clients",
            "parentId": "clients",
        }.get(column.name)
        if owner:  # a title says more than an id
            try:
                table, row = self._row((TABLES[owner], value))
            except Unclear:
                return str(value)
            return _title(table, row)
        return _plain(str(value))


def _title(table: Table, row: Mapping[str, Any]) -> str:
    return " ".join(_plain(str(row.get(table.title) or "")).split())[:100] or "(untitled)"


def _value(column: Column, text: str) -> Any:
    """Return the column's value for a text that was typed. Raises Unclear."""
    if not text:
        if column.required:
            raise Unclear(f"{column.name} cannot be empty.")
        return None
    if column.kind == "time":
        try:
            return round(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            raise Unclear(f"{column.name} is a time such as 2026-11-20 or 2026-11-20T14:30.") from None
    if column.kind in {"int", "flag"}:
        yes_or_no = {"yes": 1, "no": 0, "1": 1, "0": 0}
        if text not in yes_or_no:
            raise Unclear(f"{column.name} is yes or no.")
        return yes_or_no[text]
    if column.choices and text not in column.choices:
        raise Unclear(f"{column.name} is one of {', '.join(column.choices)}.")
    return text


def _plain(text: str) -> str:
    return "".join(char for char in text if char.isprintable() or char in "\n\t")
