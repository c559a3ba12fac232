"""A model that knows the labels: the ceiling of the evaluation. What it cannot score, no model can.

It answers what a perfect model would: the records of a document, the tool calls of a request (rows are looked up
first), what is to be remembered, and what a question asks for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from bench.evaluation.cases import Cases, Chat
from bench.evaluation.row_changes import ExpectedChange

if TYPE_CHECKING:
    from tests.fakes.provider import Call, Request

NOT_KNOWN: Final = "I don't know that."
_CREATE: Final = {
    "tasks": "create_task", "notes": "create_note", "timelines": "create_timeline", "projects": "create_project",
    "taskComments": "add_task_comment",
}  # fmt: skip
_ONE: Final = {"tasks": "task", "notes": "note", "timelines": "timeline", "projects": "project"}
_ARGUMENTS: Final = {"dueDate": "due_date", "projectId": "project_id", "taskId": "task_id"}
_REFERS_TO: Final = {"projectId": "projects", "taskId": "tasks"}
_EXCHANGE: Final = re.compile(r"\[begin (e\d+) user [^\]]*\]\n(.*?)\n\[end \1 user", re.DOTALL)
# A row in a tool's answer: its title, then its label.
_ROW: Final = re.compile(r"(?:^|\n)- ([^\n]*?) \[([a-z]+\d+)\]")


def phrase(terms: Sequence[str]) -> str:
    """A text that holds all terms."""
    return " ".join(term.split("|")[0] for term in terms)


class LabelModel:
    """A step of tests.fakes.provider.Provider."""

    def __init__(self, cases: Cases) -> None:
        self._cases = cases

    def __call__(self, request: Request) -> Any:
        from tests.fakes.provider import Say

        messages = request.body["messages"]
        match request.schema:
            case "records":
                return self.records(messages[-1]["content"])
            case "memory":
                return self._operations(messages[-1]["content"])
            case "":
                calls, text = self._chat(messages)
                return Say(text, calls=calls)
            case _:
                return {
                    "summary": "They spoke.",
                    "operations": [],
                    "new": [],
                    "confirmed": [],
                    "contradicted": [],
                }

    def records(self, asked: str) -> dict[str, Any]:
        """The answer to a request that shows a document."""
        document = next(
            each
            for each in self._cases.documents
            if each.text.strip().splitlines()[-1] in asked and each.id in asked
        )
        listed = re.search(r"^Projects: (.*)$", asked, re.MULTILINE)
        projects = {name: label for label, name in json.loads(listed[1] if listed else "{}").items()}
        records = []
        for wanted in document.find:
            title = phrase(wanted.has)
            data: dict[str, Any] = {"title": title} | ({"content": title} if wanted.table == "notes" else {})
            for name, value in wanted.fields.items():
                column = {
                    "date": "date" if wanted.table == "timelines" else "dueDate",
                    "project": "projectId",
                }
                data[column.get(name, name)] = projects[value] if name == "project" else value
            records.append({"table": wanted.table, "data": data})
        return {"records": records}

    def _operations(self, asked: str) -> dict[str, Any]:
        told = {text for session in self._cases.sessions for text in session.said}
        return {
            "operations": [
                {"op": "add", "tier": "associative", "content": text, "said_in": label}
                for label, text in _EXCHANGE.findall(asked)
                if text in told and not text.endswith("?")
            ]
        }

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Call], str]:
        from tests.fakes.provider import Call

        last = max(place for place, each in enumerate(messages) if each["role"] == "user")
        asked, since = str(messages[last]["content"]), messages[last + 1 :]
        for question in self._cases.questions:
            if asked.endswith(question.ask):
                return [], phrase(question.answer) if question.kind != "unknown" else NOT_KNOWN
        chat = next((each for each in self._cases.chats if asked.endswith(each.say[-1])), None)
        if chat is None:
            return [], "All right."
        changes = [*chat.changes, *chat.declined]
        results = [str(each["content"]) for each in since if each["role"] == "tool"]
        if changes and not results:
            wanted = dict.fromkeys(title for change in changes for title in _rows_of(change))
            if wanted:
                return [Call(f"list_{table}", {"search": title}) for table, title in wanted], ""
        looked_up = sum(len(each.get("tool_calls") or ()) for each in since if _is_lookup(each))
        if changes and len(results) == looked_up:
            rows = {title.casefold(): row for text in results for title, row in _ROW.findall(text)}
            return [_call(change, rows) for change in changes], ""
        return [], _answer(chat)


def _is_lookup(message: Mapping[str, Any]) -> bool:
    calls = message.get("tool_calls") or ()
    return bool(calls) and all(call["function"]["name"].startswith("list_") for call in calls)


def _rows_of(change: ExpectedChange) -> list[tuple[str, str]]:
    """The rows (table, title) that a change needs the labels of."""
    rows = [(change.table, change.row)] if change.row else []
    return rows + [
        (_REFERS_TO[column], str(value)) for column, value in change.values.items() if column in _REFERS_TO
    ]


def _call(change: ExpectedChange, rows: Mapping[str, str]) -> Call:
    from tests.fakes.provider import Call

    def row(title: str) -> str:
        return rows[title.casefold()]

    given: dict[str, Any] = {}
    for column, value in change.values.items():
        if column in _REFERS_TO:
            value = row(str(value))
        elif isinstance(value, Mapping):
            value = phrase(value["has"])
        given[_ARGUMENTS.get(column, column)] = value
    match change.action:
        case "delete":
            return Call("delete", {"id": row(change.row)})
        case "update":
            one = _ONE[change.table]
            return Call(f"update_{one}", {f"{one}_id": row(change.row), **given})
        case _:
            if change.table == "notes":
                given = {"title": given.get("title", "Note"), **given}
            return Call(_CREATE[change.table], given)


def _answer(chat: Chat) -> str:
    return phrase(chat.says) if chat.says else "Done."
