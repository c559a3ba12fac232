"""Draws from a seed which processes are killed and which sockets are cut, and when; then does it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.chaos.servers import Servers
from bench.chaos.tcp_chaos_proxy import CUTS, ChaosProxy

# Relative frequency of each kind of kill.
_WEIGHTS: Final = {"worker": 34, "web": 24, "postgres": 15, "valkey": 15, "beat": 7, "devices": 5}
_MAX_DOWNTIME_S: Final = 2.0  # longest time until a killed process is started again
_IMMEDIATE_RESTART_SHARE: Final = 0.5  # share of the killed processes that are restarted at once


@dataclass(frozen=True)
class Fault:
    """`kind` is a kind of process to kill, or a way to cut a socket. `down_s` is the time until the restart."""

    at_s: float
    kind: str
    down_s: float = 0.0


def plan(*, seconds: float, kills: int, cuts: int, rng: random.Random) -> list[Fault]:
    """Returns the faults in order of time. Each kind of kill comes at least once, if there are enough kills."""
    kinds = list(_WEIGHTS)[:kills]
    kinds += rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=kills - len(kinds))
    faults = [
        Fault(
            rng.uniform(0, seconds),
            kind,
            0.0 if rng.random() < _IMMEDIATE_RESTART_SHARE else rng.uniform(0.0, _MAX_DOWNTIME_S),
        )
        for kind in kinds
    ]
    faults += [Fault(rng.uniform(0, seconds), rng.choice(CUTS)) for _ in range(cuts)]
    return sorted(faults, key=lambda fault: fault.at_s)


async def inject(faults: Sequence[Fault], servers: Servers, proxy: ChaosProxy, rng: random.Random) -> None:
    """Inject all faults. One whose targets are all down waits until there is one."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for fault in faults:
        await asyncio.sleep(max(0.0, began + fault.at_s - loop.time()))
        if fault.kind in CUTS:
            while not proxy.cut_one(fault.kind):
                await asyncio.sleep(0.1)
            continue
        names = [name for name in servers.children if name.partition("-")[0] == fault.kind]
        while not servers.kill(name := rng.choice(names)):
            await asyncio.sleep(0.1)
        loop.call_later(fault.down_s, servers.restart, name)
    await asyncio.sleep(max(fault.down_s for fault in faults) if faults else 0)
