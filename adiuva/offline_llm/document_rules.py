"""Extracts records from a document, only where it marks them explicitly. Takes time linear in its length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import PurePosixPath
from typing import Any

from adiuva.offline_llm import assignees, dates, mail
from adiuva.offline_llm.document_lines import Line, read_lines, strip_markdown

Record = tuple[str, dict[str, Any]]

_ACTION_HEADING = re.compile(
    r"(?:action items?|actions?|action points?|next steps?|to[ -]?dos?|follow[ -]?ups?|open tasks?|tasks?"
    r"|aktionspunkte|nächste schritte|aufgaben|à faire|prochaines étapes|azioni|prossimi passi|da fare)"
    r"(?:\s*(?:[(:–-]|for\b|from\b).*)?",
    re.IGNORECASE,
)
_CHECKBOX = re.compile(r"\[( |x|X)\]\s+(.*)")
_TODO = re.compile(r"(?<!\w)(?:TODO|FIXME)(?:\(([^()]{1,40})\))?(?:\s*[:–-]\s*|\s+)([^\s(].*)")
_ACTION_LINE = re.compile(r"(?:(?i:(?:next )?action(?: item| point)?s?)|AI|A\.I\.)\s*:\s*(\S+\s.+)")
_URGENT = re.compile(
    r"(?<!\w)(?:urgent|asap|critical|high priority|top priority|dringend|urgente)(?!\w)|!!", re.IGNORECASE
)
_LOW_PRIORITY = re.compile(r"(?<!\w)(?:low priority|no rush|no hurry|nice to have)(?!\w)", re.IGNORECASE)
_URGENCY_MARK = re.compile(
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
_DANGLING_WORDS = re.compile(
    r"(?:\s|[,:;(–-]|\b(?:is|are|on|at|by|for|the|until|am|le|il|ist)$)+$", re.IGNORECASE
)
_REQUEST_WORDS = re.compile(
    r"(?<!\w)(?:please|can you|could you|would you|needs?|action required|reminder|bitte|kannst du|können sie"
    r"|pouvez-vous|peux-tu|puoi|può|per favore)(?!\w)|\?",
    re.IGNORECASE,
)
_REQUEST_OPENING = re.compile(
    r"(?:(?:and|also|so|then),?\s)?"
    r"(?:(?:can|could|would) you (?:please |also |kindly )?|please (?:also )?|(?:we|i) need you to |bitte )(?=\w)",
    re.IGNORECASE,
)
_GREETING = re.compile(
    r"(?:hi|hello|hey|dear|hallo|liebe[r]?|bonjour|ciao)\b[^,!\n]{0,40}[,!]\s*", re.IGNORECASE
)
_DATE_LINE = re.compile(r"\W{0,4}(?:date|datum|data)\W{1,4}(.{6,60})", re.IGNORECASE)
_PROJECT_OR_CLIENT_LINE = re.compile(
    r"\W{0,4}(project|projekt|projet|progetto|client|kunde|cliente)\W{0,3}:\W{0,3}(\w.{0,100})", re.I
)
_SKIPPED_SECTION = re.compile(
    r"(?:present|attend|participants|invited|observers|apologies|links|teilnehm|anwesend|présent|presenti)",
    re.IGNORECASE,
)
_SKIPPED_LINE = re.compile(
    r"(?:[\w ]{1,40}:\s+)?<?https?://\S+$|(?:date|datum|data|time|place|project|projekt|client|present|attendees)\s*:",
    re.IGNORECASE,
)
_NON_PROSE_SUFFIXES = (
    ".csv",
    ".tsv",
    ".json",
    ".xml",
    ".yaml",
    ".yml",
    ".toml",
    ".log",
    ".ini",
    ".css",
    ".js",
    ".py",
)
_DECISION = re.compile(r"(?<!\w)(?:decided|decision|agreed|beschlossen|décidé|deciso)(?!\w)", re.IGNORECASE)
_MAX_TITLE_CHARS = 160


@dataclass
class PromptDocument:
    name: str
    text: str
    part: int = 1
    today: date = date(1970, 1, 1)
    context: str = ""  # lines about the document that a part of it does not contain
    projects: list[tuple[str, str]] = field(default_factory=list)  # (id, name)


def find_records(document: PromptDocument, tables: set[str]) -> list[Record]:
    """Return the records of these tables in the document's order, each title once for each date and assignee."""
    seen: set[tuple[str, str, str]] = set()
    found: list[Record] = []
    for table, data in _RecordFinder(document, tables).records():
        when = data.get("dueDate") or data.get("date") or ""
        key = (table, str(data.get("title") or data.get("name")).casefold(), f"{when} {data.get('assignee')}")
        if key not in seen:
            seen.add(key)
            found.append((table, data))
    return found


class _RecordFinder:
    def __init__(self, document: PromptDocument, tables: set[str]) -> None:
        self.document = document
        self.tables = tables
        self.mail = mail.parse_mail(document.text) if document.part == 1 else None
        self.text = self.mail.body if self.mail else document.text
        folded = f"{document.name}\n{document.text}".casefold()
        self.projects = sorted(
            (
                (place, -len(name), key, name.casefold())
                for key, name in document.projects
                if len(name) > 2 and (place := _find_name(name.casefold(), folded)) >= 0
            ),
        )
        self.lines = list(read_lines(self.text))
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

    # ── Marked lines ────────────────────────────────────────────────────────────────────

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
                if line.kind == "heading" or not by_heading or _ACTION_HEADING.fullmatch(line.plain):
                    in_actions = _ACTION_HEADING.fullmatch(line.plain) is not None
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
        """Return the text of a line that is marked as a task, and the assignee in its mark, or None."""
        if line.kind == "item" and (match := _CHECKBOX.match(line.text)):
            return (match[2], "") if match[1] == " " else None
        if ("TODO" in line.text or "FIXME" in line.text) and (match := _TODO.search(line.text)):
            return match[2], match[1] or ""
        if line.kind != "heading" and (match := _ACTION_LINE.match(line.plain)):
            return match[1], ""
        if line.kind in {"item", "text"} and assignees.is_commitment(line.plain):
            return line.text, ""
        return None

    def _plain_line(self, line: Line) -> Iterator[Record]:
        text = line.plain
        if match := _PROJECT_OR_CLIENT_LINE.match(text):
            yield from self._entity(match)
        if not _DEADLINE.search(text):
            return
        when = dates.due_date(text, self.base) or dates.calendar_date(text, self.base)
        if when is None:
            return
        label = _DEADLINE_LABEL.match(text)
        before = text[label.end() if label else 0 : when.start]
        said = _DANGLING_WORDS.sub("", f"{before} {text[when.end :]}".strip(" .!,:;)–-"))
        title = _capitalized_title(re.sub(r"^the\s", "", said, flags=re.IGNORECASE)) or "Deadline"
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
        whole = strip_markdown(text)
        names = [who] if who else []
        names += [name for name in assignees.MENTION.findall(whole) if name not in names]
        rest = assignees.MENTION.sub("", whole) if whole.startswith("@") else whole
        rest = re.sub(r"^[\s:,–-]+", "", rest)
        leading, rest = assignees.split_assignees(rest)
        names += [name for name in leading if name not in names]
        when = dates.due_date(rest, self.base)
        if when is not None and not rest[when.end :].strip(" .,;!)]"):
            rest = rest[: when.start].rstrip(" (,;–-[") or rest
        title = _capitalized_title(_URGENCY_MARK.sub("", rest).strip())
        if not title:
            return None
        task: dict[str, Any] = {"title": title, "status": "todo"}
        if len(whole) > len(title) + 60 and title.endswith("…"):
            task["description"] = whole
        if _URGENT.search(whole):
            task["priority"] = "high"
        elif _LOW_PRIORITY.search(whole):
            task["priority"] = "low"
        if names:
            task["assignee"] = names[:10]
        if when is not None:
            task["dueDate"] = when.day.isoformat()
        return self._of_project(task, whole)

    # ── Whole documents ─────────────────────────────────────────────────────────────────────────────────

    def _requests(self, letter: mail.Mail) -> Iterator[Record]:
        """Yield the tasks that a mail asks for: one for its subject, or else one for each sentence that asks."""
        if letter.subject and _REQUEST_WORDS.search(letter.subject):
            task = self._task(letter.subject)
            if task is None:
                return
            task.pop("assignee", None)  # a name in a subject is rarely the person asked
            when = dates.due_date(letter.subject, self.base)
            for line in self.lines:
                when = when or dates.due_date(line.text, self.base)
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
            if match := _REQUEST_OPENING.match(sentence):
                task = self._task(sentence[match.end() :].rstrip(" ?"))
                if task is not None:
                    task["description"] = f"{letter.sender}: {letter.subject}".strip(": ")
                    yield "tasks", task

    def _letter(self, letter: mail.Mail) -> str:
        head = f"From {letter.sender}" if letter.sender else ""
        return f"{head}\n\n{self._paragraphs(letter.body, 1500)}".strip() or letter.subject

    def _is_prose(self) -> bool:
        return not self.document.name.lower().endswith(
            _NON_PROSE_SUFFIXES
        ) and not self.text.lstrip().startswith(("<", "{"))

    def _note(self) -> Iterator[Record]:
        lines = [line for line in self.lines if line.plain]
        heading = next((line.plain for line in lines if line.kind == "heading"), "")
        said = [
            line
            for line in _substantive_lines(lines)
            if not (_CHECKBOX.match(line.text) or self._marked(line))
        ]
        said.sort(key=lambda line: not _DECISION.search(line.text))  # decisions first, otherwise in order
        content, size = [], 0
        for line in said[:12]:
            content.append(f"- {line.plain[:300]}")
            size += len(content[-1])
            if size > 1500:
                break
        title = heading or PurePosixPath(self.document.name.replace("\\", "/")).stem
        if content and title:
            yield "notes", self._of_project({"title": _truncate_title(title), "content": "\n".join(content)})

    @staticmethod
    def _paragraphs(body: str, size: int) -> str:
        body = body.strip()
        if len(body) <= size:
            return body
        end = max(body.rfind("\n\n", 0, size), body.rfind(". ", 0, size) + 1, size // 2)
        return f"{body[:end].rstrip()} …"

    def _own_date(self) -> date | None:
        """Return the date that the document states: in a Date header or line, a heading near its top, or its name."""
        if self.mail and (day := dates.mail_header_date(self.mail.date)):
            return day
        for said in self.document.context.split("\n"):
            if said.startswith(("Date of", "Title of")) and (day := dates.full_date(said.partition(":")[2])):
                return day
        for line in self.lines[:10]:
            match = _DATE_LINE.match(line.plain)
            said = match[1] if match else line.plain if line.kind == "heading" else ""
            if day := dates.full_date(said):
                return day
        return dates.full_date(self.document.name.replace("_", "-"))

    def _project(self, text: str = "") -> str:
        """Return the id of the project that the line names, or else its heading, or else the document first."""
        if not self.projects:
            return ""
        for place in (text.casefold(), self.heading.casefold()):
            for _, _, key, name in self.projects:
                if place and _find_name(name, place) >= 0:
                    return key
        return self.projects[0][2]

    def _of_project(self, data: dict[str, Any], text: str = "") -> dict[str, Any]:
        project = self._project(text)
        return {**data, "projectId": project} if project else data


def _substantive_lines(lines: list[Line]) -> Iterator[Line]:
    """Yield the items and sentences with content: no dates, lists of participants, or bare links."""
    aside = ""
    for line in lines:
        if aside == "label" and line.kind == "text":
            aside = ""
        if line.kind in {"heading", "label"}:
            aside = line.kind if _SKIPPED_SECTION.match(line.plain) else ""
        elif not aside and not _SKIPPED_LINE.match(line.plain):
            yield line


def _capitalized_title(text: str) -> str:
    text = _truncate_title(text)
    return text[:1].upper() + text[1:]


def _truncate_title(text: str) -> str:
    text = text.strip(" .;,:–-")
    if len(text) <= _MAX_TITLE_CHARS:
        return text
    return f"{text[: max(text.rfind(' ', 0, _MAX_TITLE_CHARS), _MAX_TITLE_CHARS // 2)].rstrip(' .;,:–-')}…"


def _find_name(name: str, text: str) -> int:
    """Return where the name occurs in the text as whole words, or -1. Both must be casefolded."""
    place = text.find(name)
    while place >= 0:
        end = place + len(name)
        if not text[place - 1 : place].isalnum() and not text[end : end + 1].isalnum():
            return place
        place = text.find(name, end)
    return -1
