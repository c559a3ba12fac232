"""Celery tasks of memory. Each takes ids and calls one function."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

from celery import shared_task

from adiuva import llm
from adiuva.core.celery_thread_shares import Share, within
from memory import consolidation, entry_embedding, episodes, fact_extraction


@shared_task(name="memory.record")
@within(Share.MODELS)
def record(user_id: str) -> None:
    _run(fact_extraction.extract_facts(UUID(user_id)))


@shared_task(name="memory.episodes")
@within(Share.MODELS)
def make_episodes(user_id: str) -> None:
    _run(episodes.write_due(UUID(user_id)))


@shared_task(name="memory.sweep")
def sweep() -> None:
    """Enqueue work whose task was lost or failed, and episodes of idle conversations."""
    fact_extraction.enqueue_due()
    episodes.enqueue_due()


@shared_task(
    name="memory.embed",
    autoretry_for=(llm.ModelError,),
    retry_backoff=30,
    retry_backoff_max=3_600,
    max_retries=10,
)
@within(Share.MODELS)
def embed(user_id: str) -> None:
    _run(entry_embedding.embed_missing(UUID(user_id)))


@shared_task(name="memory.consolidate")
@within(Share.MODELS)
def consolidate() -> None:
    _run(consolidation.consolidate_due())


def _run(work: Coroutine[Any, Any, object]) -> None:
    """Run on a new event loop, and close the connections to models that belong to it."""

    async def run_and_close() -> None:
        try:
            await work
        finally:
            await llm.aclose()

    asyncio.run(run_and_close())
