"""Celery tasks of the memory: each takes ids and calls one function."""

from __future__ import annotations

import asyncio
from uuid import UUID

from celery import shared_task

from adiuva import llm
from memory import embedding


@shared_task(name="memory.embed")
def embed(user_id: str) -> None:
    async def work() -> None:
        try:
            await embedding.embed_missing(UUID(user_id))
        finally:
            await llm.aclose()

    asyncio.run(work())
