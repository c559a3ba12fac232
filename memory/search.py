"""Search a user's current entries, best first. Ignores the memory's switch and policy: nothing is sent to a model.

Chat models read entries through memory.recall.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from asgiref.sync import async_to_sync
from django.db import close_old_connections
from django.utils import timezone

from adiuva import llm
from adiuva.core.db import prepared_cursor
from billing import usage
from billing.models import Purpose
from memory import ranking, text_embedding
from memory.models import Entry, Memory, Tier
from memory.preferences import readable_tiers

MAX_QUESTION_CHARS: Final = 1_000
# The number of nearest vectors, of all tiers, that are examined.
_MAX_NEAR: Final = 2_000


@dataclass(frozen=True, slots=True)
class SearchHit:
    """An entry that fits, still sealed. Scores of different searches cannot be compared."""

    entry: Entry
    score: float


_SEARCH: Final = f"""
SELECT e.id, {ranking.SCORE} AS score
FROM (SELECT id, {ranking.FUSED_RANK} FROM ({ranking.LISTS}) AS fits GROUP BY id) AS fused
CROSS JOIN LATERAL ({ranking.ENTRY}) AS e
ORDER BY score DESC, e.id
"""  # noqa: S608


def search(
    *,
    user_id: uuid.UUID,
    question: str,
    vector: Sequence[float] | None,
    now: dt.datetime,
    tiers: Collection[Tier] = tuple(Tier),
    limit: int = 20,
) -> list[SearchHit]:
    """Find entries by a question's words and by its vector, which is of the current space."""
    vector = ranking.usable(vector)
    parameters = ranking.parameters(
        user_id, question, vector, tiers, per_tier=limit, max_near=_MAX_NEAR, now=now
    )
    with prepared_cursor() as cursor:
        cursor.execute(_SEARCH.format(near=ranking.near_sql(vector)), parameters)
        scores = dict(cursor.fetchmany(limit))
    found = Entry.objects.of(user_id).current().in_bulk(list(scores))
    return [SearchHit(found[key], score) for key, score in scores.items() if key in found]


def embed_and_search(
    *, user_id: uuid.UUID, question: str, tiers: Collection[Tier], limit: int
) -> list[SearchHit]:
    """Find entries as `search` does, from a thread without an event loop; by words alone if the model is late."""
    vector = text_embedding.embed_now(question, user_id)
    if vector is None and needs_vector(user_id):
        close_old_connections()  # the model may take a while, and other threads wait for the pool's connections
        vector = async_to_sync(_embed)(question, user_id)
    return search(
        user_id=user_id, question=question, vector=vector, now=timezone.now(), tiers=tiers, limit=limit
    )


async def _embed(question: str, user_id: uuid.UUID) -> list[float] | None:
    async with usage.metered(user_id, Purpose.MEMORY):
        return await text_embedding.embed_question(question, user_id)


def needs_vector(user_id: uuid.UUID) -> bool:
    """Return whether the embedding model should see a question: only if there are
    entries that its provider may read."""
    policy = Memory.objects.filter(pk=user_id).values_list("policy", flat=True).first()
    tiers = readable_tiers(policy, llm.embedding_model().provider)
    return Entry.objects.of(user_id).current().filter(tier__in=tiers).exists()
