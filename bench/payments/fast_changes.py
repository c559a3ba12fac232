"""Subscriptions that change several times within milliseconds, while their events come late, twice and out of order.

Beside the product's way, three others write what they make of the same deliveries: each is wrong at the end for some.
One in four of Stripe's answers then takes 300 ms, so that one may arrive after another that was made later: what
fetches at each event without a lease keeps the older one.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from tests.fakes.stripe import Slow, Stripe, signed
from tests.fakes.stripe.subscriptions import change

CHANGES: Final = 4
_WITHIN_S: Final = 0.02
_LATE_S: Final = 0.1
_DELIVERERS: Final = 4
_WORKERS: Final = 2
_FETCHERS: Final = 64  # of the way that has no lease
# Of Stripe's answers one in four is late.
_ANSWERS: Final = (*[Slow(0, done=True)] * 3, Slow(0.3, done=True))
# What is compared of a subscription: price, quantity, and whether it ends with its period.
_Shape = tuple[str, int, bool]


@dataclass
class _Others:
    """What other ways know at the end, by subscription."""

    payload: dict[str, _Shape] = field(default_factory=dict)
    newest: dict[str, tuple[int, _Shape]] = field(default_factory=dict)
    fetched: dict[str, _Shape] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        about = event["data"]["object"]
        subscription, shape = about["id"], _shape_of(about)
        self.payload[subscription] = shape
        known = self.newest.get(subscription)
        if known is None or event["created"] >= known[0]:
            self.newest[subscription] = (event["created"], shape)

    def fetch(self, subscription: str, late_s: float) -> None:
        from billing.payments import stripe_api

        time.sleep(late_s)
        state = stripe_api.get_subscription(subscription)
        self.fetched[subscription] = (state.price_id, state.quantity, state.cancel_at_period_end)


def _shape_of(row: dict[str, Any]) -> _Shape:
    item = row["items"]["data"][0]
    return item["price"]["id"], item["quantity"], row["cancel_at_period_end"]


def play(
    stripe: Stripe, subscriptions: Collection[str], *, secret: str, seed: int, with_others: bool = False
) -> dict[str, int]:
    """Change all of them, and deliver what there is to be told. Returns how many are stale at the end, by way."""
    from billing.models import Plan
    from billing.payments import sync, webhooks
    from billing.payments.models import Subscription
    from tests.billing.payers import settle

    plans = Plan.objects.values_list("tier", "stripe_price_id")
    prices = {tier: price for tier, price in plans if price is not None}
    mine, chance, others = frozenset(subscriptions), random.Random(seed), _Others()
    late: queue.PriorityQueue[tuple[float, int, dict[str, Any]]] = queue.PriorityQueue()
    is_changed, is_delivered = threading.Event(), threading.Event()

    def deliver() -> None:
        while True:
            try:
                due, number, event = late.get_nowait()
            except queue.Empty:
                if is_changed.is_set():
                    return
                time.sleep(0.002)
                continue
            if due > time.monotonic():
                late.put((due, number, event))
                time.sleep(0.002)
                continue
            body = orjson.dumps(event)
            webhooks.receive(body, signed(body, secret, int(time.time()))["Stripe-Signature"])
            if with_others:
                others.take(event)

    def work() -> None:
        while not is_delivered.is_set():
            webhooks.process()
            sync.run()
            time.sleep(0.002)

    def act(subscription: str) -> Any:
        def run(world: Any) -> list[dict[str, Any]]:
            row, seen = world.get("subscription", subscription), len(world.rows)
            change(world, row, _some_change(row, [*prices.values()], chance))
            return [each for each in list(world.rows.values())[seen:] if each["object"] == "event"]

        return run

    if with_others:
        stripe.now_and_then(1, "GET /v1/subscriptions/", *_ANSWERS, seed=seed)
    fetches: list[Future[None]] = []
    with ThreadPoolExecutor(_FETCHERS) as fetchers, ThreadPoolExecutor(_DELIVERERS + _WORKERS) as pool:
        deliverers = [pool.submit(_closing(deliver)) for _ in range(_DELIVERERS)]
        workers = [pool.submit(_closing(work)) for _ in range(_WORKERS)]
        try:
            number = 0
            for subscription in sorted(mine):
                for _ in range(CHANGES):
                    for event in stripe.do(act(subscription)):
                        for _ in range(chance.randint(1, 2)):
                            number += 1
                            late_s = chance.choice((0.0, chance.random() * _LATE_S))
                            late.put((time.monotonic() + late_s, number, event))
                            if with_others:
                                fetches.append(fetchers.submit(others.fetch, subscription, late_s))
                    time.sleep(chance.random() * _WITHIN_S / CHANGES)
        finally:
            is_changed.set()
            for each in deliverers:
                each.result()
            is_delivered.set()
            for each in workers:
                each.result()
    for fetched in fetches:
        fetched.result()
    stripe.no_faults()
    settle()

    def truth(world: Any) -> dict[str, _Shape]:
        return {row["id"]: _shape_of(row) for row in world.of("subscription") if row["id"] in mine}

    right = stripe.do(truth)
    rows = Subscription.objects.filter(stripe_id__in=mine)
    ours = {
        row.stripe_id: (prices[row.tier], row.quantity, row.cancel_at_period_end)
        for row in rows
        if row.user is None or row.user.tier == row.tier
    }
    found = {"ours": ours}
    if with_others:
        found |= {
            "what the event says": others.payload,
            "what the newest event says": {name: shape for name, (_, shape) in others.newest.items()},
            "fetched without a lease": others.fetched,
        }
    return {way: sum(known.get(each) != right[each] for each in mine) for way, known in found.items()}


def _some_change(row: dict[str, Any], prices: list[str], chance: random.Random) -> dict[str, Any]:
    if chance.random() < 0.3:
        return {"cancel_at_period_end": not row["cancel_at_period_end"]}
    item = row["items"]["data"][0]["id"]
    items = [{"id": item, "price": chance.choice(prices), "quantity": chance.randint(1, 99)}]
    return {"items": items, "proration_behavior": "none"}


def _closing(act: Any) -> Any:
    """`act`, which then closes its thread's connection to the database."""

    def run() -> None:
        from django.db import connections

        try:
            act()
        finally:
            connections.close_all()

    return run
