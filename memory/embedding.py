"""Vectors for the entries that have none in the present space: new ones, and all of them after the model changed."""

from __future__ import annotations

import uuid
from typing import Final

from django.db import transaction
from django.db.models import Exists, OuterRef

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from memory import entries, provider_policy
from memory.models import Embedding, Entry, Memory, Receipt

_BATCH: Final = 64


async def embed_missing(user_id: uuid.UUID) -> int:
    """Give every entry that holds, and that the policy lets out, a vector of the present model. Returns how many.

    Raise a ModelError; what was done until then stays, and another call goes on from there.
    """
    done = 0
    while (count := await embed_batch(user_id)) is not None:
        done += count
    return done


async def embed_batch(user_id: uuid.UUID, most: int = _BATCH) -> int | None:
    """The same for some of them: how many got one, or None when none is left to do."""
    model = llm.embedding_model()
    batch = await db.run(_missing, user_id, model, most)
    if not batch:
        return None
    vectors = await model.embed([text for _, text, _ in batch])
    return await db.run(_keep, user_id, model, batch, vectors)


def count_missing() -> tuple[int, int]:
    """How many entries of all users have no vector of the present model: those that may get one, and those that their
    users' policies keep from its provider."""
    model = llm.embedding_model()
    missing = Entry.objects.current().exclude(embedding__embedding_model=model.name)
    withheld = sum(
        missing.of(user_id).exclude(tier__in=provider_policy.readable_tiers(theirs, model.provider)).count()
        for user_id, theirs in Memory.objects.exclude(policy={}).values_list("pk", "policy").iterator()
    )
    return missing.count() - withheld, withheld


def users_to_embed(after: uuid.UUID, most: int = 100) -> list[uuid.UUID]:
    """Users, in the order of their ids, whose vectors are not all of the present model."""
    name = llm.embedding_model().name
    missing = Entry.objects.current().exclude(embedding__embedding_model=name)
    old = Embedding.objects.exclude(embedding_model=name)
    memories = Memory.objects.filter(
        Exists(missing.filter(user=OuterRef("pk"))) | Exists(old.filter(user=OuterRef("pk"))), pk__gt=after
    )
    return list(memories.order_by("pk").values_list("pk", flat=True)[:most])


def delete_old_history_vectors(user_id: uuid.UUID) -> int:
    """Delete the vectors of other models that entries have which hold no more. Returns how many."""
    old = Embedding.objects.filter(user_id=user_id, entry__valid_to__isnull=False)
    return old.exclude(embedding_model=llm.embedding_model().name).delete()[0]


@transaction.atomic
def _missing(user_id: uuid.UUID, model: llm.EmbeddingModel, most: int) -> list[tuple[uuid.UUID, str, bytes]]:
    """Entries without a vector of this model: id, text, and the mark of what they say; with a receipt that they leave,
    whatever the model answers."""
    memory = Memory.objects.filter(pk=user_id).first()
    if memory is not None and not memory.enabled and model.provider:
        return []  # what is switched off does not leave; it gets its vectors when it is on again
    rows = (
        Entry.objects.of(user_id)
        .current()
        .filter(tier__in=provider_policy.readable_tiers(memory.policy if memory else None, model.provider))
        .exclude(embedding__embedding_model=model.name)
        .order_by("created_at", "pk")
        .values_list("pk", "tier", "sealed", "fingerprint")[:most]
    )
    cipher = cipher_for(user_id)
    batch = [
        (pk, entries.searchable_text(entries.unseal_content(sealed, pk, tier, cipher)), bytes(mark))
        for pk, tier, sealed, mark in rows
    ]
    provider_policy.write_receipt(
        user_id=user_id, purpose=Receipt.Purpose.EMBED, model=model, entries=[pk for pk, _, _ in batch]
    )
    return batch


@transaction.atomic
def _keep(
    user_id: uuid.UUID,
    model: llm.EmbeddingModel,
    batch: list[tuple[uuid.UUID, str, bytes]],
    vectors: list[list[float]],
) -> int:
    entries.lock_memory(user_id)
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
    return len(rows)
