"""Tools for timeline entries: the dates that matter to the user's projects."""

from __future__ import annotations

from typing import Final

from langchain_core.runnables import RunnableConfig

from chat.device_session import device_session_of
from chat.tools import base, dates, formatting
from chat.tools.base import FirstDate, LastDate, OrNull, ProjectId, SearchWords, assistant_tool

_MAX_ROWS: Final = 500
_TimelineId = str
_Date = str


@assistant_tool("timelines", "select", "Looking at your timelines")
async def list_timelines(
    config: RunnableConfig,
    project_id: ProjectId = None,
    search: SearchWords = None,
    date_from: FirstDate = None,
    date_to: LastDate = None,
) -> str:
    """List timeline entries, earliest first: milestones, deadlines and events of projects."""
    session = device_session_of(config)
    given = base.given_filters(
        projectId=project_id,
        search=search,
        dueDateFrom=dates.parse_start_ms(date_from, session.zone, "date_from") if date_from else None,
        dueDateTo=dates.parse_end_ms(date_to, session.zone, "date_to") if date_to else None,
        orderBy="date",
    )
    found = await session.select("timelines", given, limit=_MAX_ROWS, names_of="projects")
    narrow = "project_id, search, date_from or date_to"
    return formatting.list_text(session, "timelines", found, narrow=narrow)


@assistant_tool("timelines", "insert", "Adding to a timeline")
async def create_timeline(
    config: RunnableConfig,
    project_id: str,
    title: str,
    date: _Date,
) -> str:
    """Create a timeline entry of a project."""
    session = device_session_of(config)
    data = base.insert_columns(session, "timelines", projectId=project_id, title=title, date=date)
    made = await session.call("insert", "timelines", data=data)
    return formatting.change_text(session, "Created", "timelines", made.row or {})


@assistant_tool("timelines", "update", "Changing a timeline", key="timeline_id")
async def update_timeline(
    config: RunnableConfig,
    timeline_id: _TimelineId,
    title: str | OrNull = None,
    date: _Date | OrNull = None,
    project_id: ProjectId = None,
) -> str:
    """Change a timeline entry; only what is given changes."""
    session = device_session_of(config)
    changes = base.update_columns(session, "timelines", title=title, date=date, projectId=project_id)
    changed = await session.call("update", "timelines", data={"id": timeline_id, "updates": changes})
    return formatting.change_text(session, "Updated", "timelines", changed.row or {})


@assistant_tool("timelines", "delete", "Deleting from a timeline", key="timeline_id")
async def delete_timeline(config: RunnableConfig, timeline_id: _TimelineId) -> str:
    """Delete a timeline entry for good."""
    session = device_session_of(config)
    await session.call("delete", "timelines", data={"id": timeline_id})
    return formatting.deletion_text(session, "timelines", timeline_id)


TIMELINES = (list_timelines, create_timeline, update_timeline, delete_timeline)
