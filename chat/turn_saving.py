"""Stores a turn's result, and tries again in the background while the database is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from django.db import Error as DatabaseError

from adiuva.accounts.keys import NoSuchUser
from adiuva.core import db
from adiuva.core.logging import log_failure
from chat import turn_rows
from chat.request import ChatRequest
from chat.turn_rows import ClaimedTurn, TurnOutcome

log = structlog.get_logger(__name__)

_ATTEMPTS: Final = 120
_RETRY_S: Final = 5.0

# The event loop holds its tasks weakly: without this reference a retry could be collected while it waits.
_retries: set[asyncio.Task[None]] = set()


async def save(request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome) -> str:
    """Store the result. Returns "", or the code of the error that the turn then ends with; never raises."""
    finish = partial(turn_rows.finish_turn, request=request, claimed=claimed, result=result)
    try:
        await db.run(finish)
    except NoSuchUser:
        return "user_gone"
    except Exception as error:
        log_failure("turn.save_deferred", error, turn=str(claimed.turn_id))
        retry = asyncio.get_running_loop().create_task(_retry(finish, claimed), name="save turn later")
        _retries.add(retry)
        retry.add_done_callback(_retries.discard)
        return "not_saved"
    return ""


async def _retry(finish: Callable[[], None], claimed: ClaimedTurn) -> None:
    for _ in range(_ATTEMPTS):
        await asyncio.sleep(_RETRY_S)
        try:
            await db.run(finish)
            return
        except DatabaseError:
            continue
        except NoSuchUser:
            return
    log.error("turn.save_failed", turn=str(claimed.turn_id))
