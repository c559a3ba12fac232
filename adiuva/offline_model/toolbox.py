"""The tools that a request offers, found by what one wants of them, with arguments that their schemas take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

# What one may want, and the names that a tool for it may have, best first.
_NAMES = {
    "list tasks": ("list_tasks", "get_tasks", "search_tasks", "find_tasks"),
    "due today": ("list_tasks_due_today", "tasks_due_today", "get_tasks_due_today"),
    "create task": ("create_task", "add_task"),
    "update task": ("update_task", "edit_task"),
    "delete task": ("delete_task", "remove_task"),
    "list comments": ("list_task_comments",),
    "create comment": ("add_task_comment", "create_task_comment"),
    "list projects": ("list_projects", "get_projects"),
    "list all projects": ("list_all_projects", "list_projects"),
    "create project": ("create_project", "add_project"),
    "update project": ("update_project", "edit_project"),
    "delete project": ("delete_project", "remove_project"),
    "list timelines": ("list_timelines", "get_timelines", "list_milestones"),
    "create timeline": ("create_timeline", "add_timeline"),
    "update timeline": ("update_timeline", "edit_timeline"),
    "delete timeline": ("delete_timeline", "remove_timeline"),
    "list notes": ("list_notes", "get_notes"),
    "read note": ("get_note", "read_note"),
    "search notes": ("search_notes", "find_notes", "search_memory"),
    "create note": ("create_note", "add_note"),
    "update note": ("update_note", "edit_note"),
    "delete note": ("delete_note", "remove_note"),
    "list clients": ("list_clients", "get_clients"),
    "create client": ("create_client", "add_client"),
    "remember": ("remember", "save_memory", "memory_save"),
}
# What one has to say, and the parameters it may go into, best first.
_PARAMETERS = {
    # A task also has a project's id, a project only its own.
    "id": ("id", "task_id", "taskId", "note_id", "timeline_id", "project_id", "projectId"),
    "title": ("title", "name"),
    "content": ("content", "text", "fact", "memory", "note", "body"),
    "query": ("query", "search", "text", "q"),
    "search": ("search", "query", "q"),
    "status": ("status",),
    "priority": ("priority",),
    "due": ("due_date", "dueDate", "due", "date"),
    "from": ("due_from", "date_from", "dueDateFrom"),
    "to": ("due_to", "date_to", "dueDateTo"),
    "project": ("project_id", "projectId"),
}


@dataclass(frozen=True)
class Wish:
    """A call to make."""

    name: str
    arguments: dict[str, Any]


class Toolbox:
    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._by_name: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool.get("function")
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                parameters = function.get("parameters")
                self._by_name[function["name"]] = parameters if isinstance(parameters, Mapping) else {}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def takes(self, wish: str, what: str, value: str | None = None) -> bool:
        """Whether a tool for the wish has a parameter for it, and one that lists `value`, if that is given."""
        name = self._name(wish)
        properties = self._properties(name) if name is not None else {}
        key = next((key for key in _PARAMETERS[what] if key in properties), None)
        return key is not None and (value is None or value in _choices(properties[key]))

    def call(self, wish: str, given: Mapping[str, Any]) -> Wish | None:
        """The call that fulfils a wish, or None if no tool is on offer for it."""
        name = self._name(wish)
        if name is None:
            return None
        properties = self._properties(name)
        arguments: dict[str, Any] = {}
        nested = properties.get("updates")
        for what, value in given.items():
            key = next((key for key in _PARAMETERS[what] if key in properties and key not in arguments), None)
            if key is not None:
                arguments[key] = _fitting(value, properties[key])
            elif isinstance(nested, Mapping):
                arguments.setdefault("updates", {})[_PARAMETERS[what][0]] = _fitting(value, {})
        # A tool for one thing may name its only text as it likes.
        missing = [key for key in self._by_name[name].get("required", ()) if key not in arguments]
        texts = [value for value in given.values() if isinstance(value, str)]
        if not arguments and len(missing) == 1 and texts:
            arguments[missing[0]] = texts[-1]
        return Wish(name, arguments)

    def _name(self, wish: str) -> str | None:
        return next((name for name in _NAMES[wish] if name in self._by_name), None)

    def _properties(self, name: str) -> Mapping[str, Any]:
        found = self._by_name[name].get("properties")
        return found if isinstance(found, Mapping) else {}


def _options(schema: Any) -> list[Mapping[str, Any]]:
    options = [schema, *(schema.get("anyOf") or ())] if isinstance(schema, Mapping) else []
    return [option for option in options if isinstance(option, Mapping)]


def _choices(schema: Any) -> list[Any]:
    """What a parameter is said to take; nothing if it takes anything."""
    return [choice for option in _options(schema) for choice in option.get("enum") or ()]


def _fitting(value: Any, schema: Any) -> Any:
    """A date as milliseconds where a number is wanted, else as ISO 8601; the rest as it is."""
    if not isinstance(value, date):
        return value
    kinds = [option.get("type") for option in _options(schema)]
    if "integer" in kinds or "number" in kinds:
        return int(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1000)
    return value.isoformat()
