"""Compute vectors for entries that have none of the configured model: new entries, or all after a change of model."""

from __future__ import annotations

import uuid
from typing import Final

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef

from adiuva import llm
from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.crypto import SealBroken
from billing import usage
from billing.models import Purpose
from memory import entries, entry_content, text_embedding
from memory.models import Embedding, Entry, Memory, Receipt
from memory.preferences import readable_tiers
from memory.receipts import write_receipt

_BATCH: Final = 64

log = structlog.get_logger(__name__)


async def embed_missing(user_id: uuid.UUID) -> int:
    """Embed every current entry that the embedding model may read. Returns how many.

    Raises ModelError; vectors written before stay, and another call continues.
    """
    done, broken = 0, set[uuid.UUID]()
    while (count := await embed_batch(user_id, broken=broken)) is not None:
        done += count
    return done


async def embed_batch(user_id: uuid.UUID, max_entries: int = _BATCH, *, broken: set[uuid.UUID]) -> int | None:
    """Embed up to `max_entries` entries. Returns how many got a vector, or None if there was nothing to embed.

    Leaves out the entries in `broken`, and adds those whose seal turns out to be broken.
    """
    model = llm.embedding_model()
    known_broken = len(broken)
    batch = await db.run(_read_batch, user_id, model, max_entries, broken)
    if not batch:
        return 0 if len(broken) > known_broken else None
    async with usage.metered(user_id, Purpose.MEMORY):
        vectors = await text_embedding.embed_texts([text for _, text, _ in batch], user_id)
    return await db.run(_save, user_id, model, batch, vectors)


def count_missing() -> tuple[int, int]:
    """Return how many entries of all users lack a vector of the configured model.

    Returns two counts: entries that may get one, and entries that a policy withholds from the model's provider.
    """
    model = llm.embedding_model()
    missing = Entry.objects.current().exclude(embedding__embedding_model=model.name)
    withheld = sum(
        missing.of(user_id).exclude(tier__in=readable_tiers(policy, model.provider)).count()
        for user_id, policy in Memory.objects.exclude(policy={}).values_list("pk", "policy").iterator()
    )
    return missing.count() - withheld, withheld


def users_to_embed(after: uuid.UUID, max_users: int = 100) -> list[uuid.UUID]:
    """Return users with missing vectors or vectors of other models, in the order of their ids, after a given id."""
    name = llm.embedding_model().name
    missing = Entry.objects.current().exclude(embedding__embedding_model=name)
    old = Embedding.objects.exclude(embedding_model=name)
    memories = Memory.objects.filter(
        Exists(missing.filter(user=OuterRef("pk"))) | Exists(old.filter(user=OuterRef("pk"))), pk__gt=after
    )
    return list(memories.order_by("pk").values_list("pk", flat=True)[:max_users])


@transaction.atomic
def _read_batch(
    user_id: uuid.UUID, model: llm.EmbeddingModel, max_entries: int, broken: set[uuid.UUID]
) -> list[tuple[uuid.UUID, str, bytes]]:
    """Return entries without a vector of this model: id, text and fingerprint. Writes the receipt for sending them.

    Those whose seal is broken are added to `broken` instead.
    """
    memory = Memory.objects.filter(pk=user_id).first()
    if memory is not None and not memory.enabled and model.provider:
        return []  # nothing is sent while the memory is off; switching it on embeds the rest
    rows = (
        Entry.objects.of(user_id)
        .current()
        .filter(tier__in=readable_tiers(memory.policy if memory else None, model.provider))
        .exclude(embedding__embedding_model=model.name)
        .exclude(pk__in=broken)
        .order_by("created_at", "pk")
        .values_list("pk", "tier", "sealed", "fingerprint")[:max_entries]
    )
    cipher = cipher_for(user_id)
    batch = []
    for pk, tier, sealed, fingerprint in rows:
        try:
            content = entry_content.unseal_content(sealed, pk, tier, cipher)
        except SealBroken:
            log.error("memory.seal_broken", user_id=str(user_id), entry_id=str(pk))
            broken.add(pk)
            continue
        batch.append((pk, content.searchable_text, bytes(fingerprint)))
    write_receipt(
        user_id=user_id, purpose=Receipt.Purpose.EMBED, model=model, entries=[pk for pk, _, _ in batch]
    )
    return batch


@transaction.atomic
def _save(
    user_id: uuid.UUID,
    model: llm.EmbeddingModel,
    batch: list[tuple[uuid.UUID, str, bytes]],
    vectors: list[list[float]],
) -> int:
    entries.lock_memory(user_id)
    # Entries that were changed or forgotten meanwhile must not get a vector of their former content.
    current = Entry.objects.of(user_id).current().only("pk", "tier", "fingerprint")
    found = current.in_bulk([pk for pk, _, _ in batch])
    rows = [
        Embedding(
            entry_id=pk, user_id=user_id, tier=found[pk].tier, embedding_model=model.name, vector=vector
        )
        for (pk, _, fingerprint), vector in zip(batch, vectors, strict=True)
        if pk in found and bytes(found[pk].fingerprint) == fingerprint
    ]
    Embedding.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["entry"],
        update_fields=["embedding_model", "vector", "bits"],
    )
    return len(rows)
