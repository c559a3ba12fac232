"""A check that nobody can spend more than their month has: `python -m bench.budgets`

50 threads make requests for 200 users in random order, three times as many as each has money for. One in seven is
cancelled, which is billed by estimate; one in forty is lost with its process: all that it held is then spent.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from uuid import UUID, uuid4

from bench.harness import bench_servers, record, show

USERS: Final = 200
THREADS: Final = 50
# What a request costs at most, and how many of those a month pays.
MOST: Final = 100
REQUESTS: Final = 3


def work(job: tuple[UUID, int]) -> tuple[str, int]:
    """A piece of work with one request: how it ended, and what the provider bills for it."""
    from django.db import connections

    from adiuva.llm import BudgetSpent
    from adiuva.llm.prices import Price, Rates
    from adiuva.llm.types import Usage
    from billing import usage
    from billing.budgets import BudgetedMeter
    from billing.models import Purpose

    user, seed = job
    chance, price = random.Random(seed), Price(Rates(10**6, 10**6, 10**6, 10**6))
    meter = BudgetedMeter(user, Purpose.CHAT)
    try:
        asyncio.run(meter.admit("a-model", MOST))
        cost = chance.randint(20, MOST)
        if chance.random() < 1 / 40:
            return "lost", cost
        is_cancelled = chance.random() < 1 / 7
        meter.add("a-model", Usage(cost), price, is_estimated=is_cancelled, most_micro=MOST)
        usage.settle(meter, meter.take(), is_over=True)
        return ("cancelled" if is_cancelled else "done"), cost
    except BudgetSpent:
        return "refused", 0
    finally:
        connections.close_all()


def measure() -> None:
    from django.conf import settings
    from django.db.models import Sum
    from django.db.models.functions import Now

    from adiuva.accounts.models import User
    from billing import budget_sweep, plans
    from billing.models import Allowance, Hold, Plan, Use

    settings.PLANS = True
    plans.create_missing()
    Plan.objects.filter(tier="free").update(budget_micro=REQUESTS * MOST)
    plans.forget()
    made = [User(email=f"{uuid4().hex}@example.com", password="!") for _ in range(USERS)]
    people = [user.pk for user in User.objects.bulk_create(made)]
    jobs = [(people[number % USERS], number) for number in range(USERS * REQUESTS * 3)]
    random.Random(1).shuffle(jobs)
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        ended = list(pool.map(work, jobs))
    seconds = time.perf_counter() - started
    Hold.objects.update(expires_at=Now() - dt.timedelta(seconds=1))
    while budget_sweep.settle_lost():
        pass
    count = Counter(how for how, _ in ended)
    months = list(Allowance.objects.filter(scope="user"))
    ours = Use.objects.aggregate(spent=Sum("cost_micro"))["spent"]
    billed = sum(cost for how, cost in ended if how != "lost")
    lost = sum(cost for how, cost in ended if how == "lost")
    print(f"{len(jobs):,} requests of {USERS} users by {THREADS} threads in {seconds:.1f} s: {dict(count)}")
    spent = sum(month.spent for month in months)
    record("users over their month", sum(month.spent > REQUESTS * MOST for month in months), most=0)
    room = sum(month.spent + MOST <= REQUESTS * MOST for month in months)
    record("users with room for a request left", room, most=0)
    record("still reserved", sum(month.reserved for month in months), most=0)
    record("holds left", Hold.objects.count(), most=0)
    record(
        "counted less billed, without what was lost", ours - count["lost"] * MOST - billed, least=0, most=0
    )
    show("billed of what was lost, and counted of it, in full", f"{lost:,}, {count['lost'] * MOST:,}")
    record("spent by the months less counted as used", spent - ours, least=0, most=0)


if __name__ == "__main__":
    with bench_servers():
        measure()
