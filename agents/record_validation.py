"""Check the records that a model proposes against the user's tables. The model is treated as untrusted.

Only inserts into the agent's tables are accepted, with known fields of the right type; the review flags are always set
here. An optional field that cannot be understood costs that field, not the record. Reasons never quote the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from adiuva.devices.tables import TABLES, Column, Table
from agents.field_values import MAX_TITLE_CHARS, BadValue, read_value

__all__ = ["MAX_RECORDS", "MAX_TITLE_CHARS", "Record", "RecordRules", "RejectedRecord", "Verdict"]

# The most records in one answer of the model.
MAX_RECORDS: Final = 500
# A row is sent before the rows that may refer to it.
_ORDER: Final = {
    name: place for place, name in enumerate(("clients", "projects", "notes", "timelines", "tasks"))
}
# Tables of things that a document may name several times, and that are one thing each time.
ENTITIES: Final = frozenset({"projects", "clients"})
_PROJECT_ALIAS: Final = re.compile(r"p(\d{1,5})")
Now = Literal["there", "changed", "done", "gone"]
_NOW: Final[Mapping[str, Now]] = {
    **dict.fromkeys(("there", "still_there", "same", "unchanged", "open", "present"), "there"),
    **dict.fromkeys(("changed", "updated", "moved", "modified"), "changed"),
    **dict.fromkeys(("done", "completed", "complete", "finished", "ticked"), "done"),
    **dict.fromkeys(("gone", "removed", "deleted", "cancelled", "canceled", "struck"), "gone"),
}


@dataclass(frozen=True)
class FieldProblem:
    """An optional field of a proposed record that was left out. `repairable`: the model may mend it."""

    reason: str
    repairable: bool = True


@dataclass(frozen=True)
class Record:
    """A row that may be inserted, in the device's own column names.

    `place` is its place in the answers, such as "part 2, record 3", `part` the number of the part; `problems` are the
    fields that were left out.
    """

    table: str
    data: dict[str, Any]
    place: str = field(default="", compare=False)
    part: int = field(default=0, compare=False)
    problems: tuple[FieldProblem, ...] = field(default=(), compare=False)

    @property
    def title(self) -> str:
        return str(self.data[TABLES[self.table].title])

    @property
    def words(self) -> str:
        """Table and title, folded: the part of a record that stays if its date or people change."""
        return f"{self.table}\n{' '.join(self.title.casefold().split())}"

    @property
    def identity(self) -> str:
        """The same for two records that say the same: words, date and people. A document may hold several of them."""
        return f"{self.words}\n{date_of(self.data)}\n{people_of(self.data)}"


def date_of(data: Mapping[str, Any]) -> int | None:
    """Return the date that tells a record from others of the same words."""
    when = data.get("dueDate", data.get("date"))
    return when if isinstance(when, int) else None


def people_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    if not (said := data.get("assignee")):
        return ()
    try:
        names = json.loads(said)
    except ValueError:
        return ()
    return tuple(sorted(str(name).casefold() for name in names))


@dataclass(frozen=True)
class RejectedRecord:
    """A proposed record that cannot be used. `repairable`: the model may mend it if it is told why."""

    code: str
    reason: str
    repairable: bool = True
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Verdict:
    """An answer's statement about a record that was found before, by its number in the list that the model was shown.

    `data` holds the fields that it says have changed, checked; it is empty unless `now` is "changed".
    """

    number: int
    now: Now
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordRules:
    """The bounds of an agent's proposals: its tables, the user's projects (id → name), and the default zone."""

    tables: tuple[str, ...]
    projects: Mapping[str, str]
    zone: ZoneInfo

    def schema(self, *, with_known: bool = False) -> dict[str, Any]:
        """Return the JSON Schema of an answer, the same object each time.

        `with_known`: the model is shown the records found in the document before.
        """
        return _schema(self.tables, with_known)

    def check(self, *answers: Any, part: int = 0) -> tuple[list[Record], list[RejectedRecord]]:
        """Sort the values of an answer into records (parents first) and rejected ones. `part`: for their places."""
        found = _listed(answers, "records")
        if found is None:
            return [], [RejectedRecord("no_records", 'the answer has no list named "records"')]
        records: list[Record] = []
        rejected: list[RejectedRecord] = []
        for number, item in enumerate(found[:MAX_RECORDS], 1):
            place = f"part {part}, record {number}" if part else f"record {number}"
            try:
                records.append(self._record(item, place, part))
            except _UnusableRecord as unusable:
                rejected.append(replace(unusable.rejected, place=place))
        if len(found) > MAX_RECORDS:
            rejected.append(
                RejectedRecord(
                    "too_many", f"only the first {MAX_RECORDS} records of one answer are taken", False
                )
            )
        return in_order(records), rejected

    def verdicts(self, *answers: Any, tables: Mapping[int, str]) -> list[Verdict]:
        """Return an answer's verdicts on the records that were found before. `tables`: the table of each, by its
        number.

        If a number is named several times, the first counts. A verdict that cannot be understood is ignored.
        """
        found: dict[int, Verdict] = {}
        for item in _listed(answers, "known") or []:
            if not isinstance(item, dict):
                continue
            number, now = _whole_number(item.get("id")), _NOW.get(_folded(item.get("now")))
            if number is None or now is None or number not in tables or number in found:
                continue
            given = item.get("data")
            data: dict[str, Any] = {}
            if now == "changed" and isinstance(given, dict):
                data, _ = self._fields(TABLES[tables[number]], given)
            found[number] = Verdict(number, now, data)
        return list(found.values())

    def _record(self, item: Any, place: str, part: int) -> Record:
        if not isinstance(item, dict):
            raise _UnusableRecord("bad_record", 'a record is {"table": …, "data": {…}}')
        given = item.get("data")
        if given is None:
            given = {key: value for key, value in item.items() if key not in {"table", "action"}}
        if not isinstance(given, dict) or not given:
            raise _UnusableRecord("bad_record", 'a record is {"table": …, "data": {…}}')
        name = _table_name(item.get("table"), self.tables)
        if name is None:
            raise _UnusableRecord(
                "table_not_asked_for", f"the table is not one of those asked for: {', '.join(self.tables)}"
            )
        if item.get("action", "insert") != "insert":
            raise _UnusableRecord("insert_only", 'only inserts are taken: leave "action" out')
        table = TABLES[name]
        if name == "taskComments":
            # The model knows no tasks, so any that it names is made up.
            raise _UnusableRecord("no_task", "taskComments: belongs to no known task", repairable=False)
        data, problems = self._fields(table, given)
        for column in table.columns:
            if not column.required or column.name in data:
                continue
            if problem := problems.get(column.name):
                raise _UnusableRecord(problem.code, problem.reason, repairable=problem.repairable)
            if column.name == "projectId":
                raise _UnusableRecord(
                    "no_project",
                    f"{name}: projectId is missing; it is required, and is the label of a listed project",
                    repairable=bool(self.projects),
                )
            raise _UnusableRecord("field_missing", f"{name}: {column.name} is missing; it is required")
        if table.reviewed:
            data |= {"isAiSuggested": 1, "isApproved": 0}
        left_out = tuple(FieldProblem(each.reason, each.repairable) for each in problems.values())
        return Record(table.name, data, place, part, left_out)

    def _fields(
        self, table: Table, given: Mapping[Any, Any]
    ) -> tuple[dict[str, Any], dict[str, RejectedRecord]]:
        """Return the fields that can be understood, and by name why others cannot."""
        data: dict[str, Any] = {}
        problems: dict[str, RejectedRecord] = {}
        for name, value in given.items():
            column = table.by_name.get(name) if isinstance(name, str) else None
            if column is None:
                problems[f"unknown {len(problems)}"] = RejectedRecord(
                    "unknown_field", f"{table.name} has no such field; it has {_fields(table)}", False
                )
                continue
            if column.kind == "flag" or value is None or (isinstance(value, str) and not value.strip()):
                continue
            try:
                data[column.name] = self._value(table, column, value)
            except _UnusableRecord as unusable:
                problems[column.name] = unusable.rejected
        return data, problems

    def _value(self, table: Table, column: Column, value: Any) -> Any:
        where = f"{table.name}: {column.name}"
        if column.made_by_device:
            raise _UnusableRecord("field_of_the_device", f"{where} is made by the device", repairable=False)
        if column.name in {"clientId", "parentId"}:
            raise _UnusableRecord(
                "unknown_client", f"{where}: no client is known by that id", repairable=False
            )
        if column.name == "projectId":
            return self._project(table, value)
        try:
            return read_value(column, value, zone=self.zone, is_title=column.name == table.title)
        except BadValue as bad:
            raise _UnusableRecord(bad.code, f"{where} must be {bad.wanted}") from None

    def _project(self, table: Table, value: Any) -> str:
        alias = _PROJECT_ALIAS.fullmatch(value.strip()) if isinstance(value, str) else None
        if alias is not None and 0 < (place := int(alias[1])) <= len(self.projects):
            # The model was shown a label in place of the id (agents.prompt_context.nearest_projects).
            return list(self.projects)[place - 1]
        if isinstance(value, str) and value in self.projects:
            return value
        wanted = str(value).strip().casefold()
        named = [key for key, name in self.projects.items() if name.casefold() == wanted]
        if len(named) != 1:
            count = len(self.projects)
            allowed = f"p1 to p{count}" if count > 1 else "p1" if count else "there is none: leave it out"
            raise _UnusableRecord(
                "unknown_project", f"{table.name}: projectId is not the label of a listed project ({allowed})"
            )
        return named[0]


class _UnusableRecord(Exception):
    def __init__(self, code: str, reason: str, *, repairable: bool = True) -> None:
        super().__init__(reason)
        self.rejected = RejectedRecord(code, reason, repairable)


def _listed(answers: Sequence[Any], name: str) -> list[Any] | None:
    """Return the items of all lists of this name in the values of an answer; None if there is no such list.

    A list of objects, and an object that is a record itself, count as records.
    """
    found: list[Any] | None = None
    for answer in answers:
        items = answer.get(name) if isinstance(answer, dict) else None
        if items is None and name == "records":
            if isinstance(answer, dict) and "table" in answer:
                items = [answer]
            elif isinstance(answer, list) and (len(answers) == 1 or any(isinstance(i, dict) for i in answer)):
                items = answer
        if isinstance(items, list):
            found = [*(found or []), *items]
    return found


@cache
def _schema(tables: tuple[str, ...], with_known: bool) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    if with_known:
        properties["known"] = {
            "type": "array",
            "items": _known_item([TABLES[name] for name in tables]),
        }
    properties["records"] = {
        "type": "array",
        "items": {"anyOf": [_branch(TABLES[name]) for name in tables]},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _table_name(said: Any, tables: Sequence[str]) -> str | None:
    """Return the table that is meant; models write "task" for "tasks"."""
    if not isinstance(said, str):
        return None
    wanted = {said.casefold(), f"{said.casefold()}s"}
    return said if said in tables else next((name for name in tables if name.casefold() in wanted), None)


def _folded(said: Any) -> str:
    return said.strip().casefold().replace(" ", "_").replace("-", "_") if isinstance(said, str) else ""


def _whole_number(said: Any) -> int | None:
    if isinstance(said, str) and said.strip().isdecimal() and len(said) < 10:
        return int(said)
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _fields(table: Table) -> str:
    return ", ".join(
        column.name for column in table.columns if not column.made_by_device and column.kind != "flag"
    )


def _properties(table: Table) -> dict[str, Any]:
    return {
        column.name: _json_type(column)
        for column in table.columns
        if not column.made_by_device and column.kind != "flag" and column.name not in {"clientId", "parentId"}
    }


def _known_item(tables: Sequence[Table]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for table in tables:
        for name, kind in _properties(table).items():
            fields.setdefault(name, {key: value for key, value in kind.items() if key != "enum"})
    return {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "now": {"enum": ["there", "changed", "done", "gone"]},
            "data": {
                "type": "object",
                "description": "only the fields that changed",
                "properties": fields,
                "additionalProperties": False,
            },
        },
        "required": ["id", "now"],
        "additionalProperties": False,
    }


def _branch(table: Table) -> dict[str, Any]:
    return {
        "type": "object",
        "description": table.about,
        "properties": {
            "table": {"const": table.name},
            "data": {
                "type": "object",
                "properties": _properties(table),
                "required": [column.name for column in table.columns if column.required],
                "additionalProperties": False,
            },
        },
        "required": ["table", "data"],
        "additionalProperties": False,
    }


def _json_type(column: Column) -> dict[str, Any]:
    found: dict[str, Any]
    if column.kind == "names":
        found = {"type": "array", "items": {"type": "string"}}
    elif column.choices:
        found = {"type": "string", "enum": list(column.choices)}
    else:
        found = {"type": "string"}
    about = column.about + (", ISO 8601" if column.kind == "time" else "")
    return found | ({"description": about.strip(", ")} if about else {})


def in_order(records: Iterable[Record]) -> list[Record]:
    """Return parents first, otherwise in the order found. A thing that a document names several times is one record."""
    entities: dict[str, Record] = {}
    kept: list[Record] = []
    for record in records:
        if record.table not in ENTITIES:
            kept.append(record)
        elif known := entities.get(record.words):
            known.data.update(record.data | known.data)
        else:
            entities[record.words] = record
            kept.append(record)
    return sorted(kept, key=lambda record: _ORDER.get(record.table, len(_ORDER)))
