"""Renews the leases of a process's turns, with one UPDATE however many run, and none while no turn runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

import structlog

from adiuva.core import db, leases
from adiuva.core.leases import Lease
from adiuva.core.logging import log_failure
from chat.claimed_turn import lease_duration
from chat.models import Turn

log = structlog.get_logger(__name__)

# The interval after a failure: leases run out while the database is away, and should be renewed before the sweep comes.
_RETRY_S: Final = 1.0


class TurnLeases:
    """A timer of one event loop that runs as long as `held` names leases. `start` it when there is a new one."""

    def __init__(self, held: Callable[[], Collection[Lease[Turn]]]) -> None:
        self._held = held
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="renew turn leases")

    async def _run(self) -> None:
        renew_s = lease_duration().total_seconds() / 3
        wait_s = renew_s
        while True:
            await asyncio.sleep(wait_s)
            if not (held := self._held()):
                return
            try:
                await db.run(leases.renew_all, held)
                wait_s = renew_s
            except Exception as error:
                log_failure("turn.leases_not_renewed", error, logger=log, turns=len(held))
                wait_s = min(_RETRY_S, renew_s)
