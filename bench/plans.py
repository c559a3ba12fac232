"""Plans' limits and throttles when many come at once, and what they cost: `python -m bench.plans [limits|limiter]`

50 threads claim, for 100 users in random order, twice as much as the free plan allows of each limit. None may get more,
and none less. The limiter is compared with redis-py's own way to run the same script.
"""

from __future__ import annotations

import datetime as dt
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

from bench.harness import BenchServers, bench_servers, record, show

USERS: Final = 100
THREADS: Final = 50
HOUR: Final = dt.timedelta(hours=1)
GB: Final = 10**9
CALLS: Final = 2_000
ROUNDS: Final = 5


def people(tier: str) -> list[UUID]:
    from adiuva.accounts.models import User

    made = [User(email=f"{uuid4().hex}@example.com", password="!", tier=tier) for _ in range(USERS)]
    return [user.pk for user in User.objects.bulk_create(made)]


def granted(users: list[UUID], tries: int, one: Callable[[UUID, int], object]) -> Counter[UUID]:
    """How often `one` succeeded for each user, when all come at once. It is told which try it is."""
    from django.db import connection

    from billing.entitlements import QuotaExceeded

    def attempt(work: tuple[UUID, int]) -> UUID | None:
        user, number = work
        try:
            one(user, number)
        except QuotaExceeded:
            return None
        finally:
            connection.close()
        return user

    work = [(user, number) for user in users for number in range(tries)]
    random.shuffle(work)
    with ThreadPoolExecutor(THREADS) as threads:
        return Counter(user for user in threads.map(attempt, work) if user is not None)


def report(name: str, users: list[UUID], found: Counter[UUID], limit: int) -> None:
    over = sum(found[user] > limit for user in users)
    under = sum(found[user] < limit for user in users)
    show(f"{name}: granted, of what is allowed", f"{sum(found.values())} of {limit * len(users)}")
    record(f"{name}: users with more or less", over + under, most=0)


def create(user: UUID, *, enabled: bool) -> None:
    from agents import services

    values = {
        "name": "Desk",
        "device_id": "desk",
        "directory_paths": ["/home/ada"],
        "data_types": ["tasks"],
        "enabled": enabled,
    }
    services.create_local(user_id=user, values=values)


def connect(user: UUID, provider: str) -> None:
    from integrations import connections
    from integrations.oauth_clients import Grant

    account = f"{uuid4().hex}@example.com"
    connections.connect(user_id=user, provider=provider, grant=Grant("a", "r", 3600, (), account))


def invite(owner: UUID) -> None:
    from billing.teams import members

    members.invite(owner_id=owner, email=f"{uuid4().hex}@example.com")


def limits() -> None:
    from billing import request_limits, storage_quota
    from billing.models import Override
    from billing.teams.models import Team

    users = people("free")
    report("agents", users, granted(users, 6, lambda user, _: create(user, enabled=False)), 3)
    users = people("free")
    report("enabled agents", users, granted(users, 4, lambda user, _: create(user, enabled=True)), 2)
    users, providers = people("free"), ("gmail", "outlook", "teams")
    report("providers", users, granted(users, 3, lambda user, number: connect(user, providers[number])), 1)
    for kind in ("storage_bytes", "backup_bytes"):
        users = people("pro")
        reserve = partial(storage_quota.reserve, kind=kind, n=GB, lifetime=HOUR)
        found = granted(users, 10, lambda user, _, reserve=reserve: reserve(user))  # type: ignore[misc]
        report(kind, users, found, 5)

    # Of 100,000 vectors, a quarter in each request.
    users = people("pro")
    report(
        "vectors / 25,000",
        users,
        granted(users, 8, lambda user, _: storage_quota.add(user, "vectors", 25_000)),
        4,
    )
    users = people("team")
    Team.objects.bulk_create([Team(owner_id=user, seats_given=4) for user in users])
    Override.objects.bulk_create(
        [Override(user_id=user, tier="team", reason="a bench", by=uuid4()) for user in users]
    )
    report("seats beside the owner's", users, granted(users, 6, lambda user, _: invite(user)), 3)

    users = people("free")
    work = users * 40
    random.shuffle(work)
    with ThreadPoolExecutor(THREADS) as threads:
        verdicts = list(threads.map(lambda user: (user, request_limits.take(user, "free")[1]), work))
    passed = Counter(user for user, verdict in verdicts if not verdict.wait_s)
    report("requests", users, passed, 20)


def cpu_of(call: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - began) / CALLS


def limiter() -> None:
    from adiuva.core.rate_limit import _TAKE, Limit, Limiter
    from adiuva.core.redis import sync_redis

    limit = Limit("bench", 10**6, 60)
    ours, script = Limiter("request_limits"), sync_redis("heartbeat").register_script(_TAKE)
    numbers = limit.times_us
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.take([limit]),
        "redis-py's Script": lambda: script(keys=["adiuva:rate:other"], args=list(numbers)),
    }
    for call in ways.values():
        call()
    found = [[cpu_of(call) * 1e6 for call in ways.values()] for _ in range(ROUNDS)]  # by turns
    mine, other = ([each[at] for each in found] for at in range(2))
    record("CPU of counting a request", mine, "µs", beside=other, name="redis-py's Script", most=60)
    stats: dict[str, Any] = sync_redis("heartbeat").info("commandstats")  # type: ignore[assignment]
    show("EVALSHA, all in all", f"{stats['cmdstat_evalsha']['calls']:,}")


def main(servers: BenchServers, *parts: str) -> None:
    from django.conf import settings

    settings.PLANS = True
    for part in parts or ("limits", "limiter"):
        {"limits": limits, "limiter": limiter}[part]()


if __name__ == "__main__":
    with bench_servers() as started:
        main(started, *sys.argv[1:])
