"""Vectors for the entries that have none in the present space: new ones, and all of them after the model changed."""

from __future__ import annotations

import uuid
from typing import Final

from django.db import transaction

from adiuva import db, llm
from adiuva.accounts.keys import cipher_for
from memory import entries, policy
from memory.models import Embedding, Entry, Memory, Receipt

_BATCH: Final = 64


async def embed_missing(user_id: uuid.UUID) -> int:
    """Give every entry that holds, and that the policy lets out, a vector of the present model. Returns how many.

    Raise a ModelError; what was done until then stays, and another call goes on from there.
    """
    model = llm.embedding_model()
    done = 0
    while batch := await db.run(_missing, user_id, model):
        vectors = await model.embed([text for _, text, _ in batch])
        done += await db.run(_keep, user_id, model, batch, vectors)
    return done


def _missing(user_id: uuid.UUID, model: llm.EmbeddingModel) -> list[tuple[uuid.UUID, str, bytes]]:
    """Entries without a vector of this model: id, text, and the mark of what they say."""
    found = Memory.objects.filter(pk=user_id).values_list("policy", flat=True).first()
    rows = (
        Entry.objects.of(user_id)
        .current()
        .filter(tier__in=policy.tiers_for(found, model.provider))
        .exclude(embedding__embedding_model=model.name)
        .order_by("created_at", "pk")
        .values_list("pk", "tier", "sealed", "fingerprint")[:_BATCH]
    )
    cipher = cipher_for(user_id)
    return [
        (pk, entries.text_of(entries.unsealed(sealed, pk, tier, cipher)), bytes(mark))
        for pk, tier, sealed, mark in rows
    ]


@transaction.atomic
def _keep(
    user_id: uuid.UUID,
    model: llm.EmbeddingModel,
    batch: list[tuple[uuid.UUID, str, bytes]],
    vectors: list[list[float]],
) -> int:
    entries.lock(user_id)
    # What was changed or forgotten meanwhile is not what the vector is of.
    still = dict(
        Entry.objects.of(user_id)
        .current()
        .filter(pk__in=[pk for pk, _, _ in batch])
        .values_list("pk", "fingerprint")
    )
    rows = [
        Embedding(entry_id=pk, user_id=user_id, embedding_model=model.name, vector=vector)
        for (pk, _, mark), vector in zip(batch, vectors, strict=True)
        if pk in still and bytes(still[pk]) == mark
    ]
    Embedding.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["entry"],
        update_fields=["embedding_model", "vector"],
    )
    policy.give_receipt(
        user_id=user_id,
        purpose=Receipt.Purpose.EMBED,
        model=model,
        entries=[pk for pk, _, _ in batch],
    )
    return len(rows)
