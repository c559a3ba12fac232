"""Tool calls on their way to a device: how to make them, put them into batches, and whether a call may be repeated."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final, TypedDict, get_args

from django.conf import settings

from adiuva.devices.codec import construct, dump
from adiuva.devices.presence import Target
from adiuva.devices.protocol import (
    MAX_BATCH,
    WRITES,
    Action,
    Data,
    Origin,
    TableName,
    ToolCall,
    ToolCallBody,
)

# A call is sent so often before its outcome is unknown.
MAX_ATTEMPTS: Final = 3
# After a select has lost this many connections, its result is taken to be too large, because not every web server says
# so when it closes a socket over a frame.
MAX_SAME_SELECTS: Final = 2

_ACTIONS: Final = frozenset(get_args(Action))
_TABLES: Final = frozenset(get_args(TableName))


def _begin_ids() -> None:
    """Return the beginning of this process's call ids, which makes them unique without asking the system for randomness
    for each. No secret depends on them: an answer counts only on the connection of its call."""
    global _new_id
    _new_id = map(f"{secrets.token_hex(12)}%08x".__mod__, itertools.count()).__next__


_new_id: Callable[[], str]
_begin_ids()
os.register_at_fork(after_in_child=_begin_ids)


class CallFields(TypedDict, total=False):
    """Subject of a call; which fields it needs depends on its action."""

    data: Data | None
    filters: Data | None
    vector: list[float] | None
    limit: int | None
    origin: Origin | None


def new_call(
    action: Action,
    table: TableName | None = None,
    *,
    call_id: str | None = None,
    data: Data | None = None,
    filters: Data | None = None,
    vector: list[float] | None = None,
    limit: int | None = None,
    origin: Origin | None = None,
) -> ToolCall:
    """Return a call for a DeviceLink. Its id is new unless `call_id` is given. ValueError for what no device knows.

    It skips pydantic's checks, which took a sixth of a call's cost, because the caller has checked the fields. So it
    names all fields, in their order.
    """
    if action not in _ACTIONS or not (table is None or table in _TABLES):
        raise ValueError("no such action or table")
    return construct(
        ToolCall,
        {
            "id": call_id or _new_id(),
            "action": action,
            "table": table,
            "data": data,
            "filters": filters,
            "vector": vector,
            "limit": limit,
            "offset": None,
            "origin": origin,
            "attempt": 1,
            "deadline_ms": _deadline_ms(),
            "type": "tool_call",
        },
    )


def may_repeat(call: ToolCall, target: Target) -> bool:
    """Return whether a call whose outcome is unknown may be sent again."""
    return call.action not in WRITES or target.can("dedupe")


def split_into_batches(calls: Sequence[ToolCall], *, max_bytes: int) -> Iterator[list[ToolCall]]:
    """Split calls into batches, in order, of at most MAX_BATCH calls and `max_bytes` (one larger call is a batch)."""
    batch: list[ToolCall] = []
    size = 0
    for call in calls:
        call_bytes = len(dump(call).encode())
        if batch and (len(batch) == MAX_BATCH or size + call_bytes > max_bytes):
            yield batch
            batch, size = [], 0
        batch.append(call)
        size += call_bytes
    if batch:
        yield batch


def batch_item(call: ToolCall, attempt: int) -> ToolCallBody:
    """Return a call as an item of a batch."""
    if call.attempt == attempt and call.deadline_ms is not None:
        return call
    return call.model_copy(update={"attempt": attempt, "deadline_ms": call.deadline_ms or _deadline_ms()})


def _deadline_ms() -> int:
    return int(_socket_settings()["tool_answer_timeout_s"] * 1000)


@cache
def _socket_settings() -> dict[str, Any]:
    # Looking a setting up takes longer than giving a call its id.
    found: dict[str, Any] = settings.SOCKET
    return found
