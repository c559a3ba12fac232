"""Check the records that a model proposes against the user's tables. The model is treated as untrusted.

Only inserts into the agent's tables are accepted, with known fields of the right type; the review flags are always set
here. Reasons for a rejection never quote the document.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

from adiuva.core.crypto import UserCipher
from adiuva.devices.tables import MAX_TEXT, TABLES, Column, Table, is_value

MAX_TITLE_CHARS: Final = 1_000
# Of one model call.
MAX_RECORDS: Final = 500
_EARLIEST: Final = dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
_LATEST: Final = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
# A row is sent before the rows that may refer to it.
_ORDER: Final = {
    name: place for place, name in enumerate(("clients", "projects", "notes", "timelines", "tasks"))
}


@dataclass(frozen=True)
class Record:
    """A row that may be inserted, in the device's own column names."""

    table: str
    data: dict[str, Any]

    @property
    def identity(self) -> str:
        """Equal for two records of one source that mean the same thing: the name, and for dates the date."""
        name = " ".join(str(self.data[TABLES[self.table].title]).casefold().split())
        return f"{self.table}\n{name}\n{self.data.get('date', '')}"

    def key(self, cipher: UserCipher, agent_id: uuid.UUID, source: bytes) -> uuid.UUID:
        """The dedupe key: the same thing found again in the same source gets the same key. It confirms no guess."""
        name = cipher.fingerprint(f"{agent_id}\n{source.hex()}\n{self.identity}", "record")
        return uuid.UUID(bytes=name[:16], version=5)


@dataclass(frozen=True)
class RejectedRecord:
    """A proposed record that cannot be used. `repairable`: the model may mend it if it is told why."""

    code: str
    reason: str
    repairable: bool = True


@dataclass(frozen=True)
class RecordRules:
    """What an agent may propose: its tables, the user's projects (id → name), and the zone of dates without one."""

    tables: tuple[str, ...]
    projects: Mapping[str, str]
    zone: ZoneInfo

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of an answer."""
        branches = [_branch(TABLES[name]) for name in self.tables]
        return {
            "type": "object",
            "properties": {"records": {"type": "array", "items": {"anyOf": branches}}},
            "required": ["records"],
            "additionalProperties": False,
        }

    def check(self, answer: Any) -> tuple[list[Record], list[RejectedRecord]]:
        """Sort an answer into records (without duplicates, parents first) and rejected ones."""
        found = answer.get("records") if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            return [], [RejectedRecord("no_records", 'the answer has no list named "records"')]
        records: dict[str, Record] = {}
        rejected: list[RejectedRecord] = []
        for item in found[:MAX_RECORDS]:
            try:
                record = self._record(item)
            except _UnusableRecord as unusable:
                rejected.append(unusable.rejected)
            else:
                records.setdefault(record.identity, record)
        if len(found) > MAX_RECORDS:
            rejected.append(
                RejectedRecord(
                    "too_many", f"only the first {MAX_RECORDS} records of one answer are taken", False
                )
            )
        return sorted(records.values(), key=lambda record: _ORDER.get(record.table, len(_ORDER))), rejected

    def _record(self, item: Any) -> Record:
        if not isinstance(item, dict) or not isinstance(item.get("data"), dict):
            raise _UnusableRecord("bad_record", 'a record is {"table": …, "data": {…}}')
        name = item.get("table")
        if name not in self.tables:
            raise _UnusableRecord("table_not_asked_for", "the table is not one of those asked for")
        if item.get("action", "insert") != "insert":
            raise _UnusableRecord("insert_only", "only inserts are taken")
        table = TABLES[str(name)]
        data: dict[str, Any] = {}
        for field, value in item["data"].items():
            column = table.by_name.get(field) if isinstance(field, str) else None
            if column is None:
                raise _UnusableRecord("unknown_field", f"{name} has no such field; it has {_fields(table)}")
            if column.made_by_device:
                raise _UnusableRecord("field_of_the_device", f"{name}: the device makes {column.name} itself")
            if column.kind == "flag" or value is None or (isinstance(value, str) and not value.strip()):
                continue
            data[column.name] = self._value(table, column, value)
        self._references(table, data)
        for column in table.columns:
            if column.required and column.name not in data:
                raise _UnusableRecord("field_missing", f"{name}: {column.name} is missing")
        if table.reviewed:
            data |= {"isAiSuggested": 1, "isApproved": 0}
        return Record(table.name, data)

    def _references(self, table: Table, data: dict[str, Any]) -> None:
        project = data.get("projectId")
        if project is not None and project not in self.projects:
            wanted = str(project).casefold()
            named = [key for key, name in self.projects.items() if name.casefold() == wanted]
            if len(named) != 1:
                raise _UnusableRecord(
                    "unknown_project", f"{table.name}: projectId is not the id of a listed project"
                )
            data["projectId"] = named[0]
        if table.name == "timelines" and "projectId" not in data:
            raise _UnusableRecord(
                "no_project", "timelines: belongs to no project", repairable=bool(self.projects)
            )
        if table.name == "taskComments":
            # The model knows no tasks, so any that it names is made up.
            raise _UnusableRecord("no_task", "taskComments: belongs to no known task", repairable=False)
        if "clientId" in data or "parentId" in data:
            raise _UnusableRecord("unknown_client", f"{table.name}: no client is known by that id")

    def _value(self, table: Table, column: Column, value: Any) -> Any:
        where = f"{table.name}: {column.name}"
        if column.kind == "time":
            return _milliseconds(value, self.zone, where)
        if column.kind == "names":
            return _names(value, where)
        if isinstance(value, str):
            value = value.strip()
            _check_text(value, MAX_TITLE_CHARS if column.name == table.title else MAX_TEXT, where)
            if column.choices:
                value = value.casefold().replace(" ", "_").replace("-", "_")
        if not is_value(column, value):
            raise _UnusableRecord("bad_value", f"{where} must be {_wanted(column)}")
        return value


class _UnusableRecord(Exception):
    def __init__(self, code: str, reason: str, *, repairable: bool = True) -> None:
        super().__init__(reason)
        self.rejected = RejectedRecord(code, reason, repairable)


def _milliseconds(value: Any, zone: ZoneInfo, where: str) -> int:
    """Milliseconds since 1970, from an ISO date (its start in the zone), an ISO date and time, or milliseconds."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            when = dt.datetime.fromtimestamp(value / 1000, dt.UTC)
        elif isinstance(value, str):
            when = dt.datetime.fromisoformat(value.strip())
            when = when if when.tzinfo else when.replace(tzinfo=zone)
        else:
            raise ValueError
        if not _EARLIEST <= when <= _LATEST:
            raise ValueError
    except (ValueError, OverflowError, OSError):
        raise _UnusableRecord("bad_time", f"{where} must be an ISO 8601 date or date and time") from None
    return int(when.timestamp() * 1000)


def _names(value: Any, where: str) -> str:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > 50:
        raise _UnusableRecord("bad_value", f"{where} must be a list of names")
    for name in names:
        _check_text(name, 200, where)
    return json.dumps([name.strip() for name in names if name.strip()], ensure_ascii=False)


def _check_text(text: str, most: int, where: str) -> None:
    if len(text) > most:
        raise _UnusableRecord("too_long", f"{where} may have at most {most} characters")
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise _UnusableRecord("bad_text", f"{where} holds characters that are no text")


def _fields(table: Table) -> str:
    return ", ".join(
        column.name for column in table.columns if not column.made_by_device and column.kind != "flag"
    )


def _wanted(column: Column) -> str:
    if column.choices:
        return "one of " + ", ".join(column.choices)
    return {"text": "a text", "int": "a whole number"}.get(column.kind, column.kind)


def _branch(table: Table) -> dict[str, Any]:
    fields = {
        column.name: _json_type(column)
        for column in table.columns
        if not column.made_by_device and column.kind != "flag" and column.name not in {"clientId", "parentId"}
    }
    return {
        "type": "object",
        "description": table.about,
        "properties": {
            "table": {"const": table.name},
            "data": {
                "type": "object",
                "properties": fields,
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


def merge_records(answers: Sequence[Sequence[Record]]) -> list[Record]:
    """Merge the records of several parts of a document: what one part cuts off, the next may contain."""
    found: dict[str, Record] = {}
    for records in answers:
        for record in records:
            known = found.get(record.identity, record)
            found[record.identity] = Record(known.table, record.data | known.data)
    return sorted(found.values(), key=lambda record: _ORDER.get(record.table, len(_ORDER)))
