"""Tools for the user's tasks and the comments on them."""

from __future__ import annotations

from operator import itemgetter
from typing import Annotated, Any, Final, Literal

from langchain_core.runnables import RunnableConfig
from pydantic import Field

from adiuva.devices.protocol import Data
from adiuva.devices.tables import TABLES
from chat.device_session import DeviceSession, Selected, device_session_of
from chat.tools import base, dates, formatting
from chat.tools.base import (
    DueDate,
    FirstDate,
    LastDate,
    OrNull,
    PersonNames,
    ProjectId,
    SearchWords,
    assistant_tool,
)

_MAX_ROWS: Final = 500
_OPEN_STATUSES: Final = ("todo", "in_progress")
_COLUMNS: Final = {"due_date": "dueDate", "priority": "priority", "created": "createdAt", "title": "title"}
_PRIORITIES: Final = {name: rank for rank, name in enumerate(TABLES["tasks"].by_name["priority"].choices)}

_TaskId = str
_Status = Literal["todo", "in_progress", "done"]
_Priority = Literal["high", "medium", "low"]
_OrderBy = Literal["due_date", "priority", "created", "title"]


@assistant_tool("tasks", "select", "Looking at your tasks")
async def list_tasks(
    config: RunnableConfig,
    project_id: ProjectId = None,
    status: Annotated[
        Literal["open", "due", "todo", "in_progress", "done"] | OrNull,
        Field(description="open: not done; due: today or overdue"),
    ] = None,
    search: SearchWords = None,
    due_from: FirstDate = None,
    due_to: LastDate = None,
    order_by: _OrderBy | OrNull = None,
    descending: bool | OrNull = None,
) -> str:
    """List tasks, all or those that fit; open ones first, by due date."""
    session = device_session_of(config)
    if status == "due":
        return await _list_due_today(session)
    column = _COLUMNS[order_by or "due_date"]
    given = base.given_filters(
        projectId=project_id,
        search=search,
        dueDateFrom=dates.parse_start_ms(due_from, session.zone, "due_from") if due_from else None,
        dueDateTo=dates.parse_end_ms(due_to, session.zone, "due_to") if due_to else None,
        orderBy=f"{column} desc" if descending else column,
    )
    rows, is_cut = await _select(session, given, status)
    if order_by is None and status is None and is_cut:
        # The result may be full of done tasks, and must not lack the open ones.
        rows = _merged((await _select(session, given, "open")).rows, rows)
    rows = _sorted(rows, column, descending=bool(descending), open_first=order_by is None)
    narrow = "project_id, status, search, due_from or due_to"
    return formatting.list_text(session, "tasks", Selected(rows, is_cut), narrow=narrow)


async def _list_due_today(session: DeviceSession) -> str:
    """Return tasks that are not done and are due today, in the user's time zone, or overdue."""
    begin, end = (
        dates.day_start_ms(session.today, session.zone),
        dates.day_end_ms(session.today, session.zone),
    )
    found, is_cut = await _select(session, {"dueDateTo": end, "orderBy": "dueDate"}, "open")
    # Check the rows once more, in case a device ignores a filter: else everything would be due.
    due = [row for row in found if row.get("status") != "done" and _due(row) is not None and _due(row) <= end]
    due = _sorted(due, "dueDate")
    today, late = [row for row in due if _due(row) >= begin], [row for row in due if _due(row) < begin]
    least = "At least " if is_cut else ""
    parts = []
    for rows, word in ((today, "due today"), (late, "overdue")):
        if rows:
            narrow = "list_tasks and due_from or due_to"
            written = formatting.row_lines(session, "tasks", Selected(rows, is_cut), narrow=narrow)
            parts.append(f"{least}{formatting.count_text(len(rows), 'tasks')} {word}:\n{written}")
    if not today:
        parts.insert(0, "No tasks are due today.")
    if not late:
        parts.append("No tasks are overdue.")
    return "\n".join(parts)


@assistant_tool("tasks", "insert", "Creating a task")
async def create_task(
    config: RunnableConfig,
    title: str,
    description: str | OrNull = None,
    project_id: ProjectId = None,
    status: _Status | OrNull = None,
    priority: _Priority | OrNull = None,
    assignee: PersonNames = None,
    due_date: DueDate = None,
) -> str:
    """Create a task, with no more than what the user said."""
    session = device_session_of(config)
    data = base.insert_columns(
        session,
        "tasks",
        title=title,
        description=description,
        projectId=project_id,
        status=status,
        priority=priority,
        assignee=assignee,
        dueDate=due_date,
    )
    made = await session.call("insert", "tasks", data=data)
    return formatting.change_text(session, "Created", "tasks", made.row or {})


@assistant_tool("tasks", "update", "Changing a task", key="task_id")
async def update_task(
    config: RunnableConfig,
    task_id: _TaskId,
    title: str | OrNull = None,
    description: str | OrNull = None,
    project_id: ProjectId = None,
    status: _Status | OrNull = None,
    priority: _Priority | OrNull = None,
    assignee: PersonNames = None,
    due_date: DueDate = None,
) -> str:
    """Change a task, for example finish it with status done. Only what is given changes; "none" clears."""
    session = device_session_of(config)
    changes = base.update_columns(
        session,
        "tasks",
        title=title,
        description=description,
        projectId=project_id,
        status=status,
        priority=priority,
        assignee=assignee,
        dueDate=due_date,
    )
    changed = await session.call("update", "tasks", data={"id": task_id, "updates": changes})
    return formatting.change_text(session, "Updated", "tasks", changed.row or {})


@assistant_tool("tasks", "delete", "Deleting a task", key="task_id")
async def delete_task(config: RunnableConfig, task_id: _TaskId) -> str:
    """Delete a task for good. To finish one, update its status instead."""
    session = device_session_of(config)
    await session.call("delete", "tasks", data={"id": task_id})
    return formatting.deletion_text(session, "tasks", task_id)


@assistant_tool("taskComments", "select", "Reading comments")
async def list_task_comments(config: RunnableConfig, task_id: _TaskId) -> str:
    """List the comments on a task, oldest first."""
    session = device_session_of(config)
    given = {"taskId": task_id, "orderBy": "createdAt"}
    found = await session.select("taskComments", given, limit=_MAX_ROWS)
    if not found.rows:
        return "There are no comments on this task."
    narrow = "nothing: there is no filter for comments"
    return formatting.list_text(session, "taskComments", found, narrow=narrow)


@assistant_tool("taskComments", "insert", "Adding a comment")
async def add_task_comment(config: RunnableConfig, task_id: _TaskId, content: str) -> str:
    """Add a comment to a task."""
    session = device_session_of(config)
    data = base.insert_columns(session, "taskComments", taskId=task_id, content=content)
    made = await session.call("insert", "taskComments", data=data)
    return formatting.change_text(session, "Added", "taskComments", made.row or {})


@assistant_tool("taskComments", "delete", "Deleting a comment", key="comment_id")
async def delete_task_comment(config: RunnableConfig, comment_id: str) -> str:
    """Delete a comment for good."""
    session = device_session_of(config)
    await session.call("delete", "taskComments", data={"id": comment_id})
    return formatting.deletion_text(session, "taskComments", comment_id)


async def _select(session: DeviceSession, given: Data, status: str | None) -> Selected:
    wanted = _OPEN_STATUSES if status == "open" else (status,)
    each = [given | ({"status": one} if one else {}) for one in wanted]
    return await session.select("tasks", *each, limit=_MAX_ROWS, names_of="projects")


def _merged(first: list[Data], second: list[Data]) -> list[Data]:
    return list({row["id"]: row for row in (*first, *second)}.values())


def _sorted(
    rows: list[Data], column: str, *, descending: bool = False, open_first: bool = False
) -> list[Data]:
    """Merge the rows of several selects in one order; rows without a value come last either way."""

    def value(row: Data) -> Any:
        found = row.get(column)
        if column == "priority":
            return _PRIORITIES.get(found) if isinstance(found, str) else None
        if column == "title":
            return found.casefold() if isinstance(found, str) else None
        return found if isinstance(found, int) else None

    valued = [(value(row), row) for row in rows]
    have = sorted((pair for pair in valued if pair[0] is not None), key=itemgetter(0), reverse=descending)
    ordered = [row for _, row in have] + [row for found, row in valued if found is None]
    return sorted(ordered, key=lambda row: row.get("status") == "done") if open_first else ordered


def _due(row: Data) -> Any:
    found = row.get("dueDate")
    return found if isinstance(found, int) else None


TASKS = (
    list_tasks,
    create_task,
    update_task,
    delete_task,
    list_task_comments,
    add_task_comment,
    delete_task_comment,
)
