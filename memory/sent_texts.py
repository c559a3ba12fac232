"""Embeds texts that clients send. Only a receipt is stored, and only if a provider read the text.

The text is no entry of the memory, so it has no tier that says who may read it: the user must let its provider read
every tier.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from asgiref.sync import async_to_sync
from django.db import close_old_connections

from adiuva import llm
from adiuva.core.errors import Forbidden, Text
from adiuva.llm import EmbeddingModel
from billing import usage
from billing.models import Purpose
from memory import text_embedding
from memory.models import Receipt
from memory.preferences import ALL_TIERS, get_memory, readable_tiers


class ProviderWithheld(Forbidden):
    """The user's policy keeps a tier of the memory from the provider of the embedding model."""

    code = "provider_withheld"

    def __init__(self, provider: str, tiers: list[str]) -> None:
        super().__init__(
            Text(
                "your memory's policy keeps texts from {provider}, which would read this one",
                provider=provider,
            ),
            provider=provider,
            tiers=tiers,
        )


@dataclass(frozen=True, slots=True)
class Embedded:
    """A text's vector. `provider`: who read the text; empty if it did not leave the server."""

    vector: list[float]
    model: str
    provider: str


def embed(*, user_id: UUID, text: str) -> Embedded:
    """Return the vector of a text, from a thread without an event loop. Raises ProviderWithheld or ModelError."""
    model = llm.embedding_model()
    vector = text_embedding.embed_now(text, user_id)
    if vector is None:
        _require_allowed(user_id, model.provider)
        if model.provider:
            Receipt.objects.create(
                user_id=user_id,
                purpose=Receipt.Purpose.TEXT,
                provider=model.provider,
                model=model.name,
                entries=[],
            )
        close_old_connections()  # the model may take a while, and other threads wait for the pool's connections
        vector = async_to_sync(_embed)(model, text, user_id)
    return Embedded(vector, model.name, model.provider)


def _require_allowed(user_id: UUID, provider: str) -> None:
    withheld = ALL_TIERS - readable_tiers(get_memory(user_id).policy, provider)
    if withheld:
        raise ProviderWithheld(provider, sorted(withheld))


async def _embed(model: EmbeddingModel, text: str, user_id: UUID) -> list[float]:
    async with usage.metered(user_id, Purpose.VECTORS):
        return (await model.embed([text]))[0]
