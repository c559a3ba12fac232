"""The dates that matter to the user's projects."""

from __future__ import annotations

from typing import Annotated, Final

from langchain_core.runnables import RunnableConfig
from pydantic import Field

from chat.device_session import desk_of
from chat.tools import base, dates, formatting
from chat.tools.base import From, Nothing, ProjectId, Search, To, device_tool

_MOST: Final = 500
_ID = Annotated[str, Field(description="the entry's id")]
_Date = Annotated[str, Field(description="2026-11-20 or 2026-11-20T14:30")]


@device_tool("timelines", "select", "Looking at your timelines")
async def list_timelines(
    config: RunnableConfig,
    project_id: ProjectId = None,
    search: Search = None,
    date_from: From = None,
    date_to: To = None,
) -> str:
    """List timeline entries (milestones, deadlines, events of projects), earliest first."""
    desk = desk_of(config)
    given = base.filters(
        projectId=project_id,
        search=search,
        dueDateFrom=dates.moment(date_from, desk.zone, "date_from") if date_from else None,
        dueDateTo=dates.last_moment(date_to, desk.zone, "date_to") if date_to else None,
        orderBy="date",
    )
    rows = await desk.select("timelines", given, limit=_MOST, names_of="projects")
    narrow = "project_id, search, date_from or date_to"
    return formatting.listed(desk, "timelines", rows, bound=_MOST, narrow=narrow)


@device_tool("timelines", "insert", "Adding to a timeline")
async def create_timeline(
    config: RunnableConfig,
    project_id: Annotated[str, Field(description="a project's id")],
    title: str,
    date: _Date,
) -> str:
    """Create a timeline entry: a milestone, deadline or event of a project."""
    desk = desk_of(config)
    data = base.new_row(desk, "timelines", projectId=project_id, title=title, date=date)
    made = await desk.call("insert", "timelines", data=data)
    return formatting.done(desk, "Created", "timelines", made.row or {})


@device_tool("timelines", "update", "Changing a timeline", key="timeline_id")
async def update_timeline(
    config: RunnableConfig,
    timeline_id: _ID,
    title: str | Nothing = None,
    date: _Date | Nothing = None,
    project_id: ProjectId = None,
) -> str:
    """Change a timeline entry; only what is given changes."""
    desk = desk_of(config)
    changes = base.updates(desk, "timelines", title=title, date=date, projectId=project_id)
    changed = await desk.call("update", "timelines", data={"id": timeline_id, "updates": changes})
    return formatting.done(desk, "Updated", "timelines", changed.row or {})


@device_tool("timelines", "delete", "Deleting from a timeline", key="timeline_id")
async def delete_timeline(config: RunnableConfig, timeline_id: _ID) -> str:
    """Delete a timeline entry for good."""
    desk = desk_of(config)
    await desk.call("delete", "timelines", data={"id": timeline_id})
    return formatting.deleted(desk, "timelines", timeline_id)


TIMELINES = (list_timelines, create_timeline, update_timeline, delete_timeline)
