"""The cost of lists and pages as tables grow: `python -m bench.growth [RUNS]`

One user has half of the runs, in twenty agents of which one has hardly any; a thousand users have the rest. Each run
has ten events. Everything is measured with a tenth of RUNS and with all of them: pages of the database that a request's
statements touch say more than milliseconds, since they are the same on any machine and under any load.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

from bench.harness import Stopwatch, bench_servers, median, record, show

RUNS: Final = 1_000_000
EVENTS_A_RUN: Final = 10
RARE: Final = 100
PASSWORD: Final = "correct horse"
TURNS: Final = 5
_LIMIT: Final = 50

_INSERT_RUNS: Final = """
INSERT INTO agents_run (id, user_id, agent_id, agent_ref, device_id, agent_type, agent_name_sealed, trigger, attempt,
    state, phase, slots, files_seen, files_done, files_unchanged, files_failed, problems, items_created, fence,
    model_calls, verdict, dry_run, retries, workers_lost, passed_over, created_at, enqueued_at)
SELECT gen_random_uuid(), users[which], agents[which], agents[which], '', 'local_directory', names[which],
    CASE WHEN number %% 100000 = 7 THEN 'manual' ELSE 'schedule' END, 1,
    CASE WHEN number %% 1000 = 0 THEN 'error' ELSE 'success' END, '', 1, 1, 1, 1, 0, 0, 0, 1, 1, '', false, 0, 0, '{}',
    %(base)s - number * interval '30 s', now()
FROM (SELECT %(users)s::uuid[] AS users, %(agents)s::uuid[] AS agents,
        %(names)s::bytea[] AS names) AS known,
    LATERAL (
        SELECT number, CASE WHEN number %% 2 = 0 THEN 1 + number / 2 %% 19 ELSE 21 + number / 2 %% 1000 END AS which
        FROM generate_series(%(since)s, %(until)s) AS series (number)
    ) AS drawn
"""
_INSERT_EVENTS: Final = """
INSERT INTO agents_runevent (run_id, at, kind, code, nonce, is_over)
SELECT run.id, run.created_at, CASE WHEN number = 1 THEN 'started' ELSE 'source_done' END, '', gen_random_uuid(), false
FROM agents_run AS run, generate_series(1, %(events)s) AS series (number)
WHERE run.created_at BETWEEN %(base)s - %(until)s * interval '30 s' AND %(base)s - %(since)s * interval '30 s'
"""


@dataclass
class People:
    email: str = ""
    owner: UUID = field(default_factory=uuid4)
    rare: UUID = field(default_factory=uuid4)
    users: list[UUID] = field(default_factory=list)
    agents: list[UUID] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    base: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))


def make_people() -> People:
    from adiuva.accounts import services
    from adiuva.accounts.keys import cipher_for
    from adiuva.accounts.models import User
    from agents.models import Agent

    email = f"{uuid4().hex}@example.com"
    tokens = services.register(email=email, password=PASSWORD)
    owner = services.authenticate(access_token=tokens.access_token).user_id
    others = [User(email=f"{uuid4().hex}@example.com", password="!") for _ in range(1_000)]
    User.objects.bulk_create(others)
    people = People(email, owner)
    people.users = [owner] * 20 + [user.pk for user in others]
    people.agents = [uuid4() for _ in range(19)] + [people.rare] + [uuid4() for _ in others]
    cipher = cipher_for(owner)
    people.names = [Agent.name_sealed.seal(cipher, "Desk", ref) for ref in people.agents[:20]] + [b""] * 1_000
    return people


@contextmanager
def without_indexes(cursor: Any, table: str) -> Iterator[None]:
    """Make them anew once the rows are there, which takes a fraction of the time."""
    cursor.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = %s::regclass AND contype = 'u'",
        [table],
    )
    unique = cursor.fetchall()
    for name, _ in unique:
        cursor.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
    cursor.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s AND indexname NOT IN"
        " (SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass)",
        [table, table],
    )
    found = cursor.fetchall()
    for name, _ in found:
        cursor.execute(f'DROP INDEX "{name}"')
    yield
    for _, definition in found:
        cursor.execute(definition)
    for name, definition in unique:
        cursor.execute(f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {definition}')


def fill(people: People, since: int, until: int) -> None:
    from django.db import connection

    with Stopwatch() as took, connection.cursor() as cursor:
        cursor.execute(
            "SET session_replication_role = replica"
        )  # the rows fit together: foreign keys are not checked
        cursor.execute("SET maintenance_work_mem = '512MB'")
        period: dict[str, Any] = {"base": people.base, "since": since, "until": until}
        owners: dict[str, Any] = {"users": people.users, "agents": people.agents, "names": people.names}
        with without_indexes(cursor, "agents_run"):
            cursor.execute(_INSERT_RUNS, {**owners, **period})
        if since == 1:
            cursor.execute(
                "UPDATE agents_run SET agent_ref = %s, agent_id = %s, agent_name_sealed = %s WHERE id IN"
                " (SELECT id FROM agents_run WHERE user_id = %s ORDER BY id LIMIT %s)",
                [people.rare, people.rare, people.names[19], people.owner, RARE],
            )
        with without_indexes(cursor, "agents_runevent"):
            cursor.execute(_INSERT_EVENTS, {"events": EVENTS_A_RUN, **period})
        for table in ("agents_run", "agents_runevent"):
            cursor.execute(f"VACUUM (ANALYZE) {table}")
        cursor.execute("SET session_replication_role = origin")
        cursor.execute(
            "SELECT count(*), (SELECT count(*) FROM agents_runevent), pg_total_relation_size('agents_run'),"
            " pg_total_relation_size('agents_runevent') FROM agents_run"
        )
        runs, events, run_bytes, event_bytes = cursor.fetchone()
    show(
        f"{runs:,} runs, {events:,} events",
        f"{run_bytes / runs:.0f} and {event_bytes / events:.0f} bytes each with indexes; {took.wall:.0f} s",
    )


# ── What a request costs ────────────────────────────────────────────────────────────────────────────────


Statement = tuple[str, Any]  # and its parameters


@dataclass(frozen=True)
class Cost:
    pages: int
    ms: list[float]


def cost(request: Callable[[], Any]) -> Cost:
    """Of what a request asks of the database. What Django makes of the answers does not depend on the tables."""
    from django.db import connection

    found: list[Statement] = []

    def note(execute: Any, sql: str, parameters: Any, *more: Any) -> Any:
        """Django's own log has no parameters of prepared statements."""
        found.append((sql, parameters))
        return execute(sql, parameters, *more)

    with connection.execute_wrapper(note):
        request()
    return statement_cost(*(each for each in found if each[0].startswith("SELECT")))


def touched(statement: Statement) -> int:
    from django.db import connection

    sql, parameters = statement
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}", parameters)
        plan = cursor.fetchone()[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def statement_cost(*statements: Statement) -> Cost:
    """Pages of the database that they touch, and how long they take together, warm."""
    from django.db import connection

    pages, took = sum(map(touched, statements)), []
    with connection.cursor() as cursor:
        for _ in range(TURNS):
            began = time.perf_counter()
            for each in statements:
                cursor.execute(*each)
                cursor.fetchall()
            took.append((time.perf_counter() - began) * 1_000)
    return Cost(pages, took)


def requests(people: People, rows: int) -> dict[str, Callable[[], Any]]:
    from django.test import Client
    from django.urls import reverse
    from rest_framework.test import APIClient

    from adiuva.accounts import services
    from adiuva.accounts.models import User
    from adiuva.core import paging
    from agents.models import Run

    token = services.login(
        email=people.email, password=PASSWORD
    ).access_token  # one may end before all rows are there
    rest, staff = APIClient(SERVER_NAME="localhost"), Client(SERVER_NAME="localhost")
    rest.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    chief = User.objects.create(email=f"{uuid4().hex}@example.com", is_staff=True, is_superuser=True)
    staff.force_login(chief)

    def listed(**query: Any) -> Callable[[], Any]:
        def ask() -> Any:
            answer = rest.get("/api/v1/agents/runs", query)
            assert answer.status_code == 200, answer.content
            return answer

        return ask

    def shown(**query: Any) -> Callable[[], Any]:
        def ask() -> None:
            answer = staff.get(reverse("admin:agents_run_changelist"), query)
            assert answer.status_code == 200

        return ask

    # The last page that has a number, and the cursor that leads to the middle of the user's runs.
    page = min(rows // 4, paging.MOST_COUNTED) // _LIMIT
    mine = Run.objects.filter(user_id=people.owner).order_by("-created_at", "-id")
    middle = mine[rows // 4]
    cursor = paging.total_order(mine).cursor(middle)
    return {
        "first page of a user's runs": listed(),
        "last page by number": listed(page=page),
        "page in the middle, by cursor": listed(cursor=cursor),
        "runs of an agent that has few": listed(agent_id=people.rare),
        "a run with its journal": lambda: rest.get(f"/api/v1/agents/runs/{middle.pk}"),
        "staff: all runs": shown(),
        "staff: all runs, far down": shown(p=min(150, rows // _LIMIT)),
        "staff: runs in a state": shown(state__exact="error"),
        "staff: runs of a rare kind": shown(trigger__exact="manual"),
        "staff: runs of a user": shown(q=str(people.owner)),
    }


def plain(people: People, rows: int) -> dict[str, Cost]:
    """The same by OFFSET and an exact count."""
    from adiuva.core import paging

    def asked(*statements: str) -> Cost:
        return statement_cost(*((each, None) for each in statements))

    of_user = f"FROM agents_run WHERE user_id = '{people.owner}'"
    ordered = f"SELECT * {of_user} ORDER BY created_at DESC LIMIT {_LIMIT}"
    count = f"SELECT count(*) {of_user}"
    return {
        "first page of a user's runs": asked(count, ordered),
        "last page by number": asked(
            count, f"{ordered} OFFSET {min(rows // 4, paging.MOST_COUNTED) - _LIMIT}"
        ),
        "page in the middle, by cursor": asked(count, f"{ordered} OFFSET {rows // 4}"),
        "staff: all runs": asked(
            "SELECT count(*) FROM agents_run",
            f"SELECT * FROM agents_run ORDER BY created_at DESC LIMIT {_LIMIT}",
        ),
    }


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    with bench_servers():
        people = make_people()
        fill(people, 1, rows // 10)
        before = {name: cost(request) for name, request in requests(people, rows // 10).items()}
        fill(people, rows // 10 + 1, rows)
        others = plain(people, rows)
        for name, request in requests(people, rows).items():
            found = cost(request)
            record(f"pages, {name}", found.pages, beside=before[name].pages, name="with a tenth of the rows")
            if other := others.get(name):
                record(
                    f"time, {name}",
                    found.ms,
                    "ms",
                    beside=median(other.ms),
                    name="OFFSET and a count",
                    most=50,
                )
            else:
                record(f"time, {name}", found.ms, "ms", most=50)


if __name__ == "__main__":
    main()
