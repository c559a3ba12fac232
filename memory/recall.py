"""What fits a question, of all that is remembered of a user: in one query, and within a budget.

Four lists are ranked by the database: what lies near the question's vector, what has its words, the latest episodes,
the surest patterns. They are fused by reciprocal rank (Cormack, Clarke and Büttcher, 2009), so that their scores need
not be compared, and weighed a little by how new an entry is and how often it was used.

Words are looked up by their keyed hashes; one that stands in few of a user's entries counts for more. Vectors are
compared with all of the user's own: one index over everybody's rows finds half of them (the user is one of many), and
a user with so many rows that it pays gets one of their own (memory.vector_indexes), which this query then uses.
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from django.db import connection

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken
from adiuva.core.db import prepared_cursor
from adiuva.core.logging import log
from memory import entries, provider_policy, vector_indexes, vector_space
from memory.models import Entry, Memory, Tier
from memory.terms import hash_terms

MIN_PATTERN_CONFIDENCE: Final = 0.6  # a pattern's confidence from which on it is recalled
CHARS_PER_TOKEN: Final = 4
_FIT: Final = 12  # entries of a tier that each list brings into a turn
_RECENT: Final = 3  # episodes
_REACH: Final = 100  # nearest vectors, of all tiers, that are looked through for a turn
_LOOK_AT: Final = "200"  # rows, of an index over a user's own vectors
_SEARCHED: Final = 2_000  # the same for a search
_OF_A_WORD: Final = 40  # entries that are looked at for one word: one that stands in more tells little
_COMMON: Final = 0.05  # and weighs so much, where one that stands in a single entry weighs 1
_WORDS: Final = 60  # hashes of a question that are looked up
_MOST_CHARS: Final = 4_000  # of a question
_DAMPING: Final = 60  # of the reciprocal ranks: the first places differ little from each other
_GENTLY: Final = 0.1  # at most so much for being new, and for being used
_HALF_LIFE: Final = dt.timedelta(days=90)
_LINE_CHARS: Final = 40  # of an entry's label, date and marks in a prompt
_MISSES: Final = 8  # entries too long for what is left of a budget, after which no shorter one is looked for


@dataclass(frozen=True, slots=True)
class RecalledEntry:
    """An entry as a turn gets it. `since`: from when on it holds."""

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
    """`withheld`: tiers that hold something for this question and that the policy keeps from this provider."""

    entries: Sequence[RecalledEntry] = ()
    withheld: Collection[Tier] = ()


@dataclass(frozen=True, slots=True)
class RecallReader:
    """Who gets to read what is recalled, and in which turn: what a receipt says."""

    user_id: uuid.UUID
    provider: str
    model: str
    turn_id: uuid.UUID
    conversation_id: uuid.UUID | None


@dataclass(frozen=True, slots=True)
class SearchHit:
    """An entry that fits, still sealed. Scores order what one search found; they mean nothing beside another's."""

    entry: Entry
    score: float


def recall(
    *,
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    provider: str,
    limit_tokens: int,
    now: dt.datetime,
) -> RecallResult:
    """What a turn is to know: all that is core, then what fits best. Nothing where the memory is off.

    `vector` is the question's, of the present space; without one, words alone find. `provider` is who will read it.
    """
    asked = _asked(user_id, question, vector, list(Tier), fit=_FIT, reach=_REACH, now=now)
    # One plan for everybody cannot take an index over one user's rows.
    with connection.cursor() if vector_indexes.has_index(user_id) else prepared_cursor() as cursor:
        cursor.execute(
            _RECALL.format(near=_near(vector)),
            asked | {"sure": MIN_PATTERN_CONFIDENCE, "recent": _RECENT, "patterns": _FIT},
        )
        rows = cursor.fetchall()
    allowed = provider_policy.readable_tiers(orjson.loads(rows[0][1] or b"null"), provider)
    found = [_Row(*row[2:]) for row in rows if row[2] is not None]
    withheld = {Tier(tier) for tier in {row.tier for row in found}} - allowed
    return RecallResult(
        _opened(user_id, sorted((row for row in found if row.tier in allowed), key=_first), limit_tokens),
        withheld,
    )


def search(
    *,
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    now: dt.datetime,
    tiers: Collection[Tier] = tuple(Tier),
    limit: int = 20,
) -> list[SearchHit]:
    """The entries that hold and fit a question, by its words and its vector (of the present space), best first.

    It does not look at the memory's switch nor at its policy: what leaves for a model goes through `recall`.
    """
    asked = _asked(user_id, question, vector, tiers, fit=limit, reach=_SEARCHED, now=now)
    with connection.cursor() as cursor:
        cursor.execute(_SEARCH.format(near=_near(vector)), asked)
        scores = dict(cursor.fetchmany(limit))
    found = Entry.objects.of(user_id).current().in_bulk(list(scores))
    return [SearchHit(found[key], score) for key, score in scores.items() if key in found]


def search_for_model(
    *,
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    provider: str,
    limit: int,
    now: dt.datetime,
) -> RecallResult:
    """What fits a question of the model's own, whatever its tier, best first. Nothing where the memory is off."""
    memory = Memory.objects.filter(pk=user_id).first()
    if memory is None or not memory.enabled:
        return RecallResult()
    allowed = provider_policy.readable_tiers(memory.policy, provider)
    found = search(user_id=user_id, question=question, vector=vector, now=now, limit=limit)
    theirs = (_Row._make([*(getattr(one.entry, name) for name in _COLUMNS), one.score]) for one in found)
    return RecallResult(
        _opened(user_id, (row for row in theirs if row.tier in allowed), limit * _MOST_CHARS),
        {Tier(one.entry.tier) for one in found} - allowed,
    )


def read_entry(user_id: uuid.UUID, entry_id: uuid.UUID) -> RecalledEntry | None:
    """One entry, opened; None if it is not there, is another's or does not open."""
    rows = Entry.objects.of(user_id).filter(pk=entry_id).values_list(*_COLUMNS)
    return next(iter(_opened(user_id, (_Row._make([*row, 0.0]) for row in rows), _MOST_CHARS)), None)


def needs_vector(user_id: uuid.UUID) -> bool:
    """Whether something can be found by its vector, so that a question is to be shown to the model that makes them: not
    where nothing is remembered, nor where the policy keeps all of it from that model's provider."""
    found = Memory.objects.filter(pk=user_id).values_list("policy", flat=True).first()
    tiers = provider_policy.readable_tiers(found, llm.embedding_model().provider)
    return Entry.objects.of(user_id).current().filter(tier__in=tiers).exists()


def write_receipt(reader: RecallReader, recalled: RecallResult) -> None:
    """Write down that these left for a model, and that they were of use; in one round trip."""
    ids = [known.id for known in recalled.entries]
    if not ids and not recalled.withheld:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            _NOTE,
            {
                "user": reader.user_id,
                "ids": ids,
                "receipt": uuid.uuid4(),
                "turn": reader.turn_id,
                "conversation": reader.conversation_id,
                "provider": reader.provider,
                "model": reader.model,
                "withheld": sorted(recalled.withheld),
            },
        )


# ── How ─────────────────────────────────────────────────────────────────────────────────────────────────


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


# The predicates repeat those of a per-user index word for word (memory.vector_indexes); such an index looks at
# 40 rows if not told otherwise, which finds 8 of 10.
_NEAR: Final = """
    SELECT e.id, e.tier, row_number() OVER (PARTITION BY e.tier ORDER BY v.distance, e.id) AS place
    FROM (
        SELECT entry_id, vector::halfvec({dimensions}) <=> %(vector)s::halfvec({dimensions}) AS distance
        FROM memory_embedding
        WHERE user_id = %(user)s AND embedding_model = %(space)s AND vector_dims(vector) = {dimensions}
            AND (SELECT set_config('hnsw.ef_search', %(look_at)s, true)) IS NOT NULL
        ORDER BY distance LIMIT %(reach)s
    ) AS v
    JOIN memory_entry AS e ON e.id = v.entry_id
    WHERE e.user_id = %(user)s AND e.valid_to IS NULL AND e.tier = ANY(%(tiers)s) AND v.distance < 1
"""
_NOTHING_NEAR: Final = "SELECT NULL::uuid AS id, NULL::varchar AS tier, NULL::bigint AS place WHERE false"

# A term belongs to one user alone, so its posting list is read without looking at the user's other rows (OFFSET keeps
# the planner from joining them in); whose the rows are is checked all the same.
_WORDED: Final = """
    SELECT id, tier, row_number() OVER (PARTITION BY tier ORDER BY sum(rarity) DESC, id) AS place
    FROM (
        SELECT e.id, e.tier, CASE WHEN e.shared < %(of_a_word)s THEN 1 / sqrt(e.shared) ELSE %(common)s END AS rarity
        FROM unnest(%(terms)s::bigint[]) AS asked(term)
        CROSS JOIN LATERAL (
            SELECT id, tier, count(*) OVER () AS shared
            FROM (
                SELECT id, tier
                FROM (SELECT id, tier, user_id, valid_to FROM memory_entry WHERE terms @> ARRAY[asked.term] OFFSET 0)
                    AS listed
                WHERE user_id = %(user)s AND valid_to IS NULL LIMIT %(of_a_word)s
            ) AS first
        ) AS e
        WHERE e.tier = ANY(%(tiers)s)
    ) AS hits
    GROUP BY id, tier
"""

_LISTS: Final = f"""
    SELECT id, place FROM ({{near}}) AS near WHERE place <= %(fit)s
    UNION ALL
    SELECT id, place FROM ({_WORDED}) AS worded WHERE place <= %(fit)s
"""  # noqa: S608

# By its key, one by one (LIMIT): the planner takes the lists to be long, and would read the table for them.
_ENTRY: Final = "SELECT * FROM memory_entry WHERE memory_entry.id = fused.id AND user_id = %(user)s LIMIT 1"
_FUSED: Final = "COALESCE(sum(1.0::float8 / (%(damping)s + place)), 0) AS score"
_SCORE: Final = """
    (fused.score * (1 + %(gently)s * e.uses / (e.uses + 10.0)
        + %(gently)s * power(0.5, GREATEST(0, extract(epoch FROM %(now)s - e.valid_from)) / %(half_life)s)))::float8
"""

_RECALL: Final = f"""
WITH fits AS ({_LISTS}
    UNION ALL
    (SELECT id, NULL FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'core' AND valid_to IS NULL)
    UNION ALL
    (SELECT id, row_number() OVER (ORDER BY valid_from DESC) FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'episodic' AND valid_to IS NULL
     ORDER BY valid_from DESC LIMIT %(recent)s)
    UNION ALL
    (SELECT id, row_number() OVER (ORDER BY confidence DESC) FROM memory_entry
     WHERE user_id = %(user)s AND tier = 'proactive' AND valid_to IS NULL AND confidence >= %(sure)s
     ORDER BY confidence DESC LIMIT %(patterns)s)
)
SELECT memory.enabled, memory.policy::text, fit.*
FROM (VALUES (1)) AS one
LEFT JOIN memory_memory AS memory ON memory.user_id = %(user)s
LEFT JOIN LATERAL (
    SELECT e.id, e.tier, e.sealed, e.confidence, e.valid_from, e.began_at, e.ended_at, {_SCORE} AS score
    FROM (SELECT id, {_FUSED} FROM fits GROUP BY id) AS fused CROSS JOIN LATERAL ({_ENTRY}) AS e
    WHERE memory.enabled IS NOT FALSE AND (e.tier <> 'proactive' OR e.confidence >= %(sure)s)
) AS fit ON true
"""  # noqa: S608

# A receipt is of what leaves: a model in this process (no provider) reads what has not left. Rows are locked in one
# order, after the account as its deletion does, and one that somebody else has is passed over: a count is not worth
# waiting for.
_NOTE: Final = """
WITH reader AS (SELECT id FROM accounts_user WHERE id = %(user)s FOR KEY SHARE),
used AS (
    SELECT entry.id FROM reader JOIN memory_entry AS entry ON entry.user_id = reader.id
    WHERE entry.id = ANY(%(ids)s::uuid[])
    ORDER BY entry.id FOR NO KEY UPDATE OF entry SKIP LOCKED
),
counted AS (
    UPDATE memory_entry SET uses = uses + 1, used_at = now() FROM used WHERE memory_entry.id = used.id
)
INSERT INTO memory_receipt (id, user_id, purpose, turn_id, conversation_id, provider, model, entries, withheld)
SELECT %(receipt)s, id, 'turn', %(turn)s, %(conversation)s, %(provider)s, %(model)s, %(ids)s::uuid[],
    %(withheld)s::varchar[]
FROM reader WHERE %(provider)s <> ''
"""

_SEARCH: Final = f"""
SELECT e.id, {_SCORE} AS score
FROM (SELECT id, {_FUSED} FROM ({_LISTS}) AS fits GROUP BY id) AS fused CROSS JOIN LATERAL ({_ENTRY}) AS e
ORDER BY score DESC, e.id
"""  # noqa: S608


def _asked(
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    tiers: Collection[Tier],
    *,
    fit: int,
    reach: int,
    now: dt.datetime,
) -> dict[str, Any]:
    return {
        "user": user_id,
        "vector": orjson.dumps(vector).decode() if vector is not None else None,
        "space": vector_space.current_space(),
        "terms": hash_terms(question[:_MOST_CHARS], cipher_for(user_id))[:_WORDS],
        "tiers": [str(tier) for tier in tiers],
        "fit": fit,
        "reach": reach,
        "look_at": _LOOK_AT,
        "of_a_word": _OF_A_WORD,
        "common": _COMMON,
        "damping": _DAMPING,
        "gently": _GENTLY,
        "half_life": _HALF_LIFE.total_seconds(),
        "now": now,
    }


def _near(vector: Sequence[float] | None) -> str:
    """A vector of zeros, or one that no half-precision number holds, is near nothing."""
    if vector is None or not 0 < max(map(abs, vector), default=0) < 65_000 or math.isnan(sum(vector)):
        return _NOTHING_NEAR
    return _NEAR.format(dimensions=len(vector))


def _first(row: _Row) -> tuple[bool, float, float]:
    """Core entries first, of these and of the others those that fit best; then the newest."""
    return row.tier != Tier.CORE, -row.score, -row.valid_from.timestamp()


def _opened(user_id: uuid.UUID, rows: Iterable[_Row], limit_tokens: int) -> list[RecalledEntry]:
    """As many as the budget holds, each whole."""
    cipher = cipher_for(user_id)
    left, misses = limit_tokens * CHARS_PER_TOKEN, 0
    found = []
    for row in rows:
        try:
            said = entries.unseal_content(row.sealed, row.id, row.tier, cipher)
        except SealBroken:
            log.error("memory.seal_broken", user_id=str(user_id), entry=str(row.id))
            continue
        size = len(entries.searchable_text(said)) + _LINE_CHARS
        if size > left:
            misses += row.tier != Tier.CORE  # a shorter one may still fit, and of core all that does is given
            if misses == _MISSES:
                break
            continue
        left -= size
        found.append(
            RecalledEntry(
                id=row.id,
                tier=Tier(row.tier),
                content=said.content,
                key=said.key,
                since=row.valid_from,
                confidence=row.confidence,
                began_at=row.began_at,
                ended_at=row.ended_at,
            )
        )
    return found
