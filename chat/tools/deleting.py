"""A single tool that deletes any row: the alias tells the table. A call of it becomes one of the table's own tool."""

from __future__ import annotations

from typing import Annotated, Any, Final

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from pydantic import Field

from chat.row_aliases import RowAliases
from chat.tools.base import assistant_tool
from chat.tools.notes import delete_note
from chat.tools.projects import delete_project
from chat.tools.tasks import delete_task, delete_task_comment
from chat.tools.timelines import delete_timeline

_NOT_READ: Final = "list the row first: what is deleted needs the label that stands behind its title"


@assistant_tool("tasks", "delete", "Deleting", key="id")
async def delete(config: RunnableConfig, id: Annotated[str, Field(description="a row's label")]) -> str:
    """Delete a row for good. Finish a task or archive a project by an update instead."""
    raise ToolException(f"Failed: {_NOT_READ}.")


DELETE: Final[dict[str, BaseTool]] = {
    str((tool.metadata or {})["table"]): tool
    for tool in (delete_task, delete_project, delete_timeline, delete_note, delete_task_comment)
}
_DELETING: Final = {tool.name for tool in DELETE.values()}


def resolve_call(aliases: RowAliases, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the tool and the arguments that a model's call means. Raises ToolException."""
    arguments = aliases.resolved(arguments)
    if name != delete.name:
        return name, arguments
    tool = DELETE.get(aliases.table_of(arguments["id"]))
    if tool is None:
        raise ToolException(_NOT_READ)
    return tool.name, {str((tool.metadata or {})["key"]): arguments["id"]}


def present_call(aliases: RowAliases, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a call as a model would make it."""
    tool = next((tool for tool in DELETE.values() if tool.name == name), None)
    if tool is None:
        for argument, table in _AGENT_ARGUMENTS.items():
            if isinstance(key := arguments.get(argument), str):
                arguments = arguments | {argument: aliases.alias(table, key)}
        for argument, table in _TABLES.items():
            if isinstance(key := arguments.get(argument), str):
                aliases.alias(table, key)
        return name, aliases.aliased(arguments)
    metadata = tool.metadata or {}
    return delete.name, {"id": aliases.alias(str(metadata["table"]), str(arguments.get(metadata["key"])))}


# The agents' tools take names as well, so their arguments are not called ids.
_AGENT_ARGUMENTS: Final = {"agent": "agents", "run_or_agent": "runs"}
_TABLES: Final = {
    "task_id": "tasks",
    "project_id": "projects",
    "timeline_id": "timelines",
    "note_id": "notes",
    "client_id": "clients",
    "comment_id": "taskComments",
}
