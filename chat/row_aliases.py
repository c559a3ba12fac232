"""Short names for rows: a model reads and writes `t3`, the device and the client use the row's id.

An id costs a model twenty to thirty tokens each time, and a weak one miscopies it. Aliases are numbered in the order in
which rows appear in a turn's messages, so a conversation that grows keeps its prefix, which providers cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from chat.untrusted_text import is_row_id

# The letter of each table's rows; r is for a row whose table is unknown.
LETTERS: Final = {
    "tasks": "t",
    "projects": "p",
    "timelines": "e",
    "notes": "n",
    "clients": "c",
    "taskComments": "k",
    "agents": "a",
    "runs": "x",
}
_UNKNOWN: Final = "r"
_TAG_TABLES: Final = {"task": "tasks", "project": "projects", "note": "notes", "timeline": "timelines"}
_TAG: Final = re.compile(r"<(task|project|note|timeline)>\[([^\]<>]*)\]</\1>")
_ID: Final = re.compile(r"\[id ([^\]\s]+)\]")


class RowAliases:
    """The aliases of one turn."""

    def __init__(self) -> None:
        self._by_id: dict[str, str] = {}
        self._rows: dict[str, tuple[str, str]] = {}  # (table, id) by alias; "" for an unknown table
        self._counts: dict[str, int] = {}

    def alias(self, table: str, key: str) -> str:
        """Return the alias of a row."""
        if (known := self._by_id.get(key)) is not None:
            return known
        letter = LETTERS.get(table, _UNKNOWN)
        self._counts[letter] = self._counts.get(letter, 0) + 1
        made = f"{letter}{self._counts[letter]}"
        self._by_id[key], self._rows[made] = made, (table, key)
        return made

    def find(self, alias: str) -> tuple[str, str] | None:
        """Return the table and the id of an alias; None if it was not given."""
        return self._rows.get(alias.strip(" []"))

    def table_of(self, key: str) -> str:
        """Return the table of a row by its id; "" if it is not known."""
        alias = self._by_id.get(key)
        return self._rows[alias][0] if alias is not None else ""

    def resolved(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments with ids for aliases. Anything else stays: the device knows no such row."""
        return self._each_id(arguments, lambda value: found[1] if (found := self.find(value)) else value)

    def aliased(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments with aliases for ids, as a model would write them."""
        return self._each_id(arguments, lambda value: self.alias("", value) if is_row_id(value) else value)

    def in_text(self, text: str) -> str:
        """Return an earlier message or a summary with aliases for the ids in its tags."""
        text = _TAG.sub(self._aliased_tag, text)
        return _ID.sub(
            lambda match: f"[{self.alias('', match[1])}]" if is_row_id(match[1]) else match[0], text
        )

    def _aliased_tag(self, match: re.Match[str]) -> str:
        keys = (key.strip(" \"'") for key in match[2].split(","))
        listed = ",".join(self.alias(_TAG_TABLES[match[1]], key) for key in keys if is_row_id(key))
        return f"<{match[1]}>[{listed}]</{match[1]}>" if listed else ""

    @staticmethod
    def _each_id(arguments: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
        return {
            name: change(value)
            if isinstance(value, str) and (name == "id" or name.endswith("_id"))
            else value
            for name, value in arguments.items()
        }
