"""Which tiers may go to which model provider, and the receipts of what went."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from adiuva.llm import ChatModel, EmbeddingModel
from memory.models import Receipt, Tier

ALL_TIERS: Final = frozenset(Tier)


def readable_tiers(policy: Mapping[str, object] | None, provider: str) -> frozenset[Tier]:
    """The tiers that a provider may read. No provider (`""`: it is done in this process) may read all.

    A policy names, by tier, the providers that may; a tier that it does not name goes to any.
    """
    if not provider or not policy:
        return ALL_TIERS
    return frozenset(tier for tier in Tier if _may_read(policy.get(tier), provider))


def _may_read(providers: object, provider: str) -> bool:
    return providers is None or (isinstance(providers, list) and provider in providers)


def write_receipt(
    *,
    user_id: uuid.UUID,
    purpose: Receipt.Purpose,
    model: ChatModel | EmbeddingModel,
    entries: Sequence[uuid.UUID],
    withheld: Collection[str] = (),
    turn_id: uuid.UUID | None = None,
    conversation_id: uuid.UUID | None = None,
) -> None:
    """Write down that entries left for a model. What leaves for nobody, or is nothing, needs none."""
    if model.provider and (entries or withheld):
        Receipt.objects.create(
            user_id=user_id,
            purpose=purpose,
            turn_id=turn_id,
            conversation_id=conversation_id,
            provider=model.provider,
            model=model.name,
            entries=list(entries),
            withheld=sorted(withheld),
        )
