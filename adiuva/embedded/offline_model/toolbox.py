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
    "list projects": ("list_projects", "get_projects"),
    "create project": ("create_project", "add_project"),
    "list timelines": ("list_timelines", "get_timelines", "list_milestones"),
    "list notes": ("list_notes", "get_notes"),
    "search notes": ("search_notes", "find_notes", "search_memory"),
    "create note": ("create_note", "add_note"),
    "list clients": ("list_clients", "get_clients"),
    "create client": ("create_client", "add_client"),
    "remember": ("remember", "save_memory", "memory_save"),
}
# What one has to say, and the parameters it may go into, best first.
_PARAMETERS = {
    "id": ("id", "task_id", "taskId"),
    "title": ("title", "name"),
    "content": ("content", "text", "fact", "memory", "note", "body"),
    "query": ("query", "search", "text", "q"),
    "search": ("search", "query", "q"),
    "status": ("status",),
    "priority": ("priority",),
    "due": ("dueDate", "due_date", "due", "date"),
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

    def takes(self, wish: str, what: str) -> bool:
        name = self._name(wish)
        return name is not None and any(key in self._properties(name) for key in _PARAMETERS[what])

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


def _fitting(value: Any, schema: Any) -> Any:
    """A date as milliseconds where a number is wanted, else as ISO 8601; the rest as it is."""
    if not isinstance(value, date):
        return value
    options = [schema, *(schema.get("anyOf") or ())] if isinstance(schema, Mapping) else []
    kinds = [option.get("type") for option in options if isinstance(option, Mapping)]
    if "integer" in kinds or "number" in kinds:
        return int(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1000)
    return value.isoformat()
