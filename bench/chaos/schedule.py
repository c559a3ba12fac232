"""What is done to the servers and the sockets, and when: drawn from a seed before it begins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.chaos.servers import Servers
from bench.chaos.tcp_chaos_proxy import CUTS, Front

# Out of so many kills, each gets about so many.
_WEIGHTS: Final = {"worker": 34, "web": 24, "postgres": 15, "valkey": 15, "beat": 7, "devices": 5}
_DOWN_S: Final = 2.0  # at most, until who was killed is started again
_STRAIGHT_BACK: Final = 0.5  # of all come back at once


@dataclass(frozen=True)
class Blow:
    """`what` is a kind of process to kill, or how to cut a socket. `down_s` until it is started again."""

    at_s: float
    what: str
    down_s: float = 0.0


def plan(*, seconds: float, kills: int, cuts: int, chance: random.Random) -> list[Blow]:
    """As many blows as asked for, each kind of kill at least once if there is room, in order of time."""
    kinds = list(_WEIGHTS)[:kills]
    kinds += chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=kills - len(kinds))
    blows = [
        Blow(
            chance.uniform(0, seconds),
            kind,
            0.0 if chance.random() < _STRAIGHT_BACK else chance.uniform(0.0, _DOWN_S),
        )
        for kind in kinds
    ]
    blows += [Blow(chance.uniform(0, seconds), chance.choice(CUTS)) for _ in range(cuts)]
    return sorted(blows, key=lambda blow: blow.at_s)


async def rage(blows: Sequence[Blow], servers: Servers, front: Front, chance: random.Random) -> None:
    """Deal all blows. One that hits nothing, since all of its kind are down, is dealt a moment later."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for blow in blows:
        await asyncio.sleep(max(0.0, began + blow.at_s - loop.time()))
        if blow.what in CUTS:
            while not front.cut_one(blow.what):
                await asyncio.sleep(0.1)
            continue
        names = [name for name in servers.children if name.partition("-")[0] == blow.what]
        while not servers.kill(name := chance.choice(names)):
            await asyncio.sleep(0.1)
        loop.call_later(blow.down_s, servers.back, name)
    await asyncio.sleep(max(blow.down_s for blow in blows) if blows else 0)
