"""The steps of a turn, for people: the tools that each model call used, and whether they were carried out.

They name tools by their labels for people, and hold nothing of their arguments and results.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, NamedTuple

# More than a turn can have, given its limits on model calls and kinds of tools.
_MOST: Final = 200


class _Step(NamedTuple):
    call: int
    label: str
    table: str
    ok: bool


class TurnSteps:
    """Counts a turn's steps: equal calls of tools in one model call are one step."""

    def __init__(self) -> None:
        self._counts: Counter[_Step] = Counter()

    def add(self, *, call: int, label: str, table: str, ok: bool) -> None:
        """Count a call. `call`: the number of the turn's model call, from 1. `label`: in the active language."""
        step = _Step(call, label, table, ok)
        if step in self._counts or len(self._counts) < _MOST:
            self._counts[step] += 1

    def listed(self) -> list[dict[str, Any]]:
        """Return the steps in the order of the calls, as stored with the answer."""
        steps = sorted(self._counts.items(), key=lambda counted: counted[0].call)
        return [{"kind": "tool", **step._asdict(), "count": count} for step, count in steps]
