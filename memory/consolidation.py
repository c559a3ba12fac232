"""Consolidation: delete expired entries, condense past weeks and find patterns, in a worker.

A worker leases one due memory at a time. `consolidated_at` is the time up to which entries were read for patterns. It
moves in the transaction that writes the patterns, so that no entry is read twice or left out: writers of entries hold
the lock that a claim skips, so an entry that a claim does not see yet is also newer than the claim.

Each step commits by itself and can be repeated. No transaction is open while the model answers.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Final

import structlog
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.core import db, leases
from adiuva.core.leases import Lease, LeaseLost
from adiuva.core.logging import log_failure
from billing import usage
from billing.models import Purpose
from memory import entries, episode_condensing, pattern_review, patterns, retention
from memory.models import Memory

_CONCURRENCY: Final = 4
_MAX_MEMORIES: Final = 200
_CLAIM_FOR_S: Final = 60.0
_LEASE: Final = dt.timedelta(hours=1)
# The longest time for one memory; well below the lease.
_TIMEOUT_S: Final = 45 * 60.0
# Applies even without new entries: patterns lose confidence with time, and entries expire.
_IDLE_INTERVAL: Final = dt.timedelta(days=7)
# How long a new entry waits for more.
_NEWS_INTERVAL: Final = dt.timedelta(hours=24)
_SOON: Final = dt.timedelta(minutes=2)
_RETRY_TRANSIENT: Final = dt.timedelta(minutes=30)
# The pause after a refusal of the model (no key, no quota), which lasts until an operator changes something.
_RETRY_PERMANENT: Final = dt.timedelta(hours=24)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimedMemory:
    """A leased memory. `now` is the database's clock at the claim, `since` that of the last consolidation."""

    user_id: uuid.UUID
    now: dt.datetime
    since: dt.datetime | None
    lease: Lease[Memory]


async def consolidate_due() -> int:
    """Consolidate due memories, a few at once, for about a minute. Returns how many.

    Any number of workers may call it. It also deletes expired receipts of all users.
    """
    await db.run(retention.delete_expired_receipts)
    until = asyncio.get_running_loop().time() + _CLAIM_FOR_S
    count = 0

    async def work() -> None:
        nonlocal count
        while count < _MAX_MEMORIES and asyncio.get_running_loop().time() < until:
            claimed = await db.run(_claim)
            if claimed is None:
                return
            count += 1
            await _consolidate(claimed)

    async with asyncio.TaskGroup() as workers:
        for _ in range(_CONCURRENCY):
            workers.create_task(work())
    return count


def _claim() -> ClaimedMemory | None:
    due = Q(consolidate_at__lte=Now()) | Q(consolidate_at=None, consolidated_at__lte=Now() - _IDLE_INTERVAL)
    rows = leases.claim(Memory.objects.filter(due, enabled=True).order_by("consolidate_at", "pk"), _LEASE)
    if not rows:
        return None
    memory = rows[0]
    return ClaimedMemory(memory.pk, memory.claimed_at, memory.consolidated_at, memory.lease(_LEASE))


async def _consolidate(claimed: ClaimedMemory) -> None:
    """Consolidate one memory. A failure does not affect other users: the memory is due again after its lease."""
    user_id = str(claimed.user_id)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await _run_steps(claimed)
    except llm.ModelError as error:
        log.warning("consolidation.deferred", user_id=user_id, code=error.code)
        wait = _RETRY_TRANSIENT if error.transient else _RETRY_PERMANENT
        wait = max(wait, dt.timedelta(seconds=error.retry_after or 0))
        await db.run(_defer, claimed, wait)
    except (NoSuchUser, LeaseLost):
        pass
    except Exception as error:
        log_failure("consolidation.failed", error, user_id=user_id)


async def _run_steps(claimed: ClaimedMemory) -> None:
    user_id = claimed.user_id
    await db.run(retention.delete_expired_entries, user_id)
    model = llm.chat_model(purpose="memory")
    async with usage.metered(user_id, Purpose.MEMORY):
        more = await episode_condensing.condense(user_id, model)
        review = await pattern_review.review(user_id, model, since=claimed.since, now=claimed.now)
    await db.run(_finish, claimed, review, more)


@transaction.atomic
def _finish(claimed: ClaimedMemory, review: pattern_review.PatternReview, more: bool) -> None:
    """Write the patterns found, and up to when entries were read. Raises LeaseLost, with nothing written."""
    user_id = claimed.user_id
    memory = entries.lock_memory(user_id)
    if not memory.enabled:
        claimed.lease.release()
        return
    if not patterns.is_unchanged(user_id, review):
        claimed.lease.release(consolidate_at=Now() + _SOON)
        return
    patterns.apply_claims(user_id, review)
    patterns.decay(user_id)
    wait: dt.timedelta | None = None
    if more or review.more:
        wait = _SOON
    elif pattern_review.has_new_evidence(user_id, claimed.now):
        wait = _NEWS_INTERVAL
    claimed.lease.release(consolidated_at=review.until, consolidate_at=None if wait is None else Now() + wait)


def _defer(claimed: ClaimedMemory, wait: dt.timedelta) -> None:
    try:
        claimed.lease.release(consolidate_at=Now() + wait)
    except LeaseLost:
        pass
