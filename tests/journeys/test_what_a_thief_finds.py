"""Every word that a client can send to agents, devices and URLs, with errors of the database provoked on purpose. Then
dumps, the write-ahead log, Redis, all logs, and the admin are searched for them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import redis
from django.conf import settings
from django.db import DatabaseError, connection, transaction

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.devices.models import Device
from agents import claimed_runs
from agents.journal import EventKind, JournalEntry
from agents.models import Agent, Run
from chat.models import Conversation
from integrations.models import Connection
from memory.models import Entry
from tests.agents.factories import claim_run, commit_tasks, create_agent, create_device, create_run
from tests.factories import Person, somebody
from tests.fakes.provider import Provider
from tests.journeys import client_fields
from tests.journeys.client_fields import Words
from tests.journeys.test_what_memory_leaves import (
    Canaries,
    database,
    everything_in_redis,
    files,
    pages_for_staff,
)
from tests.memory.test_export import lived
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


def write_ahead_log_begins(url: str) -> str:
    """The name of the file to which the server writes now."""
    with psycopg.connect(url) as server:
        (name,) = server.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone() or ("",)
    return str(name)


def write_ahead_log(url: str, since: str) -> Iterator[tuple[str, bytes]]:
    """From this file on: other tests have written much before."""
    with psycopg.connect(url) as server:
        (folder,) = server.execute("SHOW data_directory").fetchone() or ("",)
    files = [file for file in sorted(Path(str(folder), "pg_wal").glob("0*")) if file.name >= since]
    assert files
    for file in files:
        yield f"pg_wal {file.name}", file.read_bytes()


async def test_nothing_of_agents_devices_and_urls_lies_open(
    stack: Stack, web: str, committed_db: str
) -> None:
    since = await db.run(write_ahead_log_begins, committed_db)
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
        return found + [name for name, said in write_ahead_log(committed_db, since) if stem in said]

    assert await db.run(tell_and_search) == []
    assert await db.run(cipher_for, person.id)


# What SECURITY.md lists as readable in the databases and their write-ahead log, by the fields that say it.
READABLE = {
    "email", "platform", "version", "app_version", "capabilities", "device_id", "deviceId", "request_id",
    "timezone", "locale", "schedule_cron", "data_types", "id",
    # Of the memory's policy: names of providers.
    *("core", "associative", "episodic", "proactive"),
}  # fmt: skip
# What developers of plugins publish, by request and field.
PUBLISHED = {"post /api/v1/developer.handle", "post /api/v1/developer.name"}
# In Redis' file and in logs ids alone, those that clients make among them.
IDS = {"device_id", "request_id", "id"}


def redis_file() -> Iterator[tuple[str, bytes]]:
    with redis.Redis.from_url(settings.REDIS_URL) as server:
        server.save()
        folder, name = (server.config_get(key)[key] for key in ("dir", "dbfilename"))
    yield "redis file", Path(folder, name).read_bytes()
    for file in Path(folder).glob("appendonlydir/*"):
        yield f"redis {file.name}", file.read_bytes()


def environments(stack: Stack) -> Iterator[tuple[str, bytes]]:
    for name, child in stack._children.items():
        for kind in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                yield f"{kind} of {name}", Path(f"/proc/{child.pid}/{kind}").read_bytes()


def ids_of(person: Person) -> list[str]:
    """One id of each kind of thing that the person has."""
    kinds = (Agent, Run, Device, Conversation, Connection, Entry)
    found = [kind.objects.filter(user_id=person.id).values_list("pk", flat=True).first() for kind in kinds]
    return [str(each) for each in found if each]


def send_requests(web: str, words: Words) -> int:
    """Send every request of the API's description, as somebody who has something in every room."""
    owner, sent = somebody(), 0
    lived(owner, uuid4().hex)
    for method, path, query, body in client_fields.requests(words):
        person = owner if "{}" in path else somebody()  # what has no id in it may end the session
        with person.rest(web) as rest:
            for one in ids_of(owner) if "{}" in path else [""]:
                place = path.removeprefix("/api/v1").replace("{}", one)
                answer = rest.request(method, place, params=query, json=body)
                assert answer.status_code < 500 or answer.status_code in (502, 503), (method, path)
                if answer.status_code != 404:
                    break  # it is an id of what this is about
        sent += 1
    return sent


async def send_frames(web: str, person: Person, words: Words) -> None:
    for frame in client_fields.frames(words):
        async with Socket(web, person.access_token) as socket:
            if frame["type"] == "device_hello":
                await socket.send(frame | {"protocol": 2})
                await socket.receive("hello_ack")
                continue
            await socket.hello(device_id="desk")
            await socket.send(frame)
            await socket.send({"type": "are_you_there", "id": "end"})
            while (got := await socket.receive()) and got.get("ref") != "end":
                pass


async def test_every_field_that_a_client_sends_is_readable_only_where_the_docs_say_so(
    stack: Stack, web: str, committed_db: str, provider: Provider
) -> None:
    since = await db.run(write_ahead_log_begins, committed_db)
    words, person = Words(), await db.run(somebody)
    await send_frames(web, person, words)

    def send_and_search() -> dict[str, set[str]]:
        assert send_requests(web, words) > 30
        # Errors of the database, too: its own log, and ours, must not tell of these either.
        errors_of_the_database(words.canaries)
        found: dict[str, set[str]] = {}
        stores = (*database(committed_db), *write_ahead_log(committed_db, since))
        # A mail says where it goes: to the address that was invited, or that signs up.
        is_mail = re.compile(r"\d{8}-\d{6}-\d+\.log").fullmatch
        places = [(READABLE, place) for place in stores]
        others = (*everything_in_redis(), *redis_file(), *files(stack), *environments(stack))
        places += [(IDS | {"email"} if is_mail(place[0]) else IDS, place) for place in others]
        places += [(READABLE, place) for place in pages_for_staff(person)]
        for allowed, (name, said) in places:
            told = words.found_in(said) - (PUBLISHED if allowed is READABLE else set())
            if extra := {one for one in told if one.rpartition(".")[2] not in allowed}:
                found[name] = extra
        return found

    assert await db.run(send_and_search) == {}
    assert len(words.fields) > 150
