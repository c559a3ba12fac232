"""Every word that a client can send to agents, devices and URLs, with errors of the database provoked on purpose. Then
dumps, the write-ahead log, Redis, all logs, and the admin are searched for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
from django.db import DatabaseError, connection, transaction

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.devices.models import Device
from agents import claimed_runs
from agents.journal import EventKind, JournalEntry
from tests.agents.factories import claim_run, commit_tasks, create_agent, create_device, create_run
from tests.factories import Person, somebody
from tests.journeys.test_what_memory_leaves import (
    Canaries,
    database,
    everything_in_redis,
    files,
    pages_for_staff,
)
from tests.server_processes import Stack
from tests.socket_client import Socket


def told_of_agents(person: Person, canaries: Canaries) -> None:
    agent = create_agent(
        person.id,
        name=canaries.words(2),
        prompt_template=canaries.words(5),
        directory_paths=[f"/home/{canaries.words(1)}"],
        filter_config={"labels": [canaries.words(1)]},
    )
    create_device(agent)
    claimed = claim_run(create_run(agent))
    path = f"/home/{canaries.words(1)}.md"
    commit_tasks(claimed, canaries.words(2), path=path)
    failed = JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source=path, message=canaries.words(1))
    claimed_runs.add_counts(claimed, seen=1, done=1, failed=1, entries=[failed])


def told_in_urls(rest: httpx.Client, canaries: Canaries) -> None:
    for path in ("/{}", "/agents/local/{}", "/oauth/{}/authorize", "/memory/core/{}", "/auth/me?token={}"):
        assert rest.get(path.format(canaries.words(1))).status_code in (200, 400, 404)
    assert rest.get("/auth/me", headers={"Host": f"{canaries.words(1)}.example"}).status_code == 400


def errors_of_the_database(canaries: Canaries) -> None:
    """What fails at a constraint, at a type, and while a value is read."""
    for statement in (
        "INSERT INTO devices_device (id, user_id, device_id, platform, app_version, protocol, capabilities, epoch,"
        " channel) VALUES (gen_random_uuid(), gen_random_uuid(), %s, '', '', 1, '{{}}', 1, '')",
        "SELECT %s::uuid",
        "UPDATE accounts_user SET email = upper(%s)",
        "SELECT 1 FROM no_such_table WHERE x = %s",
    ):
        with contextlib.suppress(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement.replace("{{}}", "{}"), [canaries.words(1)])
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def write_ahead_log(url: str) -> Iterator[tuple[str, bytes]]:
    with psycopg.connect(url) as server:
        (folder,) = server.execute("SHOW data_directory").fetchone() or ("",)
    for file in sorted(Path(str(folder), "pg_wal").glob("0*")):
        yield f"pg_wal {file.name}", file.read_bytes()


async def test_nothing_of_agents_devices_and_urls_lies_open(
    stack: Stack, web: str, committed_db: str
) -> None:
    canaries, person = Canaries(60), await db.run(somebody)
    async with Socket(web, person.access_token) as socket:
        await socket.hello(name=canaries.words(2))

    def tell_and_search() -> list[str]:
        device = Device.objects.get(user_id=person.id)
        assert device.name in " ".join(canaries.all)
        told_of_agents(person, canaries)
        with person.rest(web) as rest:
            told_in_urls(rest, canaries)
        # Device ids and addresses, which may be in the database and its write-ahead log, and in no log.
        listed = Canaries(10)
        errors_of_the_database(listed)
        elsewhere = [*everything_in_redis(), *files(stack), *pages_for_staff(person)]
        found = [name for name, said in elsewhere if canaries.there(said) or listed.there(said)]
        found += [name for name, said in database(committed_db) if canaries.there(said)]
        stem = canaries.stem.encode()
        return found + [name for name, said in write_ahead_log(committed_db) if stem in said]

    assert await db.run(tell_and_search) == []
    assert await db.run(cipher_for, person.id)
