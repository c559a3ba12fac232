"""The cases of the evaluation: YAML files beside this module, checked against data/schema.json when they are read."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from zoneinfo import ZoneInfo

import jsonschema
import yaml

from adiuva.devices.tables import TABLES
from bench.evaluation.record_scores import FIELDS, ExpectedRecord
from bench.evaluation.row_changes import ExpectedChange

DATA: Final = Path(__file__).parent / "data"
ZONE: Final = ZoneInfo("Europe/Zurich")
# A Thursday. Models are told that this is the present time, so that relative dates have one meaning.
NOW: Final = dt.datetime(2026, 3, 5, 10, 0, tzinfo=ZONE)
# Whom the documents and conversations are about.
FREELANCER: Final = {
    "name": "Mara Lindt",
    "company": "Lindt Design",
    "email addresses": "mara@lindt-design.example",
    "profession": "graphic designer",
}
_Case = TypeVar("_Case")


@dataclass(frozen=True)
class Document:
    """A text, what belongs in the freelancer's lists of it, and what never does."""

    id: str
    language: str
    kind: str
    text: str
    find: tuple[ExpectedRecord, ...]
    about: frozenset[str] = frozenset()
    never: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chat:
    """Requests of one conversation, and what they change. `confirms`: the user says yes to what the server asks;
    `declined`: what is asked for and does not happen, because they say no.

    `says`: terms that the last answer must hold, beside the rows; `must_ask`: the server must have asked before it
    changed anything. `looking_at`: the title of the row that is open.
    """

    id: str
    language: str
    kind: str
    say: tuple[str, ...]
    changes: tuple[ExpectedChange, ...]
    declined: tuple[ExpectedChange, ...] = ()
    looking_at: str = ""
    confirms: bool = True
    must_ask: bool = False
    says: tuple[str, ...] = ()
    says_not: tuple[str, ...] = ()


@dataclass(frozen=True)
class Session:
    """What the user says in one conversation, message by message."""

    id: str
    said: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question about what was said. `session`: where the answer was said, if its source is asked for."""

    id: str
    kind: str
    ask: str
    answer: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    session: str = ""


@dataclass(frozen=True)
class Cases:
    documents: list[Document] = field(default_factory=list)
    chats: list[Chat] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)


class BadCase(ValueError):
    """A file of cases does not fit the schema; the message says where."""


def load_cases(folder: Path = DATA) -> Cases:
    """All cases of a folder. Raises BadCase."""
    cases = Cases()
    for file in sorted(folder.rglob("*.yaml")):
        body = _read(file)
        cases.documents.extend(_document(each, file.stem) for each in body.get("documents", ()))
        cases.chats.extend(map(_chat, body.get("chats", ())))
        cases.sessions.extend(Session(each["id"], tuple(each["said"])) for each in body.get("sessions", ()))
        cases.questions.extend(map(_question, body.get("questions", ())))
        cases.rows.update(_rows(body.get("rows", {})))
    for kind in (cases.documents, cases.chats, cases.sessions, cases.questions):
        ids = [each.id for each in cast("list[Chat]", kind)]
        if twice := sorted({each for each in ids if ids.count(each) > 1}):
            raise BadCase(f"two cases have the id {twice[0]}")
    return cases


def sample(cases: Sequence[_Case], most: int) -> list[_Case]:
    """So many of the cases at most, evenly spread."""
    if not most or most >= len(cases):
        return list(cases)
    return [cases[place * len(cases) // most] for place in range(most)]


@cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((DATA / "schema.json").read_text("utf-8")))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C where it is installed
    """YAML whose dates stay texts."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read(file: Path) -> Any:
    body = yaml.load(file.read_text("utf-8"), _Loader)  # a SafeLoader
    error = jsonschema.exceptions.best_match(_validator().iter_errors(body))
    if error is not None:
        raise BadCase(f"{file.name}, {error.json_path}: {error.message[:300]}")
    return body


def _rows(tables: dict[str, Any]) -> dict[str, Any]:
    """Rows as a device keeps them: a day is its first moment."""

    def value(table: str, column: str, given: Any) -> Any:
        if column == "id" or TABLES[table].by_name[column].kind != "time":
            return given
        return int(dt.datetime.combine(dt.date.fromisoformat(given), dt.time(), ZONE).timestamp() * 1000)

    return {
        table: [{column: value(table, column, given) for column, given in row.items()} for row in rows]
        for table, rows in tables.items()
    }


def _document(body: dict[str, Any], language: str) -> Document:
    return Document(
        body["id"],
        language,
        body["kind"],
        body["text"],
        tuple(map(_record, body["find"])),
        frozenset(body.get("about", ())),
        tuple(body.get("never", ())),
    )


def _record(body: dict[str, Any]) -> ExpectedRecord:
    return ExpectedRecord(
        body["table"],
        tuple(body["has"]),
        {name: body[name] for name in FIELDS if name in body},
        body.get("optional", False),
        frozenset(body.get("free", ())),
    )


def _chat(body: dict[str, Any]) -> Chat:
    return Chat(
        body["id"],
        body["language"],
        body["kind"],
        tuple(body["say"]),
        tuple(map(_change, body["changes"])),
        tuple(map(_change, body.get("declined", ()))),
        body.get("looking_at", ""),
        body.get("confirms", True),
        body.get("must_ask", False),
        tuple(body.get("says", ())),
        tuple(body.get("says_not", ())),
    )


def _change(body: dict[str, Any]) -> ExpectedChange:
    action = next(name for name in ("insert", "update", "delete") if name in body)
    return ExpectedChange(action, body[action], body.get("row", ""), body.get("with", {}))


def _question(body: dict[str, Any]) -> Question:
    return Question(
        body["id"],
        body["kind"],
        body["ask"],
        tuple(body.get("answer", ())),
        tuple(body.get("not", ())),
        body.get("session", ""),
    )
