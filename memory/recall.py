"""Recall: the entries that a model is given, chosen by policy, fitted to a budget and unsealed.

A turn's recall is one statement. To the two lists of memory.ranking it adds all core entries, the latest episodes and
the most certain patterns.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson
import structlog

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken
from adiuva.core.db import prepared_cursor
from memory import entry_content, ranking, vector_space
from memory.models import Entry, Memory, Tier
from memory.preferences import readable_tiers
from memory.search import needs_vector, search

# Patterns of less confidence are not recalled.
MIN_PATTERN_CONFIDENCE: Final = 0.6
CHARS_PER_TOKEN: Final = 4
# Entries of a tier that each list brings into a turn.
_PER_TIER: Final = 12
_RECENT_EPISODES: Final = 3
# Nearest vectors, of all tiers, that are examined for a turn.
_MAX_NEAR: Final = 100
# What a prompt adds to each entry: label, date and punctuation.
_LINE_OVERHEAD_CHARS: Final = 40
# Entries other than core that may be too long for what is left of the budget before no shorter one is looked for.
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
    """`withheld`: tiers with entries for this question that the policy keeps from the provider."""

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
    """What a turn should know: all core entries, then those that fit best. Empty while the memory is off.

    `vector` is the question's, of the current space; without one, only words are compared. `provider` is that of the
    model that will read the entries.
    """
    by_bits = user_id in _have_many
    parameters = ranking.parameters(
        user_id,
        question,
        vector,
        list(Tier),
        per_tier=_PER_TIER,
        max_near=_MAX_NEAR,
        now=now,
        by_bits=by_bits,
    )
    parameters |= {
        "min_confidence": MIN_PATTERN_CONFIDENCE,
        "recent": _RECENT_EPISODES,
        "patterns": _PER_TIER,
    }
    with prepared_cursor() as cursor:
        near, has_many = ranking.near_sql(vector, by_bits=by_bits), "NULL" if by_bits else ranking.HAS_MANY
        cursor.execute(_RECALL.format(near=near, has_many=has_many), parameters)
        rows = cursor.fetchall()
    if rows[0][2]:
        _note_many(user_id)
    allowed = readable_tiers(orjson.loads(rows[0][1] or b"null"), provider)
    found = [_Row(*row[3:]) for row in rows if row[3] is not None]
    withheld = {Tier(tier) for tier in {row.tier for row in found}} - allowed
    readable = sorted((row for row in found if row.tier in allowed), key=_best_first)
    return RecallResult(_unseal_within(user_id, readable, limit_tokens), withheld)


def embed_and_recall(
    *, user_id: uuid.UUID, question: str, provider: str, limit_tokens: int, now: dt.datetime
) -> RecallResult | None:
    """The same with the question's vector. None if that takes a request to the embedding model, which pays only for a
    user who has entries that it may read."""
    vector = vector_space.embed_now(question, user_id)
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
    """What fits a question that a model asks, of any tier, best first. Empty while the memory is off."""
    memory = Memory.objects.filter(pk=user_id).first()
    if memory is None or not memory.enabled:
        return RecallResult()
    allowed = readable_tiers(memory.policy, provider)
    hits = search(user_id=user_id, question=question, vector=vector, now=now, limit=limit)
    rows = (_Row._make([*(getattr(hit.entry, name) for name in _COLUMNS), hit.score]) for hit in hits)
    readable = (row for row in rows if row.tier in allowed)
    return RecallResult(
        _unseal_within(user_id, readable, limit * _ENTRY_BUDGET_TOKENS),
        {Tier(hit.entry.tier) for hit in hits} - allowed,
    )


def read_entry(user_id: uuid.UUID, entry_id: uuid.UUID) -> RecalledEntry | None:
    """One entry; None if it does not exist, belongs to another user or cannot be unsealed."""
    rows = Entry.objects.of(user_id).filter(pk=entry_id).values_list(*_COLUMNS)
    found = _unseal_within(user_id, (_Row._make([*row, 0.0]) for row in rows), _ENTRY_BUDGET_TOKENS)
    return found[0] if found else None


class _Row(NamedTuple):
    id: uuid.UUID
    tier: str
    sealed: bytes
    confidence: float | None
    valid_from: dt.datetime
    began_at: dt.datetime | None
    ended_at: dt.datetime | None
    score: float


_COLUMNS: Final = _Row._fields[:-1]

_RECALL: Final = f"""
WITH fits AS ({ranking.LISTS}
    UNION ALL
    (SELECT id, NULL, NULL FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'core' AND valid_to IS NULL AND NOT proposed)
    UNION ALL
    (SELECT id, row_number() OVER (ORDER BY valid_from DESC), 1 FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'episodic' AND valid_to IS NULL AND NOT proposed
     ORDER BY valid_from DESC LIMIT %(recent)s)
    UNION ALL
    (SELECT id, row_number() OVER (ORDER BY confidence DESC), 1 FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'proactive' AND valid_to IS NULL AND NOT proposed
        AND confidence >= %(min_confidence)s
     ORDER BY confidence DESC LIMIT %(patterns)s)
)
SELECT memory.enabled, memory.policy::text, {{has_many}}, fit.*
FROM (VALUES (1)) AS one
LEFT JOIN memory_memory AS memory ON memory.user_id = %(user)s
LEFT JOIN LATERAL (
    SELECT e.id, e.tier, e.sealed, e.confidence, e.valid_from, e.began_at, e.ended_at, {ranking.SCORE} AS score
    FROM (SELECT id, {ranking.FUSED_RANK} FROM fits GROUP BY id) AS fused CROSS JOIN LATERAL ({ranking.ENTRY}) AS e
    WHERE memory.enabled IS NOT FALSE AND (e.tier <> 'proactive' OR e.confidence >= %(min_confidence)s)
) AS fit ON true
"""  # noqa: S608


# Users of whom this process knows that they have many vectors.
_have_many: Final[set[uuid.UUID]] = set()
_MOST_NOTED: Final = 50_000


def _note_many(user_id: uuid.UUID) -> None:
    if len(_have_many) >= _MOST_NOTED:
        _have_many.clear()
    _have_many.add(user_id)


def _best_first(row: _Row) -> tuple[bool, float, float]:
    """Core entries before all others; among each, those that fit best, then the newest."""
    return row.tier != Tier.CORE, -row.score, -row.valid_from.timestamp()


def _unseal_within(user_id: uuid.UUID, rows: Iterable[_Row], limit_tokens: int) -> list[RecalledEntry]:
    """As many entries as fit the budget, none of them cut."""
    cipher = cipher_for(user_id)
    left, too_long = limit_tokens * CHARS_PER_TOKEN, 0
    found = []
    for row in rows:
        try:
            content = entry_content.unseal_content(row.sealed, row.id, row.tier, cipher)
        except SealBroken:
            log.error("memory.seal_broken", user_id=str(user_id), entry_id=str(row.id))
            continue
        size = len(content.searchable_text) + _LINE_OVERHEAD_CHARS
        if size > left:
            # A shorter one may still fit. Every core entry that fits is given.
            too_long += row.tier != Tier.CORE
            if too_long == _MAX_TOO_LONG:
                break
            continue
        left -= size
        found.append(
            RecalledEntry(
                id=row.id,
                tier=Tier(row.tier),
                content=content.content,
                key=content.key,
                since=row.valid_from,
                confidence=row.confidence,
                began_at=row.began_at,
                ended_at=row.ended_at,
            )
        )
    return found
