"""The user's projects."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import Field

from adiuva.devices.protocol import Data
from chat.device_session import Desk, desk_of, missing, tool_call
from chat.tools import base, formatting
from chat.tools.base import ClientId, Nothing, Search, device_tool

_MOST: Final = 500
_TEXT: Final = 20_000
_ID = Annotated[str, Field(description="the project's id")]
_Summary = Annotated[str | Nothing, Field(description="what the project is, in a sentence or two")]


@device_tool("projects", "select", "Looking at your projects")
async def list_projects(config: RunnableConfig, client_id: ClientId = None, search: Search = None) -> str:
    """List the user's active projects."""
    desk = desk_of(config)
    given = base.filters(clientId=client_id, search=search, status="active", orderBy="name")
    return await _list(desk, given)


@device_tool("projects", "select", "Looking at all your projects")
async def list_all_projects(config: RunnableConfig, client_id: ClientId = None, search: Search = None) -> str:
    """List the user's projects with the archived ones."""
    desk = desk_of(config)
    given = base.filters(clientId=client_id, search=search, includeArchived=True, orderBy="name")
    return await _list(desk, given)


@device_tool("projects", "select", "Looking at a project", key="project_id")
async def get_project(config: RunnableConfig, project_id: _ID) -> str:
    """Read one project with its whole summary."""
    desk = desk_of(config)
    found, _clients = await desk.calls(
        [
            tool_call("get", "projects", data={"id": project_id}),
            tool_call("select", "clients", limit=_MOST),  # for the client's name
        ]
    )
    if isinstance(found, ToolException):
        raise found
    if found.row is None:
        raise ToolException(missing("projects", project_id))
    summary = formatting.quoted(found.row.get("aiSummary"), _TEXT)
    return f"The project {formatting.row(desk, 'projects', found.row)}." + (f"\n{summary}" if summary else "")


@device_tool("projects", "insert", "Creating a project")
async def create_project(
    config: RunnableConfig, name: str, client_id: ClientId = None, summary: _Summary = None
) -> str:
    """Create a project."""
    desk = desk_of(config)
    data = base.new_row(desk, "projects", name=name, clientId=client_id, aiSummary=summary)
    made = await desk.call("insert", "projects", data=data)
    return formatting.done(desk, "Created", "projects", made.row or {})


@device_tool("projects", "update", "Changing a project", key="project_id")
async def update_project(
    config: RunnableConfig,
    project_id: _ID,
    name: str | Nothing = None,
    status: Literal["active", "archived"] | Nothing = None,
    client_id: ClientId = None,
    summary: _Summary = None,
) -> str:
    """Change a project; only what is given changes. "none" clears client_id or summary."""
    desk = desk_of(config)
    changes = base.updates(desk, "projects", name=name, status=status, clientId=client_id, aiSummary=summary)
    changed = await desk.call("update", "projects", data={"id": project_id, "updates": changes})
    return formatting.done(desk, "Updated", "projects", changed.row or {})


@device_tool("projects", "delete", "Deleting a project", key="project_id")
async def delete_project(config: RunnableConfig, project_id: _ID) -> str:
    """Delete a project for good. Its tasks, notes and dates stay. To put a project away, archive it instead."""
    desk = desk_of(config)
    await desk.call("delete", "projects", data={"id": project_id})
    return formatting.deleted(desk, "projects", project_id)


async def _list(desk: Desk, given: Data) -> str:
    rows = await desk.select("projects", given, limit=_MOST, names_of="clients")
    return formatting.listed(desk, "projects", rows, bound=_MOST, narrow="client_id or search")


PROJECTS = (list_projects, list_all_projects, get_project, create_project, update_project, delete_project)
