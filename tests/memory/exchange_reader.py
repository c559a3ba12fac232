"""Reading what was said in turns, in the process of the test."""

from __future__ import annotations

import asyncio
import uuid

from adiuva.core import db
from memory import fact_extraction
from memory.models import Exchange
from tests.socket_client import PATIENCE_S


def _waits(user_id: uuid.UUID) -> bool:
    return Exchange.objects.filter(user_id=user_id, recorded_at=None).exists()


async def read_exchanges(user_id: uuid.UUID) -> None:
    """Read what waits. A worker that other tests have started may be quicker: then wait until it has written."""
    async with asyncio.timeout(PATIENCE_S):
        while await db.run(_waits, user_id):
            await fact_extraction.extract_facts(user_id)
            await asyncio.sleep(0.01)
