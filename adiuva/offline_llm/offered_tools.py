"""Finds the offered tool for an operation, and builds a call with arguments that fit its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

# Operation → the names that a tool for it may have, in order of preference.
_TOOL_NAMES = {
    "list tasks": ("list_tasks", "get_tasks", "search_tasks", "find_tasks"),
    "due today": ("list_tasks_due_today", "tasks_due_today", "get_tasks_due_today", "list_tasks"),
    "create task": ("create_task", "add_task"),
    "update task": ("update_task", "edit_task"),
    "delete task": ("delete_task", "remove_task", "delete"),
    "list comments": ("list_task_comments",),
    "create comment": ("add_task_comment", "create_task_comment"),
    "list projects": ("list_projects", "get_projects"),
    "list all projects": ("list_all_projects", "list_projects"),
    "create project": ("create_project", "add_project"),
    "update project": ("update_project", "edit_project"),
    "delete project": ("delete_project", "remove_project", "delete"),
    "list timelines": ("list_timelines", "get_timelines", "list_milestones"),
    "create timeline": ("create_timeline", "add_timeline"),
    "update timeline": ("update_timeline", "edit_timeline"),
    "delete timeline": ("delete_timeline", "remove_timeline", "delete"),
    "list notes": ("list_notes", "get_notes"),
    "read note": ("get_note", "read_note"),
    "search notes": ("search_notes", "find_notes", "search_memory", "list_notes"),
    "create note": ("create_note", "add_note"),
    "update note": ("update_note", "edit_note"),
    "delete note": ("delete_note", "remove_note", "delete"),
    "list clients": ("list_clients", "get_clients"),
    "create client": ("create_client", "add_client"),
    "remember": ("remember", "save_memory", "memory_save"),
}
# Value → the parameters that may take it, in order of preference.
_PARAMETER_NAMES = {
    # `project_id` comes last, because a tool for tasks may take both ids and the task's is meant.
    "id": ("id", "task_id", "taskId", "note_id", "timeline_id", "project_id", "projectId"),
    "title": ("title", "name"),
    "content": ("content", "text", "fact", "memory", "note", "body"),
    "archived": ("archived", "include_archived"),
    "query": ("query", "search", "text", "q"),
    "search": ("search", "query", "q"),
    "status": ("status",),
    "priority": ("priority",),
    "due": ("due_date", "dueDate", "due", "date"),
    "from": ("due_from", "date_from", "dueDateFrom"),
    "to": ("due_to", "date_to", "dueDateTo"),
    "project": ("project_id", "projectId"),
    "date from": ("date_from", "dateFrom"),
    "date to": ("date_to", "dateTo"),
    "order": ("order_by",),
    "descending": ("descending",),
}


@dataclass(frozen=True)
class ToolCall:
    """Tool to call, with its arguments."""

    name: str
    arguments: dict[str, Any]


class OfferedTools:
    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._by_name: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool.get("function")
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                parameters = function.get("parameters")
                self._by_name[function["name"]] = parameters if isinstance(parameters, Mapping) else {}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def accepts(self, operation: str, what: str, value: str | None = None) -> bool:
        """Return whether the tool for the operation has a parameter for `what`, whose enum lists `value` if given."""
        name = self._tool_name(operation)
        properties = self._properties(name) if name is not None else {}
        key = next((key for key in _PARAMETER_NAMES[what] if key in properties), None)
        return key is not None and (value is None or value in _enum_values(properties[key]))

    def build_call(self, operation: str, values: Mapping[str, Any]) -> ToolCall | None:
        """Return the call that carries out the operation, or None if no offered tool can."""
        name = self._tool_name(operation)
        if name is None:
            return None
        properties = self._properties(name)
        arguments: dict[str, Any] = {}
        updates = properties.get("updates")
        for what, value in values.items():
            key = next(
                (key for key in _PARAMETER_NAMES[what] if key in properties and key not in arguments), None
            )
            if key is not None:
                arguments[key] = _to_schema_type(value, properties[key])
            elif isinstance(updates, Mapping):
                arguments.setdefault("updates", {})[_PARAMETER_NAMES[what][0]] = _to_schema_type(value, {})
        # A tool with one required parameter may give it any name.
        missing = [key for key in self._by_name[name].get("required", ()) if key not in arguments]
        texts = [value for value in values.values() if isinstance(value, str)]
        if not arguments and len(missing) == 1 and texts:
            arguments[missing[0]] = texts[-1]
        return ToolCall(name, arguments)

    def _tool_name(self, operation: str) -> str | None:
        return next((name for name in _TOOL_NAMES[operation] if name in self._by_name), None)

    def _properties(self, name: str) -> Mapping[str, Any]:
        found = self._by_name[name].get("properties")
        return found if isinstance(found, Mapping) else {}


def _schema_alternatives(schema: Any) -> list[Mapping[str, Any]]:
    options = [schema, *(schema.get("anyOf") or ())] if isinstance(schema, Mapping) else []
    return [option for option in options if isinstance(option, Mapping)]


def _enum_values(schema: Any) -> list[Any]:
    """Return the values that the schema allows, or an empty list if it does not restrict them."""
    return [choice for option in _schema_alternatives(schema) for choice in option.get("enum") or ()]


def _to_schema_type(value: Any, schema: Any) -> Any:
    """Convert a date to Unix milliseconds if the schema wants a number, else to ISO 8601. Keeps other values."""
    if not isinstance(value, date):
        return value
    kinds = [option.get("type") for option in _schema_alternatives(schema)]
    if "integer" in kinds or "number" in kinds:
        return int(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1000)
    return value.isoformat()
