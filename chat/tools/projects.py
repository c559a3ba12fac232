"""Tools for the user's projects."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import Field

from adiuva.devices.calls import new_call
from adiuva.devices.protocol import Data
from chat.device_session import DeviceSession, device_session_of, missing_row_text
from chat.tools import base, formatting
from chat.tools.base import ClientId, OrNull, SearchWords, assistant_tool

_MAX_ROWS: Final = 500
_MAX_SUMMARY_CHARS: Final = 20_000
_ProjectId = str
_Summary = Annotated[str | OrNull, Field(description="what the project is, in a sentence or two")]


@assistant_tool("projects", "select", "Looking at your projects")
async def list_projects(
    config: RunnableConfig,
    client_id: ClientId = None,
    search: SearchWords = None,
    archived: Annotated[bool | OrNull, Field(description="also the archived ones")] = None,
) -> str:
    """List active projects."""
    session = device_session_of(config)
    which: Data = {"includeArchived": True} if archived else {"status": "active"}
    given = base.given_filters(clientId=client_id, search=search, orderBy="name") | which
    return await _list(session, given)


@assistant_tool("projects", "select", "Looking at a project", key="project_id")
async def get_project(config: RunnableConfig, project_id: _ProjectId) -> str:
    """Read one project with its whole summary."""
    session = device_session_of(config)
    found, _clients = await session.call_many(
        [
            new_call("get", "projects", data={"id": project_id}),
            new_call("select", "clients", limit=_MAX_ROWS),  # for the client's name
        ]
    )
    if isinstance(found, ToolException):
        raise found
    if found.row is None:
        raise ToolException(missing_row_text("projects", project_id))
    summary = formatting.quote(found.row.get("aiSummary"), _MAX_SUMMARY_CHARS)
    return f"The project {formatting.row_text(session, 'projects', found.row)}." + (
        f"\n{summary}" if summary else ""
    )


@assistant_tool("projects", "insert", "Creating a project")
async def create_project(
    config: RunnableConfig, name: str, client_id: ClientId = None, summary: _Summary = None
) -> str:
    """Create a project."""
    session = device_session_of(config)
    data = base.insert_columns(session, "projects", name=name, clientId=client_id, aiSummary=summary)
    made = await session.call("insert", "projects", data=data)
    return formatting.change_text(session, "Created", "projects", made.row or {})


@assistant_tool("projects", "update", "Changing a project", key="project_id")
async def update_project(
    config: RunnableConfig,
    project_id: _ProjectId,
    name: str | OrNull = None,
    status: Literal["active", "archived"] | OrNull = None,
    client_id: ClientId = None,
    summary: _Summary = None,
) -> str:
    """Change or archive a project; only what is given changes, "none" clears."""
    session = device_session_of(config)
    changes = base.update_columns(
        session, "projects", name=name, status=status, clientId=client_id, aiSummary=summary
    )
    changed = await session.call("update", "projects", data={"id": project_id, "updates": changes})
    return formatting.change_text(session, "Updated", "projects", changed.row or {})


@assistant_tool("projects", "delete", "Deleting a project", key="project_id")
async def delete_project(config: RunnableConfig, project_id: _ProjectId) -> str:
    """Delete a project for good. Its tasks, notes and dates stay. To put a project away, archive it instead."""
    session = device_session_of(config)
    await session.call("delete", "projects", data={"id": project_id})
    return formatting.deletion_text(session, "projects", project_id)


async def _list(session: DeviceSession, given: Data) -> str:
    found = await session.select("projects", given, limit=_MAX_ROWS, names_of="clients")
    return formatting.list_text(session, "projects", found, narrow="client_id or search")


PROJECTS = (list_projects, get_project, create_project, update_project, delete_project)
