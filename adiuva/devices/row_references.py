"""Search for rows of a device that other rows refer to: an undo leaves those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from adiuva.core.errors import AdiuvaError
from adiuva.devices.calls import new_call
from adiuva.devices.large_selects import PartialSelect
from adiuva.devices.link import DeviceLink
from adiuva.devices.link_errors import DeviceCannotSave
from adiuva.devices.protocol import Data, TableName, ToolResultBody
from adiuva.devices.tool_results import NOT_SAVED

# In this order, rows that refer to others are deleted first.
DELETION_ORDER: Final[Sequence[TableName]] = (
    "taskComments",
    "tasks",
    "notes",
    "timelines",
    "projects",
    "clients",
)
_REFERRERS: Final[Mapping[str, Sequence[tuple[TableName, str]]]] = {
    "tasks": [("taskComments", "taskId")],
    "projects": [("tasks", "projectId"), ("notes", "projectId"), ("timelines", "projectId")],
    "clients": [("projects", "clientId")],
}


class RowReferences:
    """References on one device, for one undo."""

    def __init__(self, link: DeviceLink) -> None:
        self._link = link
        self._parents: set[str] | None = None

    async def used(self, table: TableName, ids: Sequence[str]) -> set[str]:
        """Return those of these rows that others refer to, or may refer to because that cannot be found out.

        Raises like a link's call.
        """
        asked = []
        for row_id in ids:
            for other, column in _REFERRERS.get(table, ()):
                filters: Data = {column: row_id}
                if other == "projects":
                    filters["includeArchived"] = True
                asked.append((row_id, new_call("select", other, filters=filters, limit=1)))
        answers = results_of(await self._link.send_calls([call for _, call in asked])) if asked else []
        used = {
            row_id
            for (row_id, _), answer in zip(asked, answers, strict=True)
            if answer.rows is None or answer.rows
        }
        if table == "clients" and ids:
            used |= await self._with_children(ids)
        return used

    async def _with_children(self, ids: Sequence[str]) -> set[str]:
        """Return clients that are parents of others. No filter finds them, so it reads all clients once."""
        if self._parents is None:
            answer = await self._link.call(new_call("select", "clients", filters={}))
            if answer.rows is None or isinstance(answer, PartialSelect):
                return set(ids)
            self._parents = {str(row.get("parentId")) for row in answer.rows}
        return self._parents.intersection(ids)


def results_of(outcomes: Sequence[ToolResultBody | AdiuvaError]) -> list[ToolResultBody]:
    """Return the results. Raises the first failure: a device that is silent, disconnected or full is asked for nothing
    more."""
    results = []
    for outcome in outcomes:
        if isinstance(outcome, AdiuvaError):
            raise outcome
        if outcome.code == NOT_SAVED:
            raise DeviceCannotSave
        results.append(outcome)
    return results
