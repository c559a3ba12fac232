"""Undo of changes to rows on a device: it deletes a new row, gives an updated row its earlier values again, and inserts
a deleted row again, under an id of the device's making.

It leaves and names a row that was edited since, and a new row that something else refers to. Calls have the same ids
each time, so an interrupted undo can be repeated. Devices have no conditional writes: an edit in the milliseconds
between our read and our write goes unnoticed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from adiuva.core.crypto import UserCipher
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink
from adiuva.devices.outbox import row_hash
from adiuva.devices.protocol import MAX_BATCH, Data, TableName, ToolCall
from adiuva.devices.row_references import DELETION_ORDER, RowReferences, results_of
from adiuva.devices.tables import TABLES

Action = Literal["insert", "update", "delete"]
Reason = Literal["edited", "in_use", "gone", "refused", "unknown"]
_REFERENCES: Final = ("projectId", "taskId", "clientId", "parentId")


@dataclass
class RowChange:
    """Sum of all changes to one row. `action` is what they come to.

    `before`: for an updated row, the older values of the changed columns; for a deleted row, all of it; None if they
    are not known. `hash`: of the row as it was left, in hex. `undone`: whether it was taken back. `new_id`: the id of a
    deleted row since it was inserted again.
    """

    action: Action
    table: TableName
    id: str
    title: str
    before: Data | None = None
    hash: str = ""
    undone: bool = False
    new_id: str | None = None

    def body(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class KeptRow:
    """Row that stays as it was left."""

    table: str
    id: str
    title: str
    reason: Reason


class RowUndo:
    """Undo of changes on one device. `key` says what is undone; the ids of calls are made of it.

    `kept`: the rows that stay, and why. `restored`: rows that are back, as the device returned them, each with its
    change.
    """

    def __init__(
        self, link: DeviceLink, cipher: UserCipher, key: uuid.UUID, changes: Sequence[RowChange]
    ) -> None:
        self.kept: list[KeptRow] = []
        self.restored: list[tuple[RowChange, Data]] = []
        self._link, self._cipher, self._key, self._changes = link, cipher, key, changes
        self._references = RowReferences(link)
        # Those of an undo that was interrupted as well: what refers to these rows may come back only now.
        self._new_ids = {change.id: change.new_id for change in changes if change.new_id is not None}

    async def run(self) -> None:
        """Set `undone` of each change that was taken back. Raises like a link's call, with what was done until then."""
        left = [change for change in self._changes if not change.undone]
        unchanged = await self._unchanged([change for change in left if change.action != "delete"])
        for table in reversed(DELETION_ORDER):  # rows that others refer to come back first
            for change in left:
                if change.action == "delete" and change.table == table:
                    await self._insert_again(change)
        for change in unchanged:
            if change.action == "update":
                await self._update_back(change)
        for table in DELETION_ORDER:
            for change in unchanged:
                if change.action == "insert" and change.table == table:
                    await self._delete(change)

    async def _unchanged(self, changes: Sequence[RowChange]) -> list[RowChange]:
        """Return the changes to rows that are as they were left."""
        same = []
        for start in range(0, len(changes), MAX_BATCH):
            part = changes[start : start + MAX_BATCH]
            calls = [new_call("get", change.table, data={"id": change.id}) for change in part]
            for change, answer in zip(part, results_of(await self._link.send_calls(calls)), strict=True):
                if answer.error is not None:
                    self._keep(change, "refused")
                elif answer.row is None:
                    # If the answer to our delete was lost, it is sent again, to learn whether it was ours.
                    if change.action == "insert":
                        same.append(change)
                    else:
                        self._keep(change, "gone")
                elif row_hash(self._cipher, change.table, answer.row).hex() != change.hash:
                    self._keep(change, "edited")
                else:
                    same.append(change)
        return same

    async def _insert_again(self, change: RowChange) -> None:
        if change.before is None:
            self._keep(change, "unknown")
            return
        columns = {column.name for column in TABLES[change.table].columns if not column.made_by_device}
        data = {
            name: self._current_id(name, value)
            for name, value in change.before.items()
            if name in columns and value is not None
        }
        row = await self._send(change, new_call("insert", change.table, data=data, call_id=self._id(change)))
        if row is not None:
            change.new_id = self._new_ids[change.id] = str(row.get("id"))

    async def _update_back(self, change: RowChange) -> None:
        if not change.before:
            self._keep(change, "unknown")
            return
        updates = {name: self._current_id(name, value) for name, value in change.before.items()}
        data = {"id": change.id, "updates": updates}
        await self._send(change, new_call("update", change.table, data=data, call_id=self._id(change)))

    async def _delete(self, change: RowChange) -> None:
        if await self._references.used(change.table, [change.id]):
            self._keep(change, "in_use")
            return
        call = new_call("delete", change.table, data={"id": change.id}, call_id=self._id(change))
        [answer] = results_of(await self._link.send_calls([call]))
        if answer.error is not None:
            self._keep(change, "refused")
        elif answer.deleted:
            change.undone = True
        else:
            self._keep(change, "gone")

    async def _send(self, change: RowChange, call: ToolCall) -> Data | None:
        [answer] = results_of(await self._link.send_calls([call]))
        if answer.error is not None or answer.row is None:
            self._keep(change, "refused")
            return None
        change.undone = True
        self.restored.append((change, answer.row))
        return answer.row

    def _current_id(self, column: str, value: Any) -> Any:
        return self._new_ids.get(value, value) if column in _REFERENCES and isinstance(value, str) else value

    def _id(self, change: RowChange) -> str:
        return str(uuid.uuid5(self._key, f"undo {change.table} {change.id}"))

    def _keep(self, change: RowChange, reason: Reason) -> None:
        self.kept.append(KeptRow(change.table, change.id, change.title, reason))
