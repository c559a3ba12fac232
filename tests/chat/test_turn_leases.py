"""The timer that renews the leases of a process's turns: for as long as some run, and no longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.conf import LazySettings
from django.db.models import F

from adiuva.core import db
from adiuva.core.leases import Lease
from chat.models import Turn
from chat.turn_leases import TurnLeases
from tests.chat.factories import claim, make_request
from tests.factories import somebody

pytestmark = pytest.mark.usefixtures("committed_db")

LEASE_S = 0.3


def claim_three() -> list[Lease[Turn]]:
    return [claim(make_request(somebody().id)).lease for _ in range(3)]


def renewed(held: list[Lease[Turn]]) -> int:
    return Turn.objects.filter(
        pk__in=[lease.pk for lease in held], lease_until__gt=F("started_at") + held[0].duration
    ).count()


async def test_all_leases_are_renewed_while_turns_run_and_the_timer_ends_with_the_last(
    settings: LazySettings,
) -> None:
    settings.CHAT = {**settings.CHAT, "turn_lease_s": LEASE_S}
    held: list[Lease[Turn]] = await db.run(claim_three)
    mine = list(held)
    asked: list[Any] = []
    timer = TurnLeases(lambda: asked.append(1) or list(held))  # type: ignore[func-returns-value]
    async with asyncio.timeout(30):
        timer.start()
        timer.start()  # for the next turn, while the timer runs
        while await db.run(renewed, mine) < 3:
            await asyncio.sleep(0.02)
        held.clear()
        while "renew turn leases" in {task.get_name() for task in asyncio.all_tasks()}:
            await asyncio.sleep(0.02)
        rounds = len(asked)
        held += mine
        timer.start()  # it starts again with a turn that comes later
        while len(asked) == rounds:
            await asyncio.sleep(0.02)
        held.clear()
