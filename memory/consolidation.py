"""Consolidation: what fades goes, past weeks are condensed, patterns are found.

Workers claim memories that are due one by one, by moving `consolidate_at` into the future: it is a lease, and when its
worker dies the memory comes again. `consolidated_at` says up to when entries were read for patterns. It is moved in the
transaction that keeps what was found, so that none is read twice or left out: who writes an entry holds the lock that a
claim skips, so an entry that a claim does not see yet is also newer.

Each step commits by itself and finds nothing to do a second time. The model is never asked inside a transaction.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Final

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.core import db
from adiuva.core.logging import log
from memory import entries, episode_condensing, patterns, retention
from memory.models import Memory

_LANES: Final = 4
_MOST: Final = 200  # memories a call
_NO_MORE_AFTER_S: Final = 60.0
_LEASE: Final = dt.timedelta(hours=1)
_LONGEST_S: Final = 45 * 60.0  # of a visit: well below the lease
_REST: Final = dt.timedelta(days=7)  # where nothing is new: patterns lose their weight, and entries fade
_NEWS: Final = dt.timedelta(hours=24)  # that something new waits for more
_SOON: Final = dt.timedelta(minutes=2)
_MODEL_AWAY: Final = dt.timedelta(minutes=30)
_MODEL_REFUSES: Final = dt.timedelta(hours=24)  # no key, no quota: until somebody sees to it


@dataclass(frozen=True, slots=True)
class ClaimedMemory:
    """A claim. `now` is the database's clock at that time, `since` the `now` of the last one."""

    user_id: uuid.UUID
    now: dt.datetime
    since: dt.datetime | None
    lease: dt.datetime


async def consolidate_due() -> int:
    """Visit memories that are due, a few at once and for about a minute. Returns how many.

    Any number of workers may call it. Old receipts go here, too, of all users.
    """
    await db.run(retention.delete_expired_receipts)
    until = asyncio.get_running_loop().time() + _NO_MORE_AFTER_S
    visited = 0

    async def lane() -> None:
        nonlocal visited
        while visited < _MOST and asyncio.get_running_loop().time() < until:
            visit = await db.run(_claim)
            if visit is None:
                return
            visited += 1
            await _visit(visit)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(_LANES):
            lanes.create_task(lane())
    return visited


@transaction.atomic
def _claim() -> ClaimedMemory | None:
    due = Q(consolidate_at__lte=Now()) | Q(consolidate_at=None, consolidated_at__lte=Now() - _REST)
    memory = (
        Memory.objects.select_for_update(skip_locked=True, no_key=True)
        .filter(due, enabled=True)
        .order_by("consolidate_at", "pk")
        .annotate(now=Now())
        .first()
    )
    if memory is None:
        return None
    visit = ClaimedMemory(memory.pk, memory.now, memory.consolidated_at, memory.now + _LEASE)
    Memory.objects.filter(pk=memory.pk).update(consolidate_at=visit.lease)
    return visit


async def _visit(visit: ClaimedMemory) -> None:
    """One user's trouble is no other's: whatever else goes wrong, the memory comes again when its lease has run out."""
    user_id = str(visit.user_id)
    try:
        async with asyncio.timeout(_LONGEST_S):
            await _consolidate(visit)
    except llm.ModelError as error:
        log.warning("memory.consolidation_put_off", user_id=user_id, error=error.code)
        wait = _MODEL_AWAY if error.transient else _MODEL_REFUSES
        await db.run(_put_off, visit, max(wait, dt.timedelta(seconds=error.retry_after or 0)))
    except NoSuchUser:
        pass  # and with the user all that there was to do
    except Exception as error:
        log.error("memory.consolidation_failed", user_id=user_id, error=type(error).__name__)


async def _consolidate(visit: ClaimedMemory) -> None:
    user_id = visit.user_id
    await db.run(retention.delete_expired_entries, user_id)
    model = llm.chat_model()
    more = await episode_condensing.condense(user_id, model)
    found = await patterns.review(user_id, model, since=visit.since, now=visit.now)
    await db.run(_conclude, visit, found, more)


@transaction.atomic
def _conclude(visit: ClaimedMemory, found: patterns.PatternReview, more: bool) -> None:
    """Keep what was found about patterns, and with it that it was read."""
    memory = entries.lock_memory(visit.user_id)
    if memory.consolidate_at != visit.lease or not memory.enabled:
        return  # another worker has it now, or the user wants none of it
    if not patterns.is_unchanged(visit.user_id, found):
        _put_off(visit, _SOON)
        return
    patterns.apply_claims(visit.user_id, found)
    patterns.decay(visit.user_id)
    wait: dt.timedelta | None = None
    if more or found.more:
        wait = _SOON
    elif patterns.has_new_evidence(visit.user_id, visit.now):
        wait = _NEWS
    Memory.objects.filter(pk=visit.user_id).update(
        consolidated_at=found.until, consolidate_at=None if wait is None else Now() + wait
    )


def _put_off(visit: ClaimedMemory, wait: dt.timedelta) -> None:
    Memory.objects.filter(pk=visit.user_id, consolidate_at=visit.lease).update(consolidate_at=Now() + wait)
