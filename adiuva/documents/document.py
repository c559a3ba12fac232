"""Extracted text and metadata of a file or message, in the form that devices, mailboxes and agents pass on."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import PurePosixPath
from typing import Any, Final

_MAX_VALUE_CHARS: Final = 300
_MAX_PROBLEMS: Final = 20
# A text's own title and date are searched for within this many characters.
_BEGINNING_CHARS: Final = 2_000
_FRONT_MATTER: Final = re.compile(r"\A---\n(.{0,1900}?)\n(?:---|\.\.\.)(?:\n|\Z)", re.DOTALL)
_FRONT_VALUE: Final = re.compile(
    r"^(?P<name>title|date|created|author|from)\s*:[ \t]*(?P<value>\S.*)$", re.MULTILINE | re.IGNORECASE
)
_HEADING: Final = re.compile(r"^#{1,3}[ \t]+(\S.*?)[ \t]*#*$", re.MULTILINE)
_DATE_LINE: Final = re.compile(
    r"^(?:[*_]{0,2})(?:date|datum|data|fecha|дата|日期|日付)(?:[*_]{0,2})[ \t]*[:：][ \t*_]*(\S.{3,60})$",
    re.MULTILINE | re.IGNORECASE,
)
_ISO_DATE: Final = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?([01]\d)[-_.]?([0-3]\d)(?!\d)")
_LOCAL_DATE: Final = re.compile(r"(?<!\d)([0-3]?\d)\.[ ]?([01]?\d)\.[ ]?((?:19|20)\d\d)(?!\d)")


@dataclass(frozen=True, slots=True)
class Attachment:
    """Attachment that is named and not read. `size`: approximate bytes; None if unknown."""

    name: str
    type: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Facts about a document as a whole; every value is one line, empty if it is not known.

    `date`: when it was written, as ISO 8601 (a date, or a time with its offset); never the file's own times.
    `message_id`: of a mail, without angle brackets; the same wherever the mail lies.
    """

    title: str = ""
    date: str = ""
    sender: str = ""
    recipients: str = ""
    message_id: str = ""

    def lines(self) -> list[tuple[str, str]]:
        """Return names and values for a reader, without the message's id."""
        named = (
            ("Title", self.title),
            ("Date", self.date),
            ("Sender", self.sender),
            ("Recipients", self.recipients),
        )
        return [(name, value) for name, value in named if value]


@dataclass(frozen=True, slots=True)
class Document:
    """Text of a document with its facts. `text` is Markdown or plain text; `kind` is its original media type.

    `problems` are sentences about parts that could not be read, `notes` about how it was read if that was not plain;
    both are for the run's journal.
    """

    text: str
    kind: str = "text/plain"
    head: Head = field(default_factory=Head)
    attachments: tuple[Attachment, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """Return everything but the text, for `agent_data`; `from_wire` is its inverse."""
        found: dict[str, Any] = {"type": self.kind}
        for name in ("title", "date", "sender", "recipients", "message_id"):
            if value := getattr(self.head, name):
                found[name] = value
        if self.attachments:
            found["attachments"] = [{"name": each.name, "type": each.type} for each in self.attachments]
        for name in ("problems", "notes"):
            if said := getattr(self, name):
                found[name] = list(said[:_MAX_PROBLEMS])
        return found

    @classmethod
    def from_wire(cls, text: str, metadata: Mapping[str, Any], name: str = "") -> Document:
        """Return the document of a device's `agent_data`, whatever its client wrote there. If the metadata lack a fact,
        it is searched for at the beginning of the text and in the file's name."""
        said = {
            name: one_line(metadata[name])
            for name in ("title", "date", "sender", "recipients", "message_id")
            if isinstance(metadata.get(name), str)
        }
        found = head_of_text(text, name)
        head = Head(
            title=said.get("title") or found.title,
            date=iso_date(said.get("date", "")) or found.date,
            sender=said.get("sender") or found.sender,
            recipients=said.get("recipients", ""),
            message_id=said.get("message_id", "").strip("<> "),
        )
        return cls(
            text,
            one_line(metadata.get("type")) or "text/plain",
            head,
            problems=_sentences(metadata.get("problems")),
            notes=_sentences(metadata.get("notes")),
        )


def _sentences(said: object) -> tuple[str, ...]:
    listed = said if isinstance(said, list) else []
    return tuple(one_line(each) for each in listed[:_MAX_PROBLEMS] if isinstance(each, str))


def one_line(value: object) -> str:
    """Return a value on one line and of bounded length; empty if it is no string."""
    return (
        " ".join(value[: 4 * _MAX_VALUE_CHARS].split())[:_MAX_VALUE_CHARS] if isinstance(value, str) else ""
    )


def iso_date(value: str) -> str:
    """Return a date or time in ISO 8601, from ISO, RFC 5322, or the numbers of a date; empty if there is none in it."""
    value = value.strip().strip("\"'")
    try:
        return dt.datetime.fromisoformat(value).isoformat() if len(value) > 10 else _date(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).isoformat() if "," in value or ":" in value else _date(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return _date(value)


def _date(value: str) -> str:
    found = _ISO_DATE.search(value)
    numbers = found.groups() if found else ()
    if not found and (local := _LOCAL_DATE.search(value)):
        numbers = local.groups()[::-1]
    try:
        return dt.date(*map(int, numbers)).isoformat() if numbers else ""
    except ValueError:
        return ""


def head_of_text(text: str, name: str = "") -> Head:
    """Return the head of a note: front matter, its first heading, a date in either, in a "Date: …" line, or in the
    name."""
    beginning = text[:_BEGINNING_CHARS]
    front: dict[str, str] = {}
    if matter := _FRONT_MATTER.match(beginning):
        for each in _FRONT_VALUE.finditer(matter[1]):
            front.setdefault(each["name"].lower(), one_line(each["value"].strip("\"' ")))
    heading = _HEADING.search(beginning)
    title = front.get("title") or (one_line(heading[1]) if heading else "")
    line = _DATE_LINE.search(beginning)
    date = (
        iso_date(front.get("date") or front.get("created") or "")
        or iso_date(title)
        or (iso_date(line[1]) if line else "")
        or _date(PurePosixPath(name.replace("\\", "/")).stem[:200])
    )
    return Head(title, date, front.get("author") or front.get("from") or "")
