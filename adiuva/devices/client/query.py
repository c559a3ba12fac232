"""Translation of `select` filters to SQL. Identifiers come only from adiuva.devices.tables; values are always bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from adiuva.devices.client.errors import CallRefused
from adiuva.devices.tables import Column, Table, is_value

_MAX_ROWS = 100_000
_SAME_NAME = ("projectId", "status", "taskId", "clientId")
_DUE = ("dueDate", "date")  # the first of these that a table has is what dueDateFrom and dueDateTo mean

Condition = tuple[str, list[Any]]


def column_sql(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def select_sql(
    table: Table, filters: Mapping[str, Any], limit: int | None, offset: int | None = None
) -> tuple[str, list[Any]]:
    """Return a SELECT and its values. Raises CallRefused for a filter that is unknown or of the wrong type.

    A filter that is null counts as absent. Rows come oldest first unless `orderBy` says otherwise.
    """
    conditions: list[str] = ["1"]
    values: list[Any] = []
    order = 'ORDER BY "createdAt", rowid'
    given = {name: value for name, value in filters.items() if value is not None}
    for name, value in given.items():
        if name == "orderBy":
            order = _order(table, value)
            continue
        if name not in _FILTERS:
            raise CallRefused(f"there is no filter named {name!r}")
        sql, bound = _FILTERS[name](table, name, value)
        conditions.append(sql)
        values += bound
    if table.name == "projects" and "status" not in given and not given.get("includeArchived"):
        conditions.append("\"status\" IS NOT 'archived'")
    values += [_count("limit", limit, _MAX_ROWS), _count("offset", offset, 0)]
    return (
        f'SELECT {column_sql(table.by_name)} FROM "{table.name}" '  # noqa: S608  # names of our own
        f"WHERE {' AND '.join(conditions)} {order} LIMIT ? OFFSET ?",
        values,
    )


def _count(name: str, value: Any, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CallRefused(f"{name} must be a whole number from 0")
    return min(value, _MAX_ROWS)


def _column(table: Table, name: str) -> Column:
    column = table.by_name.get(name)
    if column is None:
        raise CallRefused(f"{table.name} has no column {name!r}")
    return column


def _equal(table: Table, name: str, value: Any) -> Condition:
    column = _column(table, name)
    if not is_value(column, value):
        raise CallRefused(f"{name} has a wrong value")
    return f'"{name}" = ?', [value]


def _due(table: Table, name: str, value: Any) -> Condition:
    column = next((table.by_name[due] for due in _DUE if due in table.by_name), None)
    if column is None:
        raise CallRefused(f"{table.name} has no due date")
    if not is_value(column, value):
        raise CallRefused(f"{name} must be a time in milliseconds")
    return f'"{column.name}" {">=" if name == "dueDateFrom" else "<="} ?', [value]


def _search(table: Table, name: str, value: Any) -> Condition:
    """Return a condition: every word must occur in the row's texts, in upper or lower case, in any alphabet."""
    if not isinstance(value, str):
        raise CallRefused("search must be a text")
    searched = [c.name for c in table.columns if _is_text(c)]
    text = " || ' ' || ".join(f'fold("{column}")' for column in searched)
    words = value.casefold().split()
    return " AND ".join([f"instr({text}, ?)"] * len(words)) or "1", list(words)


def _is_text(column: Column) -> bool:
    is_reference = column.name == "id" or column.name.endswith("Id")
    return column.kind in {"text", "names"} and not column.choices and not is_reference


def _archived(table: Table, name: str, value: Any) -> Condition:
    if value not in (True, False):
        raise CallRefused("includeArchived must be true or false")
    return "1", []  # the default of projects, above, looks at it


def _order(table: Table, value: Any) -> str:
    """Return the order for `column`, `column asc`, `column desc` or `-column`. Rows without a value come last.

    A column with choices orders by their place in tables.py: high before medium before low.
    """
    if not isinstance(value, str) or not 1 <= len(words := value.split()) <= 2:
        raise CallRefused("orderBy must be a column, with desc behind or - in front for the reverse")
    name, direction = words[0].removeprefix("-"), words[-1].lower() if len(words) == 2 else "asc"
    if direction not in {"asc", "desc"}:
        raise CallRefused("orderBy knows asc and desc")
    column = _column(table, name)
    reverse = (direction == "desc") is not words[0].startswith("-")
    key = f'"{name}"'
    if column.choices:
        ranks = " ".join(f"WHEN '{choice}' THEN {rank}" for rank, choice in enumerate(column.choices))
        key = f"CASE {key} {ranks} END"
    elif column.kind in {"text", "names"}:
        key = f"fold({key})"
    way = "DESC" if reverse else "ASC"
    return f'ORDER BY "{name}" IS NULL, {key} {way}, rowid {way}'


_FILTERS: Mapping[str, Callable[[Table, str, Any], Condition]] = {
    **dict.fromkeys(_SAME_NAME, _equal),
    "dueDateFrom": _due,
    "dueDateTo": _due,
    "search": _search,
    "includeArchived": _archived,
}
