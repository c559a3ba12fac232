"""The scheduler's tick with 100,000 agents, compared with 1,000, of which 100 are due.

`python -m bench.agents_tick [MANY]`. Database time is measured around each statement. It must not grow with the number
of agents that are not due.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID, uuid4

from bench.harness import BenchServers, Stopwatch, bench_servers, record

DUE: Final = 100
FEW, MANY = 1_000, 100_000
TICKS: Final = 9
USERS: Final = 1_000


class Statements:
    """Database wrapper that counts and times the statements of a connection."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            self.seconds += time.perf_counter() - began
            self.count += 1


def fill(agents: int) -> None:
    """Create agents that are due in a year, until there are `agents` of them."""
    from adiuva.accounts.models import User
    from agents.models import Agent

    users = list(User.objects.values_list("pk", flat=True))
    if not users:
        made = [User(email=f"{uuid4().hex}@example.com", password="!") for _ in range(USERS)]
        users = [user.pk for user in User.objects.bulk_create(made)]
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=365)
    missing = agents - Agent.objects.count()

    def agent_of(user_id: UUID) -> Agent:
        agent = Agent(
            user_id=user_id,
            device_id="desk",
            data_types=["tasks"],
            schedule_cron="0 9 * * 1-5",
            timezone="Europe/Rome",
            next_run_at=later,
        )
        agent.name, agent.directory_paths = "An agent", ["/home/ada"]
        return agent

    Agent.objects.bulk_create(
        (agent_of(users[number % len(users)]) for number in range(missing)), batch_size=2_000
    )


def tick() -> tuple[float, float, int]:
    """Make DUE agents due and tick. Returns (database seconds, wall seconds, number of statements)."""
    from django.db import connection

    from agents import schedules
    from agents.models import Agent, Run

    Run.objects.all().delete()
    ids = list(Agent.objects.order_by("pk").values_list("pk", flat=True)[:DUE])
    Agent.objects.filter(pk__in=ids).update(next_run_at=dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1))
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE agents_agent")
    statements = Statements()
    with connection.execute_wrapper(statements), Stopwatch() as watch:
        started = schedules.tick()
    if started != DUE:
        raise AssertionError(f"{started} runs were started, and {DUE} were due")
    return statements.seconds, watch.wall, statements.count


def nothing_due() -> float:
    from django.db import connection

    from agents import schedules

    statements = Statements()
    with connection.execute_wrapper(statements):
        schedules.tick()
    return statements.seconds


def main(servers: BenchServers, many: int = MANY) -> None:
    print(f"A tick, {DUE} agents due")
    database: dict[int, list[float]] = {}
    for agents in (FEW, many):
        fill(agents)
        tick()  # warm: connections, the broker, plans
        ticks = [tick() for _ in range(TICKS)]
        database[agents] = [seconds * 1000 for seconds, _, _ in ticks]
        count, of = ticks[0][2], f"of {agents:,} agents"
        record(f"{of}: the whole tick, with what it enqueues", [wall * 1000 for _, wall, _ in ticks], "ms")
        record(f"{of}: nothing due, database time", [nothing_due() * 1000 for _ in range(TICKS)], "ms")
    what, name = f"of {many:,} agents: database time", f"{FEW:,} agents"
    record(what, database[many], "ms", beside=database[FEW], name=name, most=50)
    record(f"of {many:,} agents: statements", count)


if __name__ == "__main__":
    with bench_servers() as started:
        main(started, *map(int, sys.argv[1:]))
