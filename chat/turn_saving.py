"""Stores a turn's result, and tries again in the background while the database is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import structlog
from django.db import Error as DatabaseError

from adiuva.accounts.keys import NoSuchUser
from adiuva.core import db
from adiuva.core.logging import log_failure
from chat import turn_ends
from chat.claimed_turn import ClaimedTurn, TurnOutcome
from chat.request import ChatRequest
from chat.turn_ends import StoredEnd

log = structlog.get_logger(__name__)

_ATTEMPTS: Final = 120
_RETRY_S: Final = 5.0

# The event loop holds its tasks weakly: without this reference a retry could be collected while it waits.
_retries: dict[asyncio.Task[None], ClaimedTurn] = {}


class Saved(NamedTuple):
    """The outcome of saving. `code`: that of the error with which the turn then ends, or ""."""

    code: str = ""
    end: StoredEnd = StoredEnd()


async def save(
    request: ChatRequest, claimed: ClaimedTurn, result: TurnOutcome, *, later: Callable[[StoredEnd], None]
) -> Saved:
    """Store the result; never raises. `later` is called once it is stored, if that was possible only later."""
    finish = partial(turn_ends.finish_turn, request=request, claimed=claimed, result=result)
    try:
        return Saved(end=await db.run(finish))
    except NoSuchUser:
        return Saved("user_gone")
    except Exception as error:
        log_failure("turn.save_deferred", error, turn=str(claimed.turn_id))
        retry = asyncio.get_running_loop().create_task(
            _retry(partial(finish, is_again=True), claimed, later), name="save turn later"
        )
        _retries[retry] = claimed
        retry.add_done_callback(_retries.pop)
        return Saved("not_saved")


def unsaved() -> list[ClaimedTurn]:
    """Return turns of this process that are over and whose results wait to be stored."""
    return list(_retries.values())


async def _retry(
    finish: Callable[[], StoredEnd], claimed: ClaimedTurn, later: Callable[[StoredEnd], None]
) -> None:
    for _ in range(_ATTEMPTS):
        await asyncio.sleep(_RETRY_S)
        try:
            end = await db.run(finish)
        except DatabaseError:
            continue
        except NoSuchUser:
            return
        later(end)
        return
    log.error("turn.save_failed", turn=str(claimed.turn_id))
