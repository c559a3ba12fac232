"""Selects with a result that is too large for a frame. They are fetched in pieces, since the same select would fail
again."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

from adiuva.devices import tool_results
from adiuva.devices.protocol import Data, ToolCall, ToolResultBody

if TYPE_CHECKING:
    from adiuva.devices.link import DeviceLink

# This many calls for one select are enough for 500 rows of 30 KB each.
_MAX_PIECES: Final = 32
# The first piece of a select without a limit.
_FIRST_ROWS: Final = 200
# The next piece, after one that did not fit.
_SHRINK: Final = 4


class PartialSelect(ToolResultBody):
    """Result of a select that lacks rows. `has_more`: behind the last one; `skipped`: rows too large for a frame."""

    has_more: bool = False
    skipped: int = 0


async def select_in_pieces(link: DeviceLink, call: ToolCall) -> ToolResultBody:
    """Return the rows of a select with a result that was too large for a frame.

    It asks a device with the capability `offset` for one piece after the other, and skips and counts a row that is too
    large by itself. It asks other devices for as many rows as fit, from the first on. Raises like a link's call.
    """
    target = await link.target()
    can_go_on = target.can("offset")
    size = max(1, (call.limit or _FIRST_ROWS) // 2)
    rows: dict[str, Data] = {}
    seen = skipped = 0
    for _ in range(_MAX_PIECES):
        limit = size if call.limit is None else min(size, call.limit - seen)
        piece = call.model_copy(
            update={
                "id": uuid.uuid4().hex,
                "limit": limit,
                "offset": seen if can_go_on else None,
                "attempt": 1,
            }
        )
        result = await link.call(piece, retries_large=False)
        if tool_results.is_large_select("select", result):
            if limit > 1:
                size = max(1, limit // _SHRINK)
                continue
            if not can_go_on:
                return result
            seen, skipped, size = seen + 1, skipped + 1, size * 2
        elif result.error is not None or result.rows is None:
            return result
        else:
            seen += len(result.rows)
            # The rows may have moved since the last piece.
            rows |= {str(row.get("id", place)): row for place, row in enumerate(result.rows, len(rows))}
            if len(result.rows) < limit:
                return _result(call, rows, skipped=skipped, has_more=False)
        if call.limit is not None and seen >= call.limit:
            return _result(call, rows, skipped=skipped, has_more=False)
        if not can_go_on:
            break
    return _result(call, rows, skipped=skipped, has_more=True)


def _result(call: ToolCall, rows: dict[str, Data], *, skipped: int, has_more: bool) -> ToolResultBody:
    found = list(rows.values())
    if not skipped and not has_more:
        return ToolResultBody(id=call.id, rows=found)
    return PartialSelect(id=call.id, rows=found, skipped=skipped, has_more=has_more)
