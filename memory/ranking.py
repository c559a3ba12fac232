"""SQL that ranks a user's entries by how well they fit a question, shared by memory.search and memory.recall.

The database ranks two lists of entries: those near the question's vector, and those with its words. The lists are fused
by reciprocal rank (Cormack, Clarke and Büttcher, 2009), so that their scores need not be comparable; words count as
much as vectors only where an entry has all words of the question. New and often used entries get a small bonus.

Words are looked up by their keyed hashes; a word that few of the user's entries have counts for more. Vectors are
compared with all of the user's own: one index over all users' rows would find only half of the nearest, since each user
is one of many. If a user has many, only the vectors with the nearest sign bits are compared (memory.sign_bits), which
an index by user holds.
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Collection, Sequence
from typing import Any, Final

from django.db import connection

from adiuva.accounts.keys import cipher_for
from adiuva.core.array_parameters import half_vector
from memory import text_embedding
from memory.models import Tier
from memory.sign_bits import question_bits
from memory.terms import hash_terms

# The most characters of a question that are used.
MAX_QUESTION_CHARS: Final = 4_000
# The number of vectors that are compared themselves: those with the nearest bits. They include 99.7 % of the ten
# nearest among 10,000, and 99.6 % of those among 30,000; with 150, 99.3 and 99.0 %.
_COMPARED: Final = 200
# From this many vectors on, comparing the bits first is faster.
_MANY: Final = 2_000
# One vector in so many is in the sample, and so many times as many as are compared are sorted: of 10,000, the 20th of
# 500 lets 400 pass, give or take 90.
_SAMPLED: Final = 20
_SORTED: Final = 2
# The most entries examined for one word. A word that more entries have says little; it weighs _COMMON_WORD_WEIGHT,
# where a word of a single entry weighs 1.
_MAX_ENTRIES_PER_WORD: Final = 40
_COMMON_WORD_WEIGHT: Final = 0.05
# The most term hashes of a question that are looked up.
_MAX_TERMS: Final = 60
# The number of entries that are searched for the user's common words, and the least number of entries, estimated from
# them, that have a common word: large enough that few words are taken for common that are not. Reading which entries
# have such a word takes longer than its weight is worth.
_SAMPLE: Final = 1_000
_ENTRIES_OF_COMMON_WORD: Final = 60
# Damping of reciprocal ranks: the larger, the less the first places differ.
_DAMPING: Final = 60
# The largest bonus for being new, and for being used, as a fraction of the score.
_MAX_BONUS: Final = 0.1
_NOVELTY_HALF_LIFE: Final = dt.timedelta(days=90)
# Components in half precision overflow beyond this.
_MAX_LENGTH: Final = 65_000

# Current entries have a vector; ENTRY checks that they still hold.
_NEAR: Final = """
    SELECT entry_id AS id, tier, row_number() OVER (PARTITION BY tier ORDER BY distance, entry_id) AS place
    FROM (
        SELECT entry_id, tier, vector <=> (SELECT %(vector)s::halfvec) AS distance
        FROM {compared} WHERE vector_dims(vector) = {dimensions}
        ORDER BY distance LIMIT %(max_near)s
    ) AS v
    WHERE tier = ANY(%(tiers)s::text[]) AND distance < 1
"""
_ALL: Final = """(
    SELECT entry_id, tier, vector FROM memory_embedding
    WHERE user_id = %(user)s AND embedding_model = %(space)s
) AS of_user"""
_DISTANCE: Final = "(bits <~> (SELECT %(bits)s::bit(1024))) + (bits <~> (SELECT %(inverted)s::bit(1024)))"
# The inner queries read the index alone. The outer one finds the rows by the same pages of it; by the primary key, each
# would be on a page of its own. Only vectors nearer than most of a sample are sorted, since PostgreSQL copies the rows
# that it sorts, which takes as long as comparing the bits. Ids are random, so the first ones are a random sample.
_NEAREST_BITS: Final = f"""(
    SELECT entry_id, tier, vector FROM memory_embedding
    WHERE user_id = %(user)s AND embedding_model = %(space)s AND entry_id = ANY(ARRAY(
        SELECT entry_id FROM memory_embedding
        WHERE user_id = %(user)s AND embedding_model = %(space)s AND {_DISTANCE} <= (
            SELECT max(distance) FROM (
                SELECT distance FROM (
                    SELECT {_DISTANCE} AS distance FROM memory_embedding
                    WHERE user_id = %(user)s AND embedding_model = %(space)s
                    ORDER BY entry_id LIMIT %(sampled)s
                ) AS sample ORDER BY distance LIMIT %(nearest_of_sample)s
            ) AS nearest
        )
        ORDER BY {_DISTANCE} LIMIT %(compared)s
    ))
) AS alike"""  # noqa: S608
# The number of a user's vectors, which decides how they are compared.
COUNT: Final = """
    (SELECT count(*) FROM memory_embedding WHERE user_id = %(user)s AND embedding_model = %(space)s)
"""
_NOTHING_NEAR: Final = "SELECT NULL::uuid AS id, NULL::varchar AS tier, NULL::bigint AS place WHERE false"

# A term belongs to one user, so its posting list is read without joining the user's other rows: OFFSET keeps the
# planner from doing so. The owner is checked all the same. The weight is the square of the share of the question's
# words, each by its rarity, that an entry has: one shared word of many must not outrank the nearest meaning.
_WITH_WORDS: Final = f"""
    WITH hits AS MATERIALIZED (
        SELECT term, id, tier,
            CASE WHEN shared < {_MAX_ENTRIES_PER_WORD} THEN 1 / sqrt(shared) ELSE {_COMMON_WORD_WEIGHT} END AS rarity
        FROM (
            SELECT question.term, e.id, e.tier, count(*) OVER (PARTITION BY question.term) AS shared
            FROM unnest(%(terms)s::bigint[]) AS question(term)
            CROSS JOIN LATERAL (
                SELECT id, tier
                FROM (SELECT id, tier, user_id, valid_to FROM memory_entry
                      WHERE terms @> ARRAY[question.term] OFFSET 0) AS listed
                WHERE user_id = %(user)s AND valid_to IS NULL LIMIT {_MAX_ENTRIES_PER_WORD}
            ) AS e
        ) AS counted
        WHERE tier = ANY(%(tiers)s::text[])
    ), question AS (
        SELECT cardinality(%(terms)s::bigint[]) - count(*) + COALESCE(sum(rarity), 0) AS rarity
        FROM (SELECT min(rarity) AS rarity FROM hits GROUP BY term) AS known
    )
    SELECT id, tier, row_number() OVER (PARTITION BY tier ORDER BY sum(hits.rarity) DESC, id) AS place,
        power(sum(hits.rarity) / min(question.rarity), 2) AS weight
    FROM hits CROSS JOIN question
    GROUP BY id, tier
"""  # noqa: S608

# (id, place, weight) of entries near the question's vector and of entries with its words: {near} is `near_sql()`.
LISTS: Final = f"""
    SELECT id, place, 1.0::float8 AS weight FROM ({{near}}) AS near WHERE place <= %(per_tier)s
    UNION ALL
    SELECT id, place, weight FROM ({_WITH_WORDS}) AS with_words WHERE place <= %(per_tier)s
"""  # noqa: S608

# Entries are looked up by id one by one (LIMIT): the planner overestimates the lists and would scan the table instead.
ENTRY: Final = """
    SELECT * FROM memory_entry
    WHERE memory_entry.id = fused.id AND user_id = %(user)s AND valid_to IS NULL LIMIT 1
"""
FUSED_RANK: Final = f"COALESCE(sum(weight / ({_DAMPING} + place)), 0) AS score"
_AGE: Final = "GREATEST(0, date_part('epoch', %(now)s - e.valid_from))"
SCORE: Final = f"""
    (fused.score * (1 + {_MAX_BONUS}::float8 * e.uses / (e.uses + 10.0::float8)
        + {_MAX_BONUS}::float8 * power(0.5::float8, {_AGE} / {_NOVELTY_HALF_LIFE.total_seconds()}::float8)))
"""


def has_many(vectors: int) -> bool:
    """Return whether comparing the bits first is faster."""
    return vectors >= _MANY


def usable(vector: Sequence[float] | None) -> Sequence[float] | None:
    """Return a vector that can be compared; None for none, zeros, or values beyond half precision."""
    return vector if vector is not None and 0 < math.hypot(*vector) < _MAX_LENGTH else None


def near_sql(vector: Sequence[float] | None, *, vectors: int = 0) -> str:
    """Return SQL for the list of entries near a usable vector; an empty list for none.

    `vectors`: the user's number of vectors, if known. Of many, only those with the nearest sign bits are compared.
    """
    if vector is None:
        return _NOTHING_NEAR
    return _NEAR.format(dimensions=len(vector), compared=_NEAREST_BITS if has_many(vectors) else _ALL)


def parameters(
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    tiers: Collection[Tier],
    *,
    per_tier: int,
    max_near: int,
    now: dt.datetime,
    vectors: int = 0,
    common: Collection[int] = (),
) -> dict[str, Any]:
    """Return the parameters of LISTS and SCORE for a question and its vector, a usable one.

    Each list brings `per_tier` entries; `max_near` of `vectors` are examined.
    `common`: hashes of words that are not looked up, unless the question has no others.
    """
    terms = hash_terms(question[:MAX_QUESTION_CHARS], cipher_for(user_id))
    terms = [term for term in terms if term not in common] or terms
    bits, inverted = question_bits(vector) if vector is not None and has_many(vectors) else (None, None)
    return {
        "user": user_id,
        "vector": half_vector(vector) if vector is not None else None,
        "space": text_embedding.current_space(),
        "terms": _array(terms[:_MAX_TERMS]),
        "tiers": _array(tiers),
        "per_tier": per_tier,
        "max_near": max_near,
        "bits": bits,
        "inverted": inverted,
        "compared": _COMPARED,
        "sampled": max(1, vectors // _SAMPLED),
        "nearest_of_sample": max(1, _SORTED * _COMPARED // _SAMPLED),
        "now": now,
    }


def _array(values: Collection[object]) -> str:
    """Write an array as PostgreSQL reads it: psycopg takes ten times as long to pass a list."""
    return f"{{{','.join(map(str, values))}}}"


def common_terms(user_id: uuid.UUID, entries: int) -> frozenset[int]:
    """Return hashes of the words that many of a user's `entries` have, by a sample: the newest, tier by tier."""
    statement = """
        SELECT term FROM (
            SELECT terms FROM memory_entry WHERE user_id = %s AND valid_to IS NULL
            ORDER BY tier, valid_from DESC LIMIT %s
        ) AS newest, unnest(terms) AS term GROUP BY term HAVING count(*) >= %s
    """
    seen = min(1, _SAMPLE / max(1, entries))
    with connection.cursor() as cursor:
        cursor.execute(statement, [user_id, _SAMPLE, _ENTRIES_OF_COMMON_WORD * seen])
        return frozenset(term for (term,) in cursor.fetchall())
