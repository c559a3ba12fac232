"""Compares a request's changes on a device with the expected ones. Pure functions."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from adiuva.devices.tables import TABLES
from bench.evaluation.texts import fold, holds

# Set by the device, or by the server for all rows alike.
_NOT_COMPARED: Final = {"id", "createdAt", "updatedAt", "isAiSuggested", "isApproved"}
Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""table → id → row"""
Action = Literal["insert", "update", "delete"]


@dataclass(frozen=True)
class Change:
    """A row that differs. `values` are the columns that are new or changed; `title` the row's title before, or now."""

    action: Action
    table: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action} {self.table} “{self.title}” {json.dumps(self.values, ensure_ascii=False)}"


@dataclass(frozen=True)
class ExpectedChange:
    """A change that is to happen. `row`: the title of the row that is updated or deleted.

    `values`: by column a value, a date (a day in the user's zone), None for nothing, or terms as {"has": […]}. An
    update changes these columns and no others; an insert may set others as well.
    """

    action: Action
    table: str
    row: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action} {self.table} “{self.row}” {json.dumps(self.values, default=str, ensure_ascii=False)}"


def changes_between(before: Rows, after: Rows) -> list[Change]:
    """What was inserted, updated and deleted, by table and in the order of the rows."""
    found = []
    for name, table in TABLES.items():
        old, new = before.get(name, {}), after.get(name, {})
        for key, row in old.items():
            title = str(row.get(table.title))
            if key not in new:
                found.append(Change("delete", name, title))
            elif values := {
                column: value
                for column, value in new[key].items()
                if column not in _NOT_COMPARED and value != row.get(column)
            }:
                found.append(Change("update", name, title, values))
        for key, row in new.items():
            if key not in old:
                values = {column: value for column, value in row.items() if column not in _NOT_COMPARED}
                found.append(Change("insert", name, str(row.get(table.title)), values))
    return found


def faults_in(
    expected: Sequence[ExpectedChange], found: Sequence[Change], *, zone: ZoneInfo, names: Mapping[str, str]
) -> list[str]:
    """What is missing and what is too much, in words; empty if exactly the expected happened.

    `names`: the titles of the rows by id, for columns that refer to rows.
    """
    left = list(found)
    faults = []
    for wanted in expected:
        match = next((each for each in left if _is_it(wanted, each, zone, names)), None)
        if match is None:
            faults.append(f"missing: {wanted}")
        else:
            left.remove(match)
    return faults + [f"not asked for: {each}" for each in left]


def _is_it(wanted: ExpectedChange, change: Change, zone: ZoneInfo, names: Mapping[str, str]) -> bool:
    if (wanted.action, wanted.table) != (change.action, change.table):
        return False
    if wanted.action != "insert" and fold(wanted.row) != fold(change.title):
        return False
    if wanted.action == "update" and set(wanted.values) != set(change.values):
        return False
    return all(
        value_is(value, change.values.get(column), wanted.table, column, zone, names)
        for column, value in wanted.values.items()
    )


def value_is(
    wanted: Any, given: Any, table: str, column: str, zone: ZoneInfo, names: Mapping[str, str]
) -> bool:
    """Whether a row's value is the expected one."""
    if isinstance(wanted, Mapping):
        return isinstance(given, str) and holds(given, wanted["has"])
    if wanted is None or given is None:
        return wanted is given
    if TABLES[table].by_name[column].kind == "time":
        return day_of(given, zone) == str(wanted)
    if TABLES[table].by_name[column].kind == "names":
        return sorted(map(fold, json.loads(given))) == sorted(map(fold, wanted))
    if column.endswith("Id"):
        return fold(names.get(given, "")) == fold(str(wanted))
    return fold(str(given)) == fold(str(wanted))


def day_of(milliseconds: int, zone: ZoneInfo) -> str:
    """The day of a row's time, as 2026-03-05."""
    return f"{dt.datetime.fromtimestamp(milliseconds / 1000, zone):%Y-%m-%d}"
