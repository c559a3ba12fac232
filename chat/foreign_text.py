"""Texts that a turn has read and its user did not write, such as a note, a record that an agent found, or a comment.

Such a text may try to steer the model. This list tells the approvals which writes to question, and the memory what it
may remember. It is kept, sealed, on the turn and with the exchange that the memory reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# The most texts that a turn lists; whether there are any is always known.
MAX_LISTED: Final = 200
# Texts in these tables may be pasted, delivered or written by others.
_ALWAYS: Final = frozenset({"notes", "taskComments"})
# Elsewhere a row's title is the user's, and its longer text may come from anywhere.
_TEXT_COLUMNS: Final = {"tasks": "description", "projects": "aiSummary"}
# The data that the client sent with the request, besides the message.
CONTEXT: Final = "context"


def is_foreign(table: str, row: Mapping[str, Any]) -> bool:
    """Return whether a row of the device holds text that the user may not have written."""
    text = row.get(_TEXT_COLUMNS.get(table, ""))
    return table in _ALWAYS or row.get("isAiSuggested") == 1 or (isinstance(text, str) and bool(text.strip()))


@dataclass
class ForeignTexts:
    """The foreign texts that a turn has read, each once, in order. It is true if there are any.

    `earlier`: whether earlier answers in the model's history may quote such texts.
    """

    earlier: bool = False
    _read: dict[tuple[str, str], None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._read)

    def add(self, table: str, key: str = "") -> None:
        """Note a foreign text. `table`: a table of the device, or CONTEXT."""
        self._read[table, key] = None

    def add_rows(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note the rows of a table that hold foreign text."""
        for row in rows:
            if is_foreign(table, row):
                self.add(table, row["id"])

    def listed(self) -> list[dict[str, str]]:
        """Return `{table, id}` of each, up to MAX_LISTED."""
        return [{"table": table, "id": key} for table, key in list(self._read)[:MAX_LISTED]]
