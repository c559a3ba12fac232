"""Calendars (ICS, RFC 5545) and address cards (VCF, RFC 6350) as text.

Nothing is interpreted, so a damaged file keeps its words.
"""

from __future__ import annotations

import quopri
import re
from typing import Final

_LINE: Final = re.compile(
    r"(?:[\w-]{1,40}\.)?([A-Za-z][\w-]{0,60})"  # a group, the name
    r"((?:;[^:;\"]{0,300}(?:\"[^\"]{0,300}\"[^:;\"]{0,100})?)*)"  # parameters
    r":(.*)$",
    re.DOTALL,
)
_FOLD: Final = re.compile(r"\n[ \t]")
_SOFT_BREAK: Final = re.compile(r"=\n")
_TIME: Final = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)?(Z)?)?")
_ZONE: Final = re.compile(r";TZID=\"?([^;:\"]{1,80})", re.IGNORECASE)
_KIND: Final = re.compile(r";TYPE=\"?([^;:\"]{1,40})", re.IGNORECASE)
_COMMON_NAME: Final = re.compile(r";CN=\"?([^;:\"]{1,120})", re.IGNORECASE)
_ESCAPED: Final = re.compile(r"\\([nN,;:\\])")
_NAMES: Final = {
    "summary": "", "dtstart": "Start", "dtend": "End", "due": "Due", "location": "Place", "description": "Description",
    "organizer": "Organizer", "attendee": "Attendee", "rrule": "Repeats", "status": "Status",
    "completed": "Completed", "recurrence-id": "Of the day", "duration": "Duration", "exdate": "Except",
    "priority": "Priority", "percent-complete": "Percent done", "comment": "Comment", "categories": "Categories",
    "fn": "", "org": "Organisation", "title": "Role", "tel": "Phone", "email": "E-mail", "adr": "Address",
    "note": "Note", "bday": "Birthday", "url": "Web", "nickname": "Nickname", "contact": "Contact",
}  # fmt: skip
_COMPONENTS: Final = {
    "vevent": "Event", "vtodo": "To-do", "vjournal": "Journal", "vcard": "Contact", "vfreebusy": "Free and busy times"
}  # fmt: skip
_METHODS: Final = {
    "request": "An invitation",
    "cancel": "A cancellation",
    "reply": "An answer to an invitation",
}


def content_lines_to_text(source: str) -> str:
    """Return events, to-dos and cards as paragraphs, in the order of the file; other components only end them."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    if "quoted-printable" in source.lower():
        source = _SOFT_BREAK.sub("", source)
    shown: list[str] = []
    open_kinds: list[str] = []
    held: list[str] = []
    heading = ""
    for line in _FOLD.sub("", source).split("\n"):
        if not (found := _LINE.match(line)):
            if line.strip() and open_kinds and open_kinds[-1] in _COMPONENTS:
                held.append(line.strip())  # a line that somebody wrapped by hand
            continue
        name, parameters, value = found[1].lower(), found[2], found[3].strip()
        if name == "begin":
            if value.lower() in _COMPONENTS:
                shown += _paragraph(heading, held)
                heading, held = _COMPONENTS[value.lower()], []
            open_kinds.append(value.lower())
        elif name == "end":
            if open_kinds and open_kinds.pop() in _COMPONENTS:
                shown += _paragraph(heading, held)
                heading, held = "", []
        elif name == "method" and value.lower() in _METHODS:
            shown.append(f"{_METHODS[value.lower()]}:")
        elif name in _NAMES and open_kinds and open_kinds[-1] in _COMPONENTS:
            text = _value(name, parameters, value)
            if name in ("summary", "fn") and text:
                heading = f"{heading}: {text}"
            elif name == "status" and text.lower() == "completed":
                heading = f"[x] {heading}"
            elif text and _NAMES[name]:
                held.append(f"{_NAMES[name]}: {text}")
    shown += _paragraph(heading, held)
    return "\n\n".join(shown)


def _paragraph(heading: str, lines: list[str]) -> list[str]:
    return ["\n".join([heading, *lines]) if heading else "\n".join(lines)] if heading or lines else []


def _value(name: str, parameters: str, value: str) -> str:
    if "quoted-printable" in parameters.lower():
        value = quopri.decodestring(value.encode("utf-8", "replace")).decode("utf-8", "replace")
    if name in ("dtstart", "dtend", "due", "completed", "exdate", "recurrence-id"):
        zone = _ZONE.search(parameters)
        return _TIME.sub(_time, value) + (f" ({zone[1]})" if zone else "")
    if name in ("organizer", "attendee"):
        address = re.sub(r"^mailto:", "", value, flags=re.IGNORECASE)
        common = _COMMON_NAME.search(parameters)
        return f"{common[1]} <{address}>" if common else address
    if name in ("adr", "org"):
        value = ", ".join(filter(None, (piece.strip() for piece in re.split(r"(?<!\\);", value))))
    text = " ".join(_ESCAPED.sub(lambda found: "\n" if found[1] in "nN" else found[1], value).split("\n"))
    kind = _KIND.search(parameters) if name in ("tel", "email", "adr") else None
    return f"{text.strip()} ({kind[1].lower()})" if kind and text.strip() else text.strip()


def _time(found: re.Match[str]) -> str:
    year, month, day, hour, minute = found[1], found[2], found[3], found[4], found[5]
    time = f" {hour}:{minute}" if hour else ""
    return f"{year}-{month}-{day}{time}{' UTC' if found[7] else ''}"
