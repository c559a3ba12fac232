"""What the offline model takes out of a document: only what is plainly marked. Linear in the document's length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import PurePosixPath
from typing import Any

from adiuva.offline_model import dates, mail, people
from adiuva.offline_model.lines import Line, plain, read

Record = tuple[str, dict[str, Any]]

_ACTIONS = re.compile(
    r"(?:action items?|actions?|action points?|next steps?|to[ -]?dos?|follow[ -]?ups?|open tasks?|tasks?"
    r"|aktionspunkte|nächste schritte|aufgaben|à faire|prochaines étapes|azioni|prossimi passi|da fare)"
    r"(?:\s*(?:[(:–-]|for\b|from\b).*)?",
    re.IGNORECASE,
)
_CHECKBOX = re.compile(r"\[( |x|X)\]\s+(.*)")
_TODO = re.compile(r"(?<!\w)(?:TODO|FIXME)(?:\(([^()]{1,40})\))?(?:\s*[:–-]\s*|\s+)([^\s(].*)")
_ACTION = re.compile(r"(?:(?i:(?:next )?action(?: item| point)?s?)|AI|A\.I\.)\s*:\s*(\S+\s.+)")
_URGENT = re.compile(
    r"(?<!\w)(?:urgent|asap|critical|high priority|top priority|dringend|urgente)(?!\w)|!!", re.IGNORECASE
)
_NO_HURRY = re.compile(r"(?<!\w)(?:low priority|no rush|no hurry|nice to have)(?!\w)", re.IGNORECASE)
_SHOUT = re.compile(
    r"^\W*(?:urgent|asap|dringend|urgente)\s*[:!–-]+\s*|!{2,}|[(\[]\s*(?:urgent|asap)\s*[)\]]", re.I
)
_DEADLINE = re.compile(
    r"(?<!\w)(?:deadline|milestone|go-live|launch|kick-?off|delivery date|due date|hand-?over|release date"
    r"|abgabetermin|abgabe|frist|meilenstein|échéance|jalon|scadenza|consegna)(?!\w)",
    re.IGNORECASE,
)
_DEADLINE_LABEL = re.compile(
    r"^(?:next\s)?(?:deadline|milestone|meilenstein|frist|échéance|scadenza)\s*:\s*", re.I
)
_LOOSE_END = re.compile(r"(?:\s|[,:;(–-]|\b(?:is|are|on|at|by|for|the|until|am|le|il|ist)$)+$", re.IGNORECASE)
_ASKS = re.compile(
    r"(?<!\w)(?:please|can you|could you|would you|needs?|action required|reminder|bitte|kannst du|können sie"
    r"|pouvez-vous|peux-tu|puoi|può|per favore)(?!\w)|\?",
    re.IGNORECASE,
)
_ASKING = re.compile(
    r"(?:(?:and|also|so|then),?\s)?"
    r"(?:(?:can|could|would) you (?:please |also |kindly )?|please (?:also )?|(?:we|i) need you to |bitte )(?=\w)",
    re.IGNORECASE,
)
_GREETING = re.compile(
    r"(?:hi|hello|hey|dear|hallo|liebe[r]?|bonjour|ciao)\b[^,!\n]{0,40}[,!]\s*", re.IGNORECASE
)
_OWN_DATE = re.compile(r"\W{0,4}(?:date|datum|data)\W{1,4}(.{6,60})", re.IGNORECASE)
_ENTITY = re.compile(
    r"\W{0,4}(project|projekt|projet|progetto|client|kunde|cliente)\W{0,3}:\W{0,3}(\w.{0,100})", re.I
)
_ASIDE = re.compile(
    r"(?:present|attend|participants|invited|observers|apologies|links|teilnehm|anwesend|présent|presenti)",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"(?:[\w ]{1,40}:\s+)?<?https?://\S+$|(?:date|datum|data|time|place|project|projekt|client|present|attendees)\s*:",
    re.IGNORECASE,
)
_NO_PROSE = (".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".toml", ".log", ".ini", ".css", ".js", ".py")
_DECIDED = re.compile(r"(?<!\w)(?:decided|decision|agreed|beschlossen|décidé|deciso)(?!\w)", re.IGNORECASE)
_TITLE_CHARS = 160


@dataclass
class Document:
    name: str
    text: str
    part: int = 1
    today: date = date(1970, 1, 1)
    projects: list[tuple[str, str]] = field(default_factory=list)  # id, name


def find(document: Document, tables: set[str]) -> list[Record]:
    """The records of these tables, in the document's order, none twice."""
    seen: set[tuple[str, str]] = set()
    found: list[Record] = []
    for table, data in _Reader(document, tables).records():
        key = (table, str(data.get("title") or data.get("name")).casefold())
        if key not in seen:
            seen.add(key)
            found.append((table, data))
    return found


class _Reader:
    def __init__(self, document: Document, tables: set[str]) -> None:
        self.document = document
        self.tables = tables
        self.mail = mail.parse(document.text) if document.part == 1 else None
        self.text = self.mail.body if self.mail else document.text
        folded = f"{document.name}\n{document.text}".casefold()
        self.projects = sorted(
            (
                (place, -len(name), key, name.casefold())
                for key, name in document.projects
                if len(name) > 2 and (place := _place(name.casefold(), folded)) >= 0
            ),
        )
        self.lines = list(read(self.text))
        self.base = self._own_date() or document.today
        self.heading = ""

    def records(self) -> Iterator[Record]:
        tasks = list(self._items())
        if self.mail:
            asked = list(self._requests(self.mail)) if "tasks" in self.tables else []
            yield from asked
            if "notes" in self.tables and not asked and self.mail.subject:
                yield (
                    "notes",
                    self._of_project({"title": self.mail.subject, "content": self._letter(self.mail)}),
                )
        elif "notes" in self.tables and self.document.part == 1 and self._is_prose():
            yield from self._note()
        yield from tasks

    # ── Lines that say what they are ────────────────────────────────────────────────────────────────────

    def _items(self) -> Iterator[Record]:
        in_actions, by_heading, indent = False, False, 0
        last: dict[str, Any] | None = None
        for line in self.lines:
            marked = self._marked(line)
            if marked is not None:
                text, who = marked
                last = self._task(text, who)
                if last and "tasks" in self.tables:
                    yield "tasks", last
                continue
            if line.kind in {"heading", "label"}:
                if line.kind == "heading" or not by_heading or _ACTIONS.fullmatch(line.plain):
                    in_actions = _ACTIONS.fullmatch(line.plain) is not None
                    by_heading = line.kind == "heading"
                self.heading, indent, last = line.text, -1, None
                continue
            if line.kind == "item" and in_actions and not _CHECKBOX.match(line.text):
                indent = line.indent if indent < 0 else indent
                if line.indent <= indent:
                    last = self._task(line.text)
                    if last and "tasks" in self.tables:
                        yield "tasks", last
                elif last is not None:
                    last["description"] = f"{last.get('description', '')}\n- {line.plain}".strip()[:2000]
                continue
            if line.kind == "text" and in_actions and not by_heading:
                in_actions = False
            yield from self._plain_line(line)

    def _marked(self, line: Line) -> tuple[str, str] | None:
        """The text of a line that is marked as something to do, and whom the mark names."""
        if line.kind == "item" and (match := _CHECKBOX.match(line.text)):
            return (match[2], "") if match[1] == " " else None
        if ("TODO" in line.text or "FIXME" in line.text) and (match := _TODO.search(line.text)):
            return match[2], match[1] or ""
        if line.kind != "heading" and (match := _ACTION.match(line.plain)):
            return match[1], ""
        if line.kind in {"item", "text"} and people.promises(line.plain):
            return line.text, ""
        return None

    def _plain_line(self, line: Line) -> Iterator[Record]:
        text = line.plain
        if match := _ENTITY.match(text):
            yield from self._entity(match)
        if not _DEADLINE.search(text):
            return
        when = dates.due(text, self.base) or dates.named(text, self.base)
        if when is None:
            return
        label = _DEADLINE_LABEL.match(text)
        before = text[label.end() if label else 0 : when.start]
        said = _LOOSE_END.sub("", f"{before} {text[when.end :]}".strip(" .!,:;)–-"))
        title = _title(re.sub(r"^the\s", "", said, flags=re.IGNORECASE)) or "Deadline"
        project = self._project(text)
        if "timelines" in self.tables and project:
            yield "timelines", {"projectId": project, "title": title, "date": when.day.isoformat()}
        elif "tasks" in self.tables:
            yield (
                "tasks",
                self._of_project({"title": title, "status": "todo", "dueDate": when.day.isoformat()}, text),
            )

    def _entity(self, match: re.Match[str]) -> Iterator[Record]:
        name = match[2].split(",")[0].strip(" .")
        if match[1].lower().startswith("proj") or match[1].lower() == "progetto":
            if "projects" in self.tables and name.casefold() not in {
                known.casefold() for _, known in self.document.projects
            }:
                yield "projects", {"name": name, "status": "active"}
        elif "clients" in self.tables:
            yield "clients", {"name": name}

    def _task(self, text: str, who: str = "") -> dict[str, Any] | None:
        whole = plain(text)
        names = [who] if who else []
        names += [name for name in people.MENTION.findall(whole) if name not in names]
        rest = people.MENTION.sub("", whole) if whole.startswith("@") else whole
        rest = re.sub(r"^[\s:,–-]+", "", rest)
        leading, rest = people.leading(rest)
        names += [name for name in leading if name not in names]
        when = dates.due(rest, self.base)
        if when is not None and not rest[when.end :].strip(" .,;!)]"):
            rest = rest[: when.start].rstrip(" (,;–-[") or rest
        title = _title(_SHOUT.sub("", rest).strip())
        if not title:
            return None
        task: dict[str, Any] = {"title": title, "status": "todo"}
        if len(whole) > len(title) + 60 and title.endswith("…"):
            task["description"] = whole
        if _URGENT.search(whole):
            task["priority"] = "high"
        elif _NO_HURRY.search(whole):
            task["priority"] = "low"
        if names:
            task["assignee"] = names[:10]
        if when is not None:
            task["dueDate"] = when.day.isoformat()
        return self._of_project(task, whole)

    # ── Whole documents ─────────────────────────────────────────────────────────────────────────────────

    def _requests(self, letter: mail.Mail) -> Iterator[Record]:
        """What a mail asks for: by its subject, else sentence by sentence."""
        if letter.subject and _ASKS.search(letter.subject):
            task = self._task(letter.subject)
            if task is None:
                return
            task.pop("assignee", None)  # a name in a subject is as a rule not whom it asks
            when = dates.due(letter.subject, self.base)
            for line in self.lines:
                when = when or dates.due(line.text, self.base)
            if when is not None:
                task["dueDate"] = when.day.isoformat()
            if body := self._paragraphs(letter.body, 600):
                task["description"] = body
            if _URGENT.search(body):
                task["priority"] = "high"
            yield "tasks", task
            return
        for line in self.lines:
            sentence = _GREETING.sub("", line.text, count=1) if line.kind == "text" else ""
            if match := _ASKING.match(sentence):
                task = self._task(sentence[match.end() :].rstrip(" ?"))
                if task is not None:
                    task["description"] = f"{letter.sender}: {letter.subject}".strip(": ")
                    yield "tasks", task

    def _letter(self, letter: mail.Mail) -> str:
        head = f"From {letter.sender}" if letter.sender else ""
        return f"{head}\n\n{self._paragraphs(letter.body, 1500)}".strip() or letter.subject

    def _is_prose(self) -> bool:
        return not self.document.name.lower().endswith(_NO_PROSE) and not self.text.lstrip().startswith(
            ("<", "{")
        )

    def _note(self) -> Iterator[Record]:
        lines = [line for line in self.lines if line.plain]
        heading = next((line.plain for line in lines if line.kind == "heading"), "")
        said = [line for line in _matter(lines) if not (_CHECKBOX.match(line.text) or self._marked(line))]
        said.sort(key=lambda line: not _DECIDED.search(line.text))  # decisions first, the rest in order
        content, size = [], 0
        for line in said[:12]:
            content.append(f"- {line.plain[:300]}")
            size += len(content[-1])
            if size > 1500:
                break
        title = heading or PurePosixPath(self.document.name.replace("\\", "/")).stem
        if content and title:
            yield "notes", self._of_project({"title": _short(title), "content": "\n".join(content)})

    @staticmethod
    def _paragraphs(body: str, size: int) -> str:
        body = body.strip()
        if len(body) <= size:
            return body
        end = max(body.rfind("\n\n", 0, size), body.rfind(". ", 0, size) + 1, size // 2)
        return f"{body[:end].rstrip()} …"

    def _own_date(self) -> date | None:
        """The date that the document gives itself: a Date header or line, its first heading, its name."""
        if self.mail and (day := dates.of_mail(self.mail.date)):
            return day
        for line in self.lines[:10]:
            match = _OWN_DATE.match(line.plain)
            said = match[1] if match else line.plain if line.kind == "heading" else ""
            if day := dates.written(said):
                return day
        return dates.written(self.document.name.replace("_", "-"))

    def _project(self, text: str = "") -> str:
        """The project that this line names, or its heading, or that the document names first."""
        if not self.projects:
            return ""
        for place in (text.casefold(), self.heading.casefold()):
            for _, _, key, name in self.projects:
                if place and _place(name, place) >= 0:
                    return key
        return self.projects[0][2]

    def _of_project(self, data: dict[str, Any], text: str = "") -> dict[str, Any]:
        project = self._project(text)
        return {**data, "projectId": project} if project else data


def _matter(lines: list[Line]) -> Iterator[Line]:
    """Items and sentences that say something: not when it was and who was there, no bare links."""
    aside = ""
    for line in lines:
        if aside == "label" and line.kind == "text":
            aside = ""
        if line.kind in {"heading", "label"}:
            aside = line.kind if _ASIDE.match(line.plain) else ""
        elif not aside and not _NOTHING.match(line.plain):
            yield line


def _title(text: str) -> str:
    text = _short(text)
    return text[:1].upper() + text[1:]


def _short(text: str) -> str:
    text = text.strip(" .;,:–-")
    if len(text) <= _TITLE_CHARS:
        return text
    return f"{text[: max(text.rfind(' ', 0, _TITLE_CHARS), _TITLE_CHARS // 2)].rstrip(' .;,:–-')}…"


def _place(name: str, text: str) -> int:
    """Where a name stands in a text as a whole, or -1. Both are casefolded."""
    place = text.find(name)
    while place >= 0:
        end = place + len(name)
        if not text[place - 1 : place].isalnum() and not text[end : end + 1].isalnum():
            return place
        place = text.find(name, end)
    return -1
