"""Changes that a turn made on the device, with the rows that are needed to undo them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from adiuva.core.crypto import UserCipher
from adiuva.devices.outbox import row_hash
from adiuva.devices.protocol import Data, TableName
from adiuva.devices.row_undo import Action, RowChange
from adiuva.devices.tables import TABLES


@dataclass(frozen=True)
class RecordedChange:
    """One write of a turn. `before` and `after` are the whole row; `before` is None if it is not known."""

    action: Action
    table: TableName
    id: str
    before: Data | None
    after: Data | None
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class TurnRecord:
    """The changes of one turn, and the device that they were made on."""

    device: uuid.UUID | None
    changes: Sequence[RecordedChange] = ()

    def by_row(self, cipher: UserCipher) -> list[RowChange]:
        """Return one change for each row, in the order of their last changes."""
        found: dict[tuple[str, str], RowChange] = {}
        for change in self.changes:
            key = change.table, change.id
            older = found.pop(key, None)
            if older is not None and older.action == "insert" and change.action == "delete":
                continue
            row = change.after or change.before or {}
            found[key] = RowChange(
                action="insert" if older is not None and older.action == "insert" else change.action,
                table=change.table,
                id=change.id,
                title=str(row.get(TABLES[change.table].title) or "")[:200],
                before=_merged(older, change),
                hash=row_hash(cipher, change.table, change.after).hex() if change.after else "",
            )
        return list(found.values())


def _merged(older: RowChange | None, change: RecordedChange) -> Data | None:
    """Return the values that the row had before the turn."""
    if change.action == "insert" or (older is not None and older.action == "insert"):
        return None
    if change.before is None or (older is not None and older.before is None):
        return None
    kept = (
        {name: change.before.get(name) for name in change.columns} if change.columns else dict(change.before)
    )
    return kept | (older.before or {} if older is not None else {})
