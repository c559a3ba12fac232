"""Texts that a turn has read and its user did not write, such as a note, a record that an agent found, or a comment.

Such a text may try to steer the model. Whoever decides what a turn may do asks here: writes that the user did not ask
for, and what is to be remembered. The list is kept, sealed, on the turn and with the exchange that the memory reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# Texts of a turn that are listed; the mark itself has no bound.
MAX_LISTED: Final = 200
# Texts in these tables may be pasted, delivered or written by others.
_ALWAYS: Final = frozenset({"notes", "taskComments"})
# Elsewhere a row's title is the user's, and its longer text may come from anywhere.
_TEXT_COLUMNS: Final = {"tasks": "description", "projects": "aiSummary"}
# What the client sent with the request, beside the message.
CONTEXT: Final = "context"


def is_foreign(table: str, row: Mapping[str, Any]) -> bool:
    """Return whether a row of the device holds text that the user may not have written."""
    text = row.get(_TEXT_COLUMNS.get(table, ""))
    return table in _ALWAYS or row.get("isAiSuggested") == 1 or (isinstance(text, str) and bool(text.strip()))


@dataclass
class ForeignTexts:
    """The foreign texts that a turn has read, each once, in order. True if there is any.

    `earlier`: whether earlier answers that the model is shown may quote such texts.
    """

    earlier: bool = False
    _read: dict[tuple[str, str], None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._read)

    def add(self, table: str, key: str = "") -> None:
        """`table`: a table of the device, or CONTEXT."""
        self._read[table, key] = None

    def add_rows(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note those rows of a table that hold foreign text."""
        for row in rows:
            if is_foreign(table, row):
                self.add(table, row["id"])

    def listed(self) -> list[dict[str, str]]:
        """`{table, id}` of each, up to MAX_LISTED."""
        return [{"table": table, "id": key} for table, key in list(self._read)[:MAX_LISTED]]
