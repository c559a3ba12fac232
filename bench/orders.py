"""Orders, whatever breaks: `python -m bench.orders`; in parts, `--seeds 0-3 --way product`; shorter, `--quick`

120 customers order from three processes at once. They click up to three times, some after they had chosen another plan,
and pay on each page that they were given; a part cancels, a part takes that back, and a part has a card that fails at
the next payment. Stripe answers with errors, also such as it keeps, or not at all; its events come up to three times,
late and out of order, or never. Processes are killed between any two of their steps.

Each of the seeds must lead to the one right end: for each customer one subscription as they ordered it, paid to the
cent, and our rows as Stripe has it. The same is done in the earlier backend's way, as a control that must fail.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from bench.harness import bench_servers, record, show
from bench.payments.processes import Action, Processes
from bench.payments.ways import AGAIN, FAULT, use_stripe_at
from tests.fakes.stripe import DECLINES, Cut, Fail, Raw, Stripe

ORDERS: Final = 120
SEEDS: Final = 20
QUICK: Final = (24, 2)
PROCESSES: Final = 3
MOST_ACTIONS: Final = 60  # of one process
KILLS: Final = 0.4
FAULTS: Final = 0.06
PRICES: Final = {"pro": 7, "power": 1, "team": 4_900}
KINDS: Final = ("keep", "keep", "cancel", "resume", "decline")
MOST_ROUNDS: Final = 400
NEVER: Final = ("wrong at Stripe", "wrong here", "left", "faults of the server")


@dataclass(frozen=True, slots=True)
class Order:
    user: UUID
    tier: str
    seats: int
    kind: str

    @property
    def ends_as(self) -> tuple[str, str, int, int]:
        """Plan, state, seats and cents after a renewal."""
        lives = self.kind in ("keep", "resume")
        cents = PRICES[self.tier] * self.seats * (2 if lives else 1)
        return (self.tier if lives else "free", "active" if lives else "canceled", self.seats, cents)


@dataclass
class World:
    """One seed: what is to be done, in which round, and what has come of it."""

    stripe: Stripe
    processes: Processes
    orders: list[Order]
    chance: random.Random
    queue: list[tuple[int, Action]] = field(default_factory=list)
    round: int = 0
    delivered: int = 0
    errors: int = 0
    seen: set[str] = field(default_factory=set)

    def soon(self, name: str, *arguments: Any, within: int = 3) -> None:
        self.queue.append((self.round + self.chance.randint(0, within), (name, arguments)))

    def drain(self) -> None:
        """Do all there is to do, and what comes of it."""
        self.soon("catch_up", within=2)
        last = self.round + MOST_ROUNDS
        while self.queue:
            assert self.round < last, f"never done: {self.queue[:3]}"
            self._one_round()
            self.round += 1

    def _one_round(self) -> None:
        ready = [action for at, action in self.queue if at <= self.round]
        self.queue = [(at, action) for at, action in self.queue if at > self.round]
        self.chance.shuffle(ready)
        most = PROCESSES * MOST_ACTIONS
        self.queue += [(self.round + 1, action) for action in ready[most:]]
        shares: list[list[Action]] = [[*ready[n:most:PROCESSES], ("work", ())] for n in range(PROCESSES)]
        done, left = self.processes.run(shares, self.chance, KILLS)
        for action in left:
            if action[0] != "work":
                self.queue.append((self.round + 1, action))
        for each in done:
            self.delivered += each.action[0] == "deliver"
            self.errors += each.answer == FAULT
            if each.answer in (AGAIN, FAULT):
                self.queue.append((self.round + 1, each.action))
            elif "/pay/" in each.answer:
                self._pay(each.answer.rpartition("/")[2])
        time_passes()
        self._send_events()

    def _pay(self, session: str) -> None:
        from tests.fakes.stripe.world import StripeError

        try:
            self.stripe.pay(session)
        except StripeError:
            pass  # the page says that it is no longer open

    def _send_events(self) -> None:
        events = self.stripe.do(
            lambda world: [row for row in world.of("event") if row["id"] not in self.seen]
        )
        for event in events:
            self.seen.add(event["id"])
            for _ in range(self.chance.choice((0, 1, 1, 2, 3))):
                self.soon("deliver", event, within=5)


def time_passes() -> None:
    """All leases are those of processes that are gone, and all waits are over."""
    from django.db.models.functions import Now

    from billing.payments.models import StripeJob, Subscription

    StripeJob.objects.filter(state__in=StripeJob.OPEN).update(lease_until=None, not_before=Now())
    Subscription.objects.update(lease_until=None, not_before=Now())


def orders_of(users: list[UUID]) -> list[Order]:
    """The same for all seeds."""
    tiers = ("pro", "power", "team")
    return [
        Order(user, tiers[n % 3], 2 + n % 4 if n % 3 == 2 else 1, KINDS[n // 3 % len(KINDS)])
        for n, user in enumerate(users)
    ]


def begin(users: list[UUID]) -> None:
    """Empty tables, and plans with odd prices."""
    from django.core.cache import cache
    from django.db import connection

    from adiuva.accounts.models import User
    from billing import plans
    from billing.models import Plan
    from billing.payments import prices

    cache.clear()
    plans.create_missing()
    for tier, cents in PRICES.items():
        Plan.objects.filter(tier=tier).update(price_cents=cents, stripe_price_id=None)
    dict(prices.make_missing())
    User.objects.filter(pk__in=users).update(tier="free")
    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE billing_event, billing_stripejob, billing_subscription, billing_customer CASCADE"
        )
        cursor.execute("DROP TABLE IF EXISTS bench_first")
        cursor.execute(
            "CREATE TABLE bench_first (user_id uuid PRIMARY KEY, customer text DEFAULT '', tier text DEFAULT 'free',"
            " subscription text DEFAULT '', status text DEFAULT '', quantity int DEFAULT 1, cancels bool,"
            " cents bigint DEFAULT 0)"
        )
        cursor.executemany("INSERT INTO bench_first (user_id) VALUES (%s)", [(user,) for user in users])


def play(way: str, seed: int, orders: list[Order], folder: Path) -> dict[str, Any]:
    """One seed. Returns its figures."""
    with Stripe() as stripe:
        use_stripe_at(stripe.url)
        begin([order.user for order in orders])
        faults = (Fail(500), Fail(500, done=True), Cut(), Cut(done=True), Raw(), Fail(429), Fail(409))
        stripe.calls.clear()
        stripe.now_and_then(FAULTS, "/v1/", *faults, seed=seed)
        world = World(stripe, Processes(way, stripe.url, folder), orders, random.Random(seed))
        _click(world)
        world.drain()
        for order in orders:
            if order.kind in ("cancel", "resume"):
                for _ in range(world.chance.randint(1, 2)):
                    world.soon("cancel", order.user, within=1)
        world.drain()
        for order in orders:
            if order.kind == "resume":
                world.soon("resume", order.user, within=1)
        world.drain()
        _fail_cards(world)
        for days in (31, 9):
            stripe.advance(days=days)
            world._send_events()
            world.drain()
        stripe.no_faults()
        world.drain()
        failed = sum(call.status == 0 or call.status >= 409 for call in stripe.calls)
        replayed = sum(call.replayed for call in stripe.calls)
        found = outcome(way, world)
        return found | {
            "faults of the server": world.errors,
            "kills": world.processes.killed,
            "rounds": world.round,
            "faults of Stripe": failed,
            "replayed": replayed,
            "deliveries": world.delivered,
            "events": len(world.seen),
        }


def _click(world: World) -> None:
    for order in world.orders:
        if world.chance.random() < 0.2:  # another plan first
            world.soon("click", order.user, "power" if order.tier == "pro" else "pro", 1, within=0)
    # Nobody pays for what they did not want in the end.
    pay, world._pay = world._pay, lambda session: None  # type: ignore[method-assign]
    world.drain()
    world._pay = pay  # type: ignore[method-assign]
    for order in world.orders:
        for _ in range(world.chance.randint(1, 3)):
            world.soon("click", order.user, order.tier, order.seats)


def _fail_cards(world: World) -> None:
    failing = {str(order.user) for order in world.orders if order.kind == "decline"}

    def act(stripe: Any) -> None:
        for row in stripe.of("customer"):
            if row["metadata"].get("adiuva_user") in failing:
                row["_card"] = DECLINES

    world.stripe.do(act)


def at_stripe(stripe: Stripe) -> dict[str, tuple[int, int, str, int, int]]:
    """By user: customers, subscriptions; state and seats of the latest; cents charged."""

    def act(world: Any) -> dict[str, tuple[int, int, str, int, int]]:
        found = {}
        customers: dict[str, list[str]] = {}
        for row in world.of("customer"):
            customers.setdefault(row["metadata"]["adiuva_user"], []).append(row["id"])
        for user, mine in customers.items():
            rows = [row for row in world.of("subscription") if row["customer"] in mine]
            cents = sum(row["amount"] for row in world.of("charge") if row["customer"] in mine)
            status = rows[0]["status"] if rows else ""
            seats = rows[0]["items"]["data"][0]["quantity"] if rows else 1
            found[user] = (len(mine), len(rows), status, seats, cents)
        return found

    return stripe.do(act)


def ours_of(way: str) -> Iterator[tuple[str, str, str, int, int]]:
    """(user, plan, state, seats, cents) as our rows have it; the product's rows have no cents of their own."""
    from django.db import connection

    statement = {
        "product": "SELECT s.user_id, u.tier, s.status, s.quantity, -1 FROM billing_subscription s"
        " JOIN accounts_user u ON u.id = s.user_id",
        "first": "SELECT user_id, tier, status, quantity, cents FROM bench_first",
    }[way]
    with connection.cursor() as cursor:
        cursor.execute(statement)
        for user, *rest in cursor.fetchall():
            yield (str(user), *rest)


def outcome(way: str, world: World) -> dict[str, Any]:
    """How the end differs from what is right, and a digest of it."""
    from billing.payments import webhooks
    from billing.payments.models import Event, StripeJob

    truth, rows = at_stripe(world.stripe), list(ours_of(way))
    ours = {row[0]: row[1:] for row in rows}
    wrong_there = wrong_here = 0
    state = []
    for order in world.orders:
        tier, status, seats, cents = order.ends_as
        there = truth.get(str(order.user))
        here: tuple[Any, ...] = ours.get(str(order.user), ())
        wrong_there += there != (1, 1, status, seats, cents)
        wrong_here += here[:3] != (tier, status, seats) or here[3] not in (-1, cents)
        state.append((there, here))
    moved = sum(each[4] for each in truth.values())
    return {
        "wrong at Stripe": wrong_there,
        "wrong here": wrong_here + (len(rows) != len(world.orders)),
        "cents moved": moved,
        "cents due": sum(order.ends_as[3] for order in world.orders),
        "cents kept": sum(row[4] for row in rows if row[4] > 0),
        "left": 0
        if way == "first"
        else webhooks.compare()
        + StripeJob.objects.filter(state__in=StripeJob.OPEN).count()
        + Event.objects.filter(state="new").count(),
        "end": hashlib.sha256(repr(state).encode()).hexdigest()[:12],
    }


def measure(way: str, seeds: range, orders: list[Order], folder: Path) -> None:
    sums: dict[str, int] = {}
    ends, right, began = set(), 0, time.perf_counter()
    for seed in seeds:
        since = time.perf_counter()
        found = play(way, seed, orders, folder)
        end = found.pop("end")
        ends.add(end)
        is_right = not found["wrong at Stripe"] and not found["wrong here"] and not found["left"]
        is_right = is_right and found["cents moved"] == found["cents due"]
        right += is_right
        how, took_s = "right" if is_right else "wrong", time.perf_counter() - since
        print(
            f"  {way}, seed {seed}: {how}, end {end}, {found['kills']} kills, {found['rounds']} rounds, {took_s:.0f} s",
            flush=True,
        )
        for name, count in found.items():
            sums[name] = sums.get(name, 0) + count
    print(f"{way}: {len(orders)} orders, {len(seeds)} seeds, {time.perf_counter() - began:.0f} s")
    is_product = way == "product"
    record(f"{way}: of {len(seeds)} seeds, end wrong", len(seeds) - right, most=0 if is_product else None)
    record(f"{way}: different ends", len(ends), most=1 if is_product else None)
    off = sums["cents moved"] - sums["cents due"]
    record(f"{way}: cents moved beside what was due, off", abs(off), most=0 if is_product else None)
    for name, count in sums.items():
        if is_product and name in NEVER:
            record(name, count, most=0)
        else:
            show(name, f"{count:,}")


def main() -> None:
    logging.disable(logging.ERROR)  # of the fake, which breaks connections off
    parser = argparse.ArgumentParser(prog="bench.orders")
    parser.add_argument("--quick", action="store_true", help="24 orders, 2 seeds")
    parser.add_argument("--orders", type=int, help="how many customers order")
    parser.add_argument("--seeds", help="the first and the last one, such as 0-3")
    parser.add_argument("--way", choices=("product", "first"), help="only this one")
    given = parser.parse_args()
    count, many = QUICK if given.quick else (ORDERS, SEEDS)
    count = given.orders or count
    first, _, last = (given.seeds or f"0-{many - 1}").partition("-")
    seeds = range(int(first), int(last or first) + 1)
    with bench_servers() as servers:
        import os

        os.environ["ADIUVA_LOG_LEVEL"] = "CRITICAL"  # of the processes
        from adiuva.accounts.models import User

        made = [User(email=f"{uuid4().hex}@example.com", password="!") for _ in range(count)]
        orders = orders_of([user.pk for user in User.objects.bulk_create(made)])
        if given.way != "first":
            measure("product", seeds, orders, servers.folder)
        if given.way != "product":
            measure("first", seeds[:3], orders, servers.folder)


if __name__ == "__main__":
    main()
