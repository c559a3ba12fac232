"""Recall: the entries for a model, chosen by policy, fitted to a budget and unsealed.

A turn's recall is one statement. To the two lists of memory.ranking it adds all core entries, the latest episodes and
the most certain patterns. Core entries come first, then those that fit best, then the newest.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple

import orjson
import structlog

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken
from adiuva.core.db import prepared_cursor
from memory import entry_content, ranking, text_embedding
from memory.models import Entry, Memory, Tier
from memory.preferences import readable_tiers
from memory.search import needs_vector, search

# Patterns with less confidence are not recalled.
MIN_PATTERN_CONFIDENCE: Final = 0.6
CHARS_PER_TOKEN: Final = 4
# The most entries of a tier that each list brings into a turn.
_PER_TIER: Final = 12
_RECENT_EPISODES: Final = 3
# The number of nearest vectors, of all tiers, that are examined for a turn.
_MAX_NEAR: Final = 100
# The number of rows read at once.
_AT_A_TIME: Final = 32
# The characters that a prompt adds to each entry: label, date and punctuation.
_LINE_OVERHEAD_CHARS: Final = 40
# After this many entries other than core were too long for the rest of the budget, no shorter one is tried.
_MAX_TOO_LONG: Final = 8
# More than any entry has.
_ENTRY_BUDGET_TOKENS: Final = 4_000

log = structlog.get_logger(__name__)


class RecalledEntry(NamedTuple):
    """An unsealed entry. It has been true since `since`."""

    id: uuid.UUID
    tier: Tier
    content: str
    key: str | None
    since: dt.datetime
    confidence: float | None = None
    began_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class RecallResult:
    """The recalled entries. `withheld`: tiers with fitting entries that the policy keeps from the provider."""

    entries: Sequence[RecalledEntry] = ()
    withheld: Collection[Tier] = ()


def recall(
    *,
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    provider: str,
    limit_tokens: int,
    now: dt.datetime,
) -> RecallResult:
    """Return what a turn should know: all core entries, then those that fit best. Empty while the memory is off.

    `vector` is the question's, of the current space; without one, only words are compared. `provider` is that of the
    model that will read the entries.
    """
    size = _size_of(user_id)
    vectors = size.vectors if size else 0
    vector = ranking.usable(vector)
    parameters = ranking.parameters(
        user_id,
        question,
        vector,
        list(Tier),
        per_tier=_PER_TIER,
        max_near=_MAX_NEAR,
        now=now,
        vectors=vectors,
        common=size.common if size else (),
    )
    near = ranking.near_sql(vector, vectors=vectors)
    with prepared_cursor() as cursor:
        cursor.execute(_statement(near, "NULL" if size else ranking.COUNT), parameters)
        first = cursor.fetchone()
        *_, policy, counted = first
        # Not all of them fit, so not all become Python objects.
        rows: Iterable[Any] = chain(
            [first], chain.from_iterable(iter(lambda: cursor.fetchmany(_AT_A_TIME), []))
        )
        allowed = readable_tiers(orjson.loads(policy or b"null"), provider)
        withheld: set[Tier] = set()
        if len(allowed) < len(Tier):
            every = [row for row in rows if row[0] is not None]
            withheld = {_TIERS[row[1]] for row in every} - allowed
            rows = (row for row in every if row[1] in allowed)
        found = _unseal_within(user_id, rows if first[0] is not None else (), limit_tokens)
    if size is None:
        _note(user_id, counted)
    return RecallResult(found, withheld)


def embed_and_recall(
    *, user_id: uuid.UUID, question: str, provider: str, limit_tokens: int, now: dt.datetime
) -> RecallResult | None:
    """Return what `recall` does, with the question's vector.

    Returns None if that takes a request to the embedding model, which pays only for a user who has entries that it may
    read.
    """
    vector = text_embedding.embed_now(question, user_id)
    if vector is None and needs_vector(user_id):
        return None
    return recall(
        user_id=user_id,
        question=question,
        vector=vector,
        provider=provider,
        limit_tokens=limit_tokens,
        now=now,
    )


def search_for_model(
    *,
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    provider: str,
    limit: int,
    now: dt.datetime,
) -> RecallResult:
    """Return entries that fit a question of a model's, of any tier, best first. Empty while the memory is off."""
    memory = Memory.objects.filter(pk=user_id).first()
    if memory is None or not memory.enabled:
        return RecallResult()
    allowed = readable_tiers(memory.policy, provider)
    hits = search(user_id=user_id, question=question, vector=vector, now=now, limit=limit)
    rows = ([getattr(hit.entry, name) for name in _COLUMNS] for hit in hits if hit.entry.tier in allowed)
    return RecallResult(
        _unseal_within(user_id, rows, limit * _ENTRY_BUDGET_TOKENS),
        {Tier(hit.entry.tier) for hit in hits} - allowed,
    )


def read_entry(user_id: uuid.UUID, entry_id: uuid.UUID) -> RecalledEntry | None:
    """Return one entry; None if it does not exist, belongs to another user or cannot be unsealed."""
    rows = Entry.objects.of(user_id).filter(pk=entry_id).values_list(*_COLUMNS)
    found = _unseal_within(user_id, rows, _ENTRY_BUDGET_TOKENS)
    return found[0] if found else None


# The columns needed to unseal an entry, in this order.
_COLUMNS: Final = ("id", "tier", "sealed", "valid_from", "confidence", "began_at", "ended_at")
_TIERS: Final = {str(tier): tier for tier in Tier}
_SELECTED: Final = ", ".join(f"e.{name}" for name in _COLUMNS)
_FIT: Final = ", ".join(f"fit.{name}" for name in _COLUMNS)

_RECALL: Final = f"""
WITH fits AS ({ranking.LISTS}
    UNION ALL
    (SELECT id, row_number() OVER (ORDER BY valid_from DESC), 1 FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'episodic' AND valid_to IS NULL AND NOT proposed
     ORDER BY valid_from DESC LIMIT {_RECENT_EPISODES})
    UNION ALL
    (SELECT id, row_number() OVER (ORDER BY confidence DESC), 1 FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'proactive' AND valid_to IS NULL AND NOT proposed
        AND confidence >= {MIN_PATTERN_CONFIDENCE}
     ORDER BY confidence DESC LIMIT {_PER_TIER})
), fused AS (
    SELECT id, {ranking.FUSED_RANK} FROM fits GROUP BY id
)
SELECT {_FIT}, memory.policy, {{count}}
FROM (
    SELECT enabled, policy::text AS policy
    FROM (VALUES (1)) AS one LEFT JOIN memory_memory ON user_id = %(user)s OFFSET 0
) AS memory
LEFT JOIN LATERAL (
    SELECT {_SELECTED}, COALESCE({ranking.SCORE}, 0) AS score
    FROM memory_entry AS e LEFT JOIN fused ON fused.id = e.id
    WHERE e.user_id = %(user)s AND e.tier = 'core' AND e.valid_to IS NULL AND NOT e.proposed
        AND memory.enabled IS NOT FALSE
    UNION ALL
    SELECT {_SELECTED}, {ranking.SCORE} AS score
    FROM fused CROSS JOIN LATERAL ({ranking.ENTRY}) AS e
    WHERE memory.enabled IS NOT FALSE AND e.tier <> 'core'
        AND (e.tier <> 'proactive' OR e.confidence >= {MIN_PATTERN_CONFIDENCE})
) AS fit ON true
ORDER BY fit.tier <> 'core', fit.score DESC, fit.valid_from DESC
"""  # noqa: S608

# The text depends on little, and takes long to put together.
_statement: Final = lru_cache(64)(lambda near, count: _RECALL.format(near=near, count=count))


class _Size(NamedTuple):
    """The size of a user's memory as this process knows it, valid until a time of its monotonic clock."""

    vectors: int
    common: frozenset[int]
    until: float


_sizes: Final[dict[uuid.UUID, _Size]] = {}
_MOST_NOTED: Final = 5_000
_NOTED_S: Final = 600.0


def _size_of(user_id: uuid.UUID) -> _Size | None:
    found = _sizes.get(user_id)
    return found if found and time.monotonic() < found.until else None


def _note(user_id: uuid.UUID, vectors: int) -> None:
    if len(_sizes) >= _MOST_NOTED:
        _sizes.clear()
    common = ranking.common_terms(user_id, vectors) if ranking.has_many(vectors) else frozenset[int]()
    _sizes[user_id] = _Size(vectors, common, time.monotonic() + _NOTED_S)


def _unseal_within(
    user_id: uuid.UUID, rows: Iterable[Sequence[Any]], limit_tokens: int
) -> list[RecalledEntry]:
    """Return as many entries as fit the budget, none of them cut. Rows begin with _COLUMNS."""
    cipher = cipher_for(user_id)
    left, too_long = limit_tokens * CHARS_PER_TOKEN, 0
    found = []
    for row in rows:
        if left <= _LINE_OVERHEAD_CHARS:
            break
        entry_id, tier, sealed, since, confidence, began_at, ended_at, *_ = row
        try:
            content = entry_content.unseal_content(sealed, entry_id, tier, cipher)
        except SealBroken:
            log.error("memory.seal_broken", user_id=str(user_id), entry_id=str(entry_id))
            continue
        size = len(content.searchable_text) + _LINE_OVERHEAD_CHARS
        if size > left:
            # A shorter one may still fit. Every core entry that fits is recalled.
            too_long += tier != Tier.CORE
            if too_long == _MAX_TOO_LONG:
                break
            continue
        left -= size
        # By position, which is faster: this runs for every entry of every turn.
        found.append(
            RecalledEntry(
                entry_id,
                _TIERS[tier],
                content.content,
                content.key,
                since,
                confidence,
                began_at,
                ended_at,
            )
        )
    return found
