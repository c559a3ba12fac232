"""The user's tables, which every device has. Column names are the device's own, in camelCase.

The headless device's SQLite schema, the validation of a model's records, and the JSON Schema for the model are made
from this description. Times are integer milliseconds since the epoch; flags are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

Kind = Literal["text", "int", "flag", "time", "names"]
MAX_TEXT: Final = 100_000
INT64: Final = 2**63
# People's words for one row of a table, and for several; keys of the catalogues.
NOUNS: Final[dict[str, tuple[str, str]]] = {
    "tasks": ("task", "tasks"),
    "projects": ("project", "projects"),
    "timelines": ("timeline entry", "timeline entries"),
    "notes": ("note", "notes"),
    "taskComments": ("comment", "comments"),
    "clients": ("client", "clients"),
}


@dataclass(frozen=True)
class Column:
    """Column of a table. The kind `names` is a list of names, sent as a JSON array in a string."""

    name: str
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    required: bool = False
    made_by_device: bool = False
    about: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    about: str
    columns: tuple[Column, ...]
    title: str  # the column that people see as a row's title

    @cached_property
    def by_name(self) -> Mapping[str, Column]:
        return {column.name: column for column in self.columns}

    @cached_property
    def reviewed(self) -> bool:
        """Return whether rows have the flags that mark an assistant's suggestion for the user's approval."""
        return "isAiSuggested" in self.by_name


_ID = Column("id", made_by_device=True)
_CREATED = Column("createdAt", "time", made_by_device=True)
_UPDATED = Column("updatedAt", "time", made_by_device=True)
_REVIEW = (Column("isAiSuggested", "flag", default=0), Column("isApproved", "flag", default=0))

TABLES: Final[Mapping[str, Table]] = {
    table.name: table
    for table in (
        Table(
            "tasks",
            "something that somebody is to do",
            (
                _ID,
                Column("projectId", about="the id of a project, or absent"),
                Column("title", required=True, about="what is to be done, in a few words"),
                Column("description", about="what one must know to do it"),
                Column("status", choices=("todo", "in_progress", "done"), default="todo"),
                Column("priority", choices=("high", "medium", "low"), default="medium"),
                Column("assignee", "names", about="the names of those who are to do it"),
                Column("dueDate", "time", about="when it is due"),
                *_REVIEW,
                _CREATED,
            ),
            "title",
        ),
        Table(
            "projects",
            "a body of work for a client",
            (
                _ID,
                Column("clientId"),
                Column("name", required=True),
                Column("status", choices=("active", "archived"), default="active"),
                Column("aiSummary", about="what the project is, in a sentence or two"),
                _CREATED,
            ),
            "name",
        ),
        Table(
            "timelines",
            "a date that matters to a project: a milestone, a deadline, an event",
            (
                _ID,
                Column("projectId", required=True, about="the id of the project it belongs to"),
                Column("title", required=True),
                Column("date", "time", required=True, about="when it is"),
                *_REVIEW,
                _CREATED,
            ),
            "title",
        ),
        Table(
            "notes",
            "something worth keeping, in Markdown",
            (
                _ID,
                Column("projectId"),
                Column("title", required=True),
                Column("content", required=True, about="Markdown"),
                _CREATED,
                _UPDATED,
            ),
            "title",
        ),
        Table(
            "taskComments",
            "a remark on a task",
            (
                _ID,
                Column("taskId", required=True, about="the id of the task it is about"),
                Column("author"),
                Column("content", required=True),
                _CREATED,
            ),
            "content",
        ),
        Table(
            "clients",
            "a person or company that work is done for",
            (
                _ID,
                Column("parentId"),
                Column("name", required=True),
                Column("industry"),
                _CREATED,
            ),
            "name",
        ),
    )
}


def is_value(column: Column, value: Any) -> bool:
    """Return whether a value is valid for a column in the form of the wire. None means no value."""
    if value is None:
        return not column.required
    if column.kind in {"int", "time"}:
        return isinstance(value, int) and not isinstance(value, bool) and -INT64 <= value < INT64
    if column.kind == "flag":
        return isinstance(value, int) and value in (0, 1)
    return isinstance(value, str) and (not column.choices or value in column.choices)
