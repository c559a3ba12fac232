"""Prints the records on the demo's device as tables. It reads the device's SQLite file and never writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from adiuva.embedded.processes import StackError
from adiuva.embedded.terminal import Terminal

_ROWS_SHOWN = 20

Row = Mapping[str, Any]
Projects = Mapping[str, str]


class TableView(NamedTuple):
    """View of one table: its columns, each with the text that it shows of a row."""

    table: str
    order: str
    columns: Mapping[str, Callable[[Row, Projects], str]]


def _text(name: str) -> Callable[[Row, Projects], str]:
    return lambda row, _: str(row[name] or "").replace("_", " ")


def _day(name: str) -> Callable[[Row, Projects], str]:
    return lambda row, _: (
        datetime.fromtimestamp(row[name] / 1000, UTC).strftime("%a %Y-%m-%d") if row[name] is not None else ""
    )


def _people(row: Row, _: Projects) -> str:
    try:
        return ", ".join(orjson.loads(row["assignee"] or "[]"))
    except (ValueError, TypeError):
        return str(row["assignee"])


def _project(row: Row, projects: Projects) -> str:
    return projects.get(row["projectId"] or "", "")


_VIEWS = (
    TableView(
        "tasks",
        "dueDate IS NULL, dueDate, title",
        {
            "Task": _text("title"),
            "Due": _day("dueDate"),
            "Priority": _text("priority"),
            "Who": _people,
            "Project": _project,
        },
    ),
    TableView(
        "timelines",
        "date, title",
        {"Date that matters": _text("title"), "On": _day("date"), "Project": _project},
    ),
    TableView("projects", "name", {"Project": _text("name"), "Status": _text("status")}),
    TableView("notes", "title", {"Note": _text("title"), "Says": _text("content"), "Project": _project}),
)


def print_report(database: Path, terminal: Terminal, *, since_ms: int) -> None:
    """Print the device's records and mark those created since then. Raises StackError if there is no database."""
    if not database.exists():
        raise StackError(f"the device has no data in {database}")
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=10)) as opened:
        opened.row_factory = sqlite3.Row
        projects: Projects = dict(opened.execute("SELECT id, name FROM projects").fetchall())
        for view in _VIEWS:
            query = f"SELECT * FROM {view.table} ORDER BY createdAt < ?, {view.order}"  # noqa: S608  # ours
            rows = [dict(row) for row in opened.execute(query, [since_ms])]
            if rows:
                _show(view, rows, projects, terminal, since_ms)


def _show(
    view: TableView, rows: Sequence[Row], projects: Projects, terminal: Terminal, since_ms: int
) -> None:
    new = sum(row["createdAt"] >= since_ms for row in rows)
    cells = [
        [
            *(say(row, projects) for say in view.columns.values()),
            "new" if row["createdAt"] >= since_ms else "",
        ]
        for row in rows[:_ROWS_SHOWN]
    ]
    terminal.table(f"{view.table.capitalize()}: {len(rows)}, {new or 'none'} new", [*view.columns, ""], cells)
    if len(rows) > _ROWS_SHOWN:
        terminal.say(f"  … and {len(rows) - _ROWS_SHOWN} more")
