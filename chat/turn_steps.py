"""The steps of a turn, for people: which tools each model call used, and whether they were carried out.

It names tools as people see them (their labels) and holds nothing of what was given to them or what they returned.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, NamedTuple

# A turn has at most so many model calls and kinds of tools that this is more than it can do.
_MOST: Final = 200


class _Step(NamedTuple):
    call: int
    label: str
    table: str
    ok: bool


class TurnSteps:
    """The tools that were called alike in one model call are one step."""

    def __init__(self) -> None:
        self._counts: Counter[_Step] = Counter()

    def add(self, *, call: int, label: str, table: str, ok: bool) -> None:
        """`call`: which of the turn's model calls asked for it, from 1. `label`: in the language that is spoken."""
        step = _Step(call, label, table, ok)
        if step in self._counts or len(self._counts) < _MOST:
            self._counts[step] += 1

    def listed(self) -> list[dict[str, Any]]:
        """In the order of the calls, as they are kept with the answer."""
        steps = sorted(self._counts.items(), key=lambda counted: counted[0].call)
        return [{"kind": "tool", **step._asdict(), "count": count} for step, count in steps]
