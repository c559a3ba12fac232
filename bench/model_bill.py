"""Compares our count of model use with the provider's bill: `python -m bench.model_bill [--quick]`

Users chat through two web processes and a worker remembers what they say, at a provider that keeps a bill. Some answers
are cancelled, some come without usage. Then web processes and workers are killed in the middle of their requests. Who
does what has users of their own, so that each figure is about one thing.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from bench.billing_model import PRICE_SETTING, BillingModel
from bench.harness import BenchServers, bench_servers, record, show

if TYPE_CHECKING:
    from adiuva.embedded.processes import Child
    from tests.chat.chat_client import ChatClient
    from tests.factories import Person

# Turns of each kind; a `tool` turn makes two requests.
TURNS: Final = {"told": 600, "tool": 200, "silent": 100, "slow": 300}
KILLS: Final = 50
QUICK: Final = 20
USERS_OF_A_KIND: Final = 4
TURNS_OF_A_KILL: Final = 6
MEMORY_S: Final = 1.5
MOST_WAIT_S: Final = 1.2
WORKER: Final = (
    "-m",
    "celery",
    "-A",
    "adiuva",
    "worker",
    "-Qruns,short",
    "--without-mingle",
    "--without-gossip",
)


class World:
    """The processes, who asks through them, and to whom each request belongs."""

    def __init__(self, servers: BenchServers, model: BillingModel) -> None:
        self.servers, self.model = servers, model
        self.env = {
            "ADIUVA_MODEL": "openai/billing",
            "ADIUVA_MODEL_API_BASE": model.url,
            "ADIUVA_MODEL_PRICE": PRICE_SETTING,
            "ADIUVA_PLANS": "1",
        }
        self.chance = random.Random(18)
        self.owners: dict[str, UUID] = {}
        self.ends: Counter[tuple[str, str | None, str | None]] = Counter()
        self.watched: list[int] = []
        self.webs = [servers.web_process(**self.env) for _ in range(2)]
        self.workers = [self._worker()]

    def _worker(self) -> Child:
        name = f"worker-{uuid4().hex[:8]}"
        return self.servers.run(name, *WORKER, "-n", f"{name}@localhost", **self.env)

    def message(self, person: Person, kind: str) -> str:
        key = uuid4().hex
        self.owners[key] = person.id
        return f"Please tell me of the boats in the harbour. #{key} {kind}"

    async def chat(self, kind: str, people: list[Person], turns: int) -> None:
        """Each of the people makes their share of the turns, one after the other."""
        await asyncio.gather(*(self._turns(kind, person, turns // len(people)) for person in people))

    async def _turns(self, kind: str, person: Person, turns: int) -> None:
        from tests.chat.chat_client import connect

        base = self.chance.choice(self.webs)[0]
        async with connect(base, person) as client:
            for _ in range(turns):
                key = await client.ask(self.message(person, kind))
                if kind == "slow":
                    await client.until(partial(_has_begun, client, key))
                    await asyncio.sleep(self.chance.random())
                    await client.cancel(key)
                end = (await client.ended(key)).end
                self.ends[kind, (end or {}).get("finish"), (end or {}).get("code")] += 1

    async def kill_web(self, people: list[Person]) -> None:
        """A web process dies while it answers; another one has taken its place."""
        from tests.chat.chat_client import connect

        self.webs.append(await asyncio.to_thread(lambda: self.servers.web_process(**self.env)))
        base, child = self.webs.pop(0)

        async def ask(person: Person) -> None:
            with suppress(Exception):  # its socket breaks
                async with connect(base, person) as client:
                    await client.say(self.message(person, "slow"))

        asking = [asyncio.create_task(ask(self.chance.choice(people))) for _ in range(TURNS_OF_A_KILL)]
        await asyncio.sleep(0.3 + self.chance.random() * MOST_WAIT_S)
        await asyncio.to_thread(child.kill)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def kill_worker(self, people: list[Person]) -> None:
        """A worker dies while it remembers."""
        self.workers.append(await asyncio.to_thread(self._worker))
        asking = [self._turns("told", person, 2) for person in people]
        await asyncio.gather(*asking)
        await _remember(people)
        await asyncio.sleep(self.chance.random() * MOST_WAIT_S)
        await asyncio.to_thread(self.workers.pop(0).kill)

    async def watch(self) -> None:
        """See each second that what is reserved is what is held, in one statement. Until it is cancelled."""
        from adiuva.core import db

        while True:
            self.watched.append(await db.run(_reserved_less_held))
            await asyncio.sleep(1)

    async def quiet(self, within_s: float) -> None:
        """Wait until nothing is asked of the model, for a while."""
        idle_since, until = time.monotonic(), time.monotonic() + within_s
        asked = len(self.model.bill)
        while time.monotonic() < min(until, idle_since + 4):
            await asyncio.sleep(0.2)
            if self.model.running or len(self.model.bill) != asked:
                idle_since, asked = time.monotonic(), len(self.model.bill)


def _reserved_less_held() -> int:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT COALESCE(sum(reserved), 0) FROM billing_allowance WHERE scope = 'user')"
            " - (SELECT COALESCE(sum(amount), 0) FROM billing_hold)"
        )
        return int(cursor.fetchone()[0])


async def _remember(people: Iterable[Person]) -> None:
    """Have the worker read what was said now, and not once its users have been quiet for a minute."""
    from adiuva.core import db
    from adiuva.core.enqueue import enqueue_on_commit

    for person in people:
        await db.run(enqueue_on_commit, "memory.record", person.id)


def _has_begun(client: ChatClient, key: str) -> bool:
    stream = client.streams.get(key)
    return stream is not None and (bool(stream.text) or stream.end is not None)


def _without_limits() -> None:
    """Plans reserve money for everybody, and there is enough of it."""
    from django.conf import settings

    from billing import plans
    from billing.models import Plan

    settings.PLANS = True
    plans.create_missing()
    Plan.objects.update(
        budget_micro=10**12, turn_micro=None, run_micro=None, requests_per_minute=10**6, burst=10**6
    )
    plans.forget()


async def _measure(world: World, share: int) -> dict[str, list[Person]]:
    from adiuva.core import db
    from tests.factories import somebody

    people = {
        kind: [await db.run(somebody) for _ in range(USERS_OF_A_KIND)] for kind in (*TURNS, "web", "worker")
    }
    began = time.monotonic()
    watching = asyncio.create_task(world.watch())
    await asyncio.gather(*(world.chat(kind, people[kind], turns // share) for kind, turns in TURNS.items()))
    show("seconds until all were answered", f"{time.monotonic() - began:.0f}")
    await _remember(person for group in people.values() for person in group)
    await world.quiet(60)
    world.model.memory_delay_s = MEMORY_S
    for number in range(KILLS // share):
        kind = ("web", "worker")[number % 2]
        await (world.kill_web if kind == "web" else world.kill_worker)(people[kind])
    await world.quiet(60)
    watching.cancel()
    return people


def _compare(world: World, people: dict[str, list[Person]]) -> None:
    from django.db.models import Sum
    from django.db.models.functions import Now

    from billing import budget_sweep
    from billing.models import Allowance, Hold, Purpose, Use

    lost = Hold.objects.count()
    Hold.objects.update(expires_at=Now() - dt.timedelta(seconds=1))
    while budget_sweep.settle_lost():
        pass
    calls = len(world.model.bill)
    kinds = {person.id: kind for kind, group in people.items() for person in group}
    theirs: Counter[tuple[str, bool]] = Counter()
    requests: Counter[tuple[str, bool]] = Counter()
    for billed in world.model.bill:
        place = kinds[world.owners[billed.key]], billed.is_memory
        theirs[place] += billed.cost
        requests[place] += 1
    ours: Counter[tuple[str, bool]] = Counter()
    for user, purpose, cost in Use.objects.values_list("user", "purpose").annotate(cost=Sum("cost_micro")):
        ours[kinds[user], purpose == Purpose.MEMORY] += cost
    for (kind, finish, code), count in sorted(world.ends.items(), key=str):
        show(f"turns of {kind}, {finish} {code or ''}".rstrip(), f"{count}")
    show(
        "requests to the provider, of which for memory",
        f"{calls}, {sum(b.is_memory for b in world.model.bill)}",
    )
    show("holds that were lost with their processes", f"{lost}")
    for place in sorted(requests):
        name = f"{place[0]}, {'memory' if place[1] else 'chat'}"
        off, exact = ours[place] - theirs[place], place[1] or place[0] in ("told", "tool")
        show(f"{name}: {requests[place]} requests, off", f"{off:+,} of {theirs[place]:,}")
        most = 0 if exact and place[0] in TURNS else None
        record(f"{name}: counted beyond the bill", 100 * off / theirs[place], "%", least=0, most=most)
    spent, reserved = (
        Allowance.objects.filter(scope="user").aggregate(s=Sum("spent"), r=Sum("reserved")).values()
    )
    record("spent by the months less counted as used", spent - sum(ours.values()), least=0, most=0)
    unequal = sum(each != 0 for each in world.watched)
    show("seconds in which both were looked at", f"{len(world.watched)}")
    record("of these, reserved is not what is held", unequal, most=0)
    record("still reserved", reserved, most=0)
    record("holds left", Hold.objects.count(), most=0)
    for kind in ("told", "tool"):
        assert ours[kind, False] == theirs[kind, False], "exact where the provider told it"
    assert all(ours[kind, True] == theirs[kind, True] for kind in TURNS), "exact in the worker, too"
    for kind in ("web", "worker"):
        assert all(ours[kind, is_memory] >= theirs[kind, is_memory] for is_memory in (True, False))
    assert world.watched and not unequal, "what is reserved is held, at each moment"
    assert spent == sum(ours.values()) and not reserved and not Hold.objects.exists()


def main() -> None:
    share = QUICK if "--quick" in sys.argv else 1
    with bench_servers() as servers, BillingModel() as model:
        _without_limits()
        world = World(servers, model)
        began = time.monotonic()
        people: dict[str, Any] = asyncio.run(_measure(world, share))
        show("seconds", f"{time.monotonic() - began:.0f}")
        for child in (*(child for _, child in world.webs), *world.workers):
            child.stop()
        _compare(world, people)


if __name__ == "__main__":
    main()
