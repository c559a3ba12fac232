"""What a user looks for in their memory, from threads without an event loop."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Final

from asgiref.sync import async_to_sync
from django.db import close_old_connections
from django.utils import timezone

from memory import recall, vector_space
from memory.models import Tier
from memory.recall import SearchHit

MAX_QUESTION_CHARS: Final = 1_000  # characters


def embed_and_search(
    *, user_id: uuid.UUID, question: str, tiers: Collection[Tier], limit: int
) -> list[SearchHit]:
    """The entries that hold and fit a question, best first. By words alone where the model gives no vector in time."""
    vector = vector_space.embed_now(question)
    if vector is None and recall.needs_vector(user_id):
        close_old_connections()  # the model may take a while, and others wait for the pool's connections
        vector = async_to_sync(vector_space.embed_question)(question)
    return recall.search(
        user_id=user_id, question=question, vector=vector, now=timezone.now(), tiers=tiers, limit=limit
    )
