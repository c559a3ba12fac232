"""The archive of an account: all of it and nobody else's, made whatever dies, sealed until it is fetched."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import uuid
import zipfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.db import connection
from django.db.models import Model
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import Passkey, StaffAction, User
from adiuva.core import export_archive
from adiuva.core.crypto import SealBroken
from adiuva.core.export_archive import ArchivePart, registered_parts
from adiuva.core.leases import LeaseLost
from adiuva.export import build, services
from adiuva.export.models import Export, ExportChunk
from adiuva.vault import backups, receiving, uploads, vectors
from adiuva.vault.backups import Description
from adiuva.vault.records import Precondition, inline, put
from adiuva.vault.vectors import NewVector
from agents import claimed_runs, run_watches
from agents.journal import EventKind
from agents.journal import JournalEntry as Line
from agents.models import FoundRecord
from agents.run_watches import ChatPlace
from billing import allowances
from billing.models import (
    Domain,
    Identity,
    IdentityProvider,
    Override,
    PluginInstall,
    PluginPurchase,
    Subscription,
    Team,
    Use,
)
from chat.claimed_turn import NewSummary
from chat.models import Message
from integrations.models import Connection
from memory import entries, exchanges
from memory.entries import BY_HAND, EntryDetails, SourceRef
from memory.models import Embedding, Entry, Receipt, SourceKind, Tier
from tests.agents.factories import claim_run, commit_tasks, create_agent, create_device, create_run
from tests.billing.marketplace.factories import a_developer, a_listed_plugin
from tests.chat.factories import TASK_INSERTED, claim, finish_turn, make_request
from tests.factories import Person, somebody

if TYPE_CHECKING:
    from rest_framework.test import APIClient

API = "/api/v1/account/export"
NOBODY = "0b8f1d7e-0f5c-4a57-9f7b-3f6d3b0f6c11"
State = Export.State


def client_of(person: Person) -> APIClient:
    from rest_framework.test import APIClient

    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return client


@pytest.fixture
def ada(committed_db: str) -> Person:
    return somebody()


def lived(person: Person, word: str) -> None:
    """Something in every room, each with the word in it."""
    me = person.id
    mailbox = Connection(pk=uuid.uuid4(), user_id=me, provider="gmail", renew_at=timezone.now())
    mailbox.account_hash, mailbox.expires_at = uuid.uuid4().bytes, timezone.now()
    mailbox.account = mailbox.seal(Connection.account, f"{word}@example.com")
    mailbox.access_token = mailbox.seal(Connection.access_token, f"token of {me}")
    mailbox.save(force_insert=True)
    passkey = Passkey(user_id=me, credential_id=uuid.uuid4().bytes, credential=b"public")
    Passkey.name.seal_into(cipher_for(me), passkey, f"{word}'s laptop")
    passkey.save(force_insert=True)
    agent = create_agent(me, name=f"Desk {word}")
    create_device(agent)
    claimed = claim_run(create_run(agent))
    commit_tasks(claimed, f"Call {word}")
    failed = Line(EventKind.SOURCE_FAILED, "unreadable", source=f"/home/{word}.md", message="a picture")
    claimed_runs.add_counts(claimed, seen=1, done=1, failed=1, entries=[failed])
    found = FoundRecord(user_id=me, agent=agent, document=uuid.uuid4(), table="tasks")
    FoundRecord.found.seal_into(cipher_for(me), found, {"title": f"Call {word}"})
    found.save(force_insert=True)
    team = Team(owner_id=me)
    Team.name_sealed.seal_into(cipher_for(me), team, f"Studio {word}")
    team.save(force_insert=True)
    provider = IdentityProvider(team=team, issuer=f"https://{word}.example", client_id=word)
    IdentityProvider.secret.seal_into(cipher_for(me), provider, f"secret of {me}")
    provider.save(force_insert=True)
    Domain.objects.create(provider=provider, name=f"{word}.{me}.example", token="x")
    Identity.objects.create(provider=provider, issuer=provider.issuer, subject=word, user_id=me)
    Override.objects.create(user_id=me, tier="pro", reason="a trial", by=uuid.uuid4())
    Subscription.objects.create(user_id=me, stripe_id=f"sub_{me}")
    allowances.add(user_id=me, micro=1, reason="a trial", by=uuid.uuid4())
    Use.objects.create(user_id=me, day=timezone.now().date(), purpose="chat", model="m")
    plugin = a_listed_plugin(a_developer(me))
    PluginInstall.objects.create(user_id=me, plugin=plugin, version_id=plugin.current_version_id)
    PluginPurchase.objects.create(plugin=plugin, developer=plugin.developer, total_cents=200)
    StaffAction.objects.create(user_id=me, staff_id=uuid.uuid4(), kind=StaffAction.Kind.CHANGED)
    request = make_request(me, f"Add {word}")
    turn = claim(request)
    finish_turn(
        request, turn, f"Added {word}", mutations=[TASK_INSERTED], summary=NewSummary(1, f"Of {word}")
    )
    chat = ChatPlace(me, turn.turn_id, turn.conversation_id, asked=f"Run Desk {word}")
    run_watches.add(create_run(create_agent(me, name="Other")), chat, started=True)
    place = SourceRef(SourceKind.CONVERSATION, turn.conversation_id, 1)
    for content in (f"tea for {word}", f"water for {word}"):
        core = entries.remember(user_id=me, tier=Tier.CORE, key="Drink", content=content, source=place).entry
    for tier, more in (
        (Tier.ASSOCIATIVE, {}),
        (Tier.EPISODIC, {"began_at": timezone.now()}),
        (Tier.PROACTIVE, {"confidence": 0.7}),
    ):
        entries.remember(
            user_id=me, tier=tier, content=f"{tier} {word}", source=BY_HAND, details=EntryDetails(**more)
        )  # type: ignore[arg-type]
    put(
        user_id=me,
        record_id=uuid.uuid4(),
        table=word,
        content=inline(word.encode(), sha256(word.encode()).digest()),
        when=Precondition(is_absent=True),
    )
    sealed = {"blob": word.encode(), "checksum": sha256(word.encode()).digest(), "tags": ()}
    vectors.upsert(user_id=me, space=0, given=[NewVector.of("vector", id="1", vector=[1.0], **sealed)])
    for direct in (True, False):
        upload = uploads.begin(user_id=me, purpose="backup", length=len(word), direct=direct)
        receiver = receiving.open_receiver(me, upload.pk, offset=0, direct=direct)
        receiver.write(word.encode())
        if direct:
            backups.store(me, Description(1, 1, sha256(word.encode()).digest()), receiver.finish())
        else:
            receiver.end()
        receiver.close()
    Receipt.objects.create(user_id=me, purpose="turn", provider="openai", model="openai/x", entries=[core.pk])
    exchanges.store(
        user_id=me, cipher=cipher_for(me), kind=SourceKind.REQUEST, source_id=uuid.uuid4(), seq=None,
        said=[f"Hello {word}"], answer="Hello",
    )  # fmt: skip


def exported(person: Person) -> Export:
    export = services.request_export(user_id=person.id)
    build.build_export(export.pk)
    export.refresh_from_db()
    return export


def fetched(export: Export) -> bytes:
    async def read() -> bytes:
        return b"".join([chunk async for chunk in services.stream_archive(export)])

    return asyncio.run(read())


def files(content: bytes) -> dict[str, list[dict[str, Any]]]:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.testzip() is None
        return {
            name: [json.loads(line) for line in opened.read(name).splitlines()]
            for name in opened.namelist()
            if name != "README.txt"
        }


# ── What is in it ───────────────────────────────────────────────────────────────────────────────────────


def test_everything_of_the_account_is_in_it_in_clear_and_nothing_of_others(ada: Person) -> None:
    other = somebody()
    lived(ada, "heron"), lived(other, "falcon")
    export = exported(ada)
    content = fetched(export)
    assert (export.state, export.size) == (State.READY, len(content))
    found = files(content)
    assert found.keys() == {part.name for part in registered_parts()}
    assert [name for name, rows in found.items() if not rows] == []
    text = json.dumps(found)
    assert "falcon" not in text and str(other.id) not in text
    for name in (
        "agents",
        "connections",
        "outbox",
        "run_events",
        "messages",
        "conversations",
        "memory_entries",
        "memory_waiting",
        "second_factors",
        "watches",
    ):
        assert "heron" in json.dumps(found[f"{name}.jsonl"]), name
    for name in ("records", "backups"):
        assert base64.b64decode(found[f"vault_{name}.jsonl"][1]["bytes"]) == b"heron", name
    assert base64.b64decode(found["vault_vectors.jsonl"][1]["blob"]) == b"heron"
    assert found["account.jsonl"][0]["email"] == ada.email
    assert [message["text"] for message in found["messages.jsonl"]] == ["Add heron", "Added heron"]
    assert found["messages.jsonl"][1]["mutations"] == [TASK_INSERTED.model_dump()]
    assert (found["conversations.jsonl"][0]["title"], found["conversations.jsonl"][0]["summary"]) == (
        "Add heron",
        "Of heron",
    )
    assert found["outbox.jsonl"][0]["record"]["title"] == "Call heron"
    assert "/home/heron.md" in [event["source"] for event in found["run_events.jsonl"]]
    core = [row for row in found["memory_entries.jsonl"] if row["tier"] == "core"]
    (now,), (past,) = ([row for row in core if (row["valid_to"] is None) == holds] for holds in (True, False))
    assert (now["content"], past["content"], past["replaced_by"]) == (
        "water for heron",
        "tea for heron",
        now["id"],
    )
    assert (now["embedding_model"], past["embedding_model"]) == ("lexical", None)
    assert now["sources"][0]["kind"] == "conversation"
    secrets = [
        ada.password,
        ada.access_token,
        ada.refresh_token,
        f"token of {ada.id}",
        "argon2",
        "fingerprint",
        "sealed",
        "key_hash",
    ]
    assert [secret for secret in secrets if secret in text] == []
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        readme = opened.read("README.txt").decode()
    assert all(part.name in readme for part in registered_parts()) and str(ada.id) in readme


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_what_a_dry_run_found_is_in_it_whatever_ends_a_line(ada: Person, separator: str) -> None:
    agent = create_agent(ada.id)
    create_device(agent)
    claimed = claim_run(create_run(agent, dry_run=True))
    commit_tasks(claimed, f"Call{separator}heron")
    (run,) = files(fetched(exported(ada)))["runs.jsonl"]
    assert [record["data"]["title"] for record in run["records"]] == [f"Call{separator}heron"]


# Keys and keyed hashes, vectors, and what is about the archive itself; of rooms that are to come, their own parts.
LEFT_OUT = {
    "accounts_mail", "accounts_userkey", "accounts_deletion",
    "agents_source", "agents_sourceinflight", "export_export", "export_exportchunk",
    "accounts_user_groups", "accounts_user_user_permissions", "django_admin_log",
    "vault_changecounter", "billing_storedamount", "billing_storagereservation",  # sizes of what the archive has itself
    "billing_signin", "billing_ssosession", "billing_ssoevent",
    "integrations_consent", "agents_journeysession", "agents_agentcursor",
}  # fmt: skip


def test_no_table_of_a_user_is_left_out(ada: Person) -> None:
    lived(ada, "heron")
    with CaptureQueriesContext(connection) as queries:
        exported(ada)
    read = " ".join(each["sql"] for each in queries)
    theirs = {
        model._meta.db_table for model in apps.get_models(include_auto_created=True) if _is_theirs(model)
    }
    assert {"memory_entrysource", "chat_message", "agents_runevent"} <= theirs
    assert {
        table for table in theirs if f'FROM "{table}"' not in read and f'JOIN "{table}"' not in read
    } <= LEFT_OUT


def _is_theirs(model: type[Model], seen: frozenset[type[Model]] = frozenset()) -> bool:
    """Whether its rows belong to a user, by whatever way; two models may refer to each other."""
    seen |= {model}
    owners = {field.related_model for field in model._meta.concrete_fields if field.is_relation} - seen
    return any(owner is User or _is_theirs(owner, seen) for owner in owners)


def test_a_row_that_does_not_open_says_so_and_keeps_nothing_else_back(ada: Person) -> None:
    lived(ada, "heron")
    Message.objects.filter(conversation__user_id=ada.id, seq=1).update(sealed=b"\x01 altered")
    entry = Entry.objects.of(ada.id).filter(tier=Tier.EPISODIC).get()
    Entry.objects.filter(pk=entry.pk).update(sealed=Entry.objects.filter(tier=Tier.CORE).latest("pk").sealed)
    found = files(fetched(exported(ada)))
    assert [message.get("unreadable") for message in found["messages.jsonl"]] == [True, None]
    (broken,) = [row for row in found["memory_entries.jsonl"] if row.get("unreadable")]
    assert (broken["id"], broken["tier"], "content" in broken) == (str(entry.pk), "episodic", False)


# ── How it is kept ──────────────────────────────────────────────────────────────────────────────────────


def test_chunks_are_sealed_small_and_bound_to_their_place(
    ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_CHUNK_BYTES", 1024)
    lived(ada, "heron")
    export = exported(ada)
    assert export.chunks > 2 and files(fetched(export))
    chunks = list(ExportChunk.objects.filter(export=export).order_by("number"))
    assert [chunk.number for chunk in chunks] == list(range(export.chunks))
    assert all(len(chunk.sealed) < 1024 + 64 and b"PK\x03\x04" not in bytes(chunk.sealed) for chunk in chunks)
    first, second = (bytes(chunk.sealed) for chunk in chunks[:2])
    flipped = first[:40] + bytes([first[40] ^ 1]) + first[41:]
    for altered in (second, flipped):
        ExportChunk.objects.filter(pk=chunks[0].pk).update(sealed=altered)
        with pytest.raises(SealBroken):
            fetched(export)
    ExportChunk.objects.filter(pk=chunks[0].pk).update(sealed=first)
    again = exported(ada)
    assert not ExportChunk.objects.filter(export=export).exists()  # one archive an account
    ExportChunk.objects.filter(export=again, number=0).update(sealed=first)
    with pytest.raises(SealBroken):
        fetched(again)


def test_an_archive_is_fetched_until_its_time_is_over_or_its_owner_deletes_it(ada: Person) -> None:
    rest, export = client_of(ada), exported(ada)
    place = f"{API}/{export.pk}"
    seen = rest.get(place).json()
    assert (seen["state"], seen["size"]) == ("ready", export.size)
    assert rest.get(API).json() == [seen]
    answer = rest.get(f"{place}/archive", HTTP_ACCEPT="application/zip")
    assert (answer.status_code, answer["Content-Type"], answer["Content-Length"]) == (
        200,
        "application/zip",
        str(export.size),
    )
    assert answer["Content-Disposition"].startswith("attachment; filename=")
    Export.objects.filter(pk=export.pk).update(expires_at=Now())
    assert rest.get(place).json()["state"] == "expired"  # before any sweep
    assert rest.get(f"{place}/archive").status_code == 410
    services.sweep_exports()
    assert not ExportChunk.objects.filter(export=export).exists()
    other = exported(ada)
    assert rest.delete(f"{API}/{other.pk}").json() == {"ok": True}
    gone = rest.get(f"{API}/{other.pk}/archive", HTTP_ACCEPT="application/zip")
    assert (gone.status_code, gone.json()["code"]) == (410, "export_expired")
    assert not ExportChunk.objects.filter(export=other).exists()


def test_one_export_is_under_way_at_a_time_and_five_a_day(ada: Person) -> None:
    rest = client_of(ada)
    made = rest.post(API, {"password": ada.password})
    assert (made.status_code, made.json()["state"]) == (202, "queued")
    assert made["Location"].endswith(f"{API}/{made.json()['id']}")
    again = rest.post(API, {"password": ada.password})
    assert (again.status_code, again.json()["code"], again.json()["export_id"]) == (
        409,
        "export_is_live",
        made.json()["id"],
    )
    early = rest.get(f"{API}/{made.json()['id']}/archive")
    assert (early.status_code, early.json()["code"], early.json()["state"]) == (
        409,
        "export_not_ready",
        "queued",
    )
    for _ in range(services.MAX_PER_DAY):
        rest.delete(f"{API}/{rest.get(API).json()[0]['id']}")
        last = rest.post(API, {"password": ada.password})
    assert (last.status_code, last.json()["code"]) == (429, "too_many_exports")
    assert int(last["Retry-After"]) > 80_000


def test_another_users_export_is_answered_like_none(ada: Person) -> None:
    export, rest = exported(somebody()), client_of(ada)
    for method, more in (("get", ""), ("delete", ""), ("get", "/archive")):
        answers = [getattr(rest, method)(f"{API}/{key}{more}") for key in (export.pk, NOBODY)]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].json() == answers[1].json()
    assert rest.get(API).json() == []
    export.refresh_from_db()
    assert export.state == State.READY


# ── What dies on the way ────────────────────────────────────────────────────────────────────────────────


def test_the_export_of_a_dead_worker_is_made_by_another_and_that_one_writes_no_more(ada: Person) -> None:
    lived(ada, "heron")
    export = services.request_export(user_id=ada.id)
    first = build._claim(export.pk)
    assert first is not None and build._claim(export.pk) is None
    build._save_chunk(first, first.lease(build._LEASE), 0, b"half an archive")
    services.sweep_exports()
    assert build._claim(export.pk) is None  # its lease runs
    Export.objects.filter(pk=export.pk).update(lease_until=Now() - build._LEASE)
    services.sweep_exports()
    build.build_export(export.pk)
    with pytest.raises(LeaseLost):
        build._save_chunk(first, first.lease(build._LEASE), 1, b"the other half")
    export.refresh_from_db()
    assert (export.state, export.attempt) == (State.READY, 2)
    assert files(fetched(export))["messages.jsonl"]


def test_an_export_that_three_workers_died_over_failed(ada: Person) -> None:
    export = services.request_export(user_id=ada.id)
    for _ in range(services.MAX_ATTEMPTS):
        dying = build._claim(export.pk)
        assert dying is not None
        build._save_chunk(dying, dying.lease(build._LEASE), 0, b"half an archive")
        Export.objects.filter(pk=export.pk).update(lease_until=Now() - build._LEASE)
        services.sweep_exports()
    export.refresh_from_db()
    assert (export.state, export.code) == (State.FAILED, "workers_lost")
    assert not ExportChunk.objects.filter(export=export).exists()
    assert client_of(ada).get(f"{API}/{export.pk}/archive").json()["state"] == "failed"
    assert exported(ada).state == State.READY


@pytest.mark.parametrize(("gives_up", "state"), [(True, State.EXPIRED), (False, State.FAILED)])
def test_what_is_given_up_or_breaks_while_it_is_made_leaves_no_chunk(
    ada: Person, monkeypatch: pytest.MonkeyPatch, gives_up: bool, state: State
) -> None:
    def rows(user_id: uuid.UUID) -> Any:
        yield {"one": 1}
        if gives_up:
            services.delete_archive(export=Export.objects.of(user_id).live().get())
        else:
            raise ValueError("what a row says")

    monkeypatch.setattr(build, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(export_archive, "_parts", [*registered_parts(), ArchivePart("last.jsonl", "", rows)])
    export = exported(ada)
    assert (export.state, export.chunks) == (state, 0)
    assert not ExportChunk.objects.filter(export=export).exists()


# ── The account's end ───────────────────────────────────────────────────────────────────────────────────


def test_a_deleted_account_leaves_no_row_and_no_vector(ada: Person) -> None:
    stays = somebody()
    lived(ada, "heron"), lived(stays, "falcon")
    export = exported(ada)
    ids = {ada.id, export.pk, *Entry.objects.of(ada.id).values_list("pk", flat=True)}
    rooms = {table for table, _ in _rows_with(ids)}
    assert {
        *(model._meta.db_table for model in (Entry, Embedding, Receipt, Export, ExportChunk)),
        *("memory_entrysource", "memory_exchange", "memory_memory"),
    } <= rooms
    assert client_of(ada).delete("/api/v1/auth/me", {"password": ada.password}).json() == {"ok": True}
    assert _rows_with(ids) == []
    assert Entry.objects.of(stays.id).count() == 5


def _rows_with(ids: set[uuid.UUID]) -> list[tuple[str, str]]:
    """Every table and column of the whole database in which one of these ids stands."""
    found = []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND data_type = 'uuid'"
        )
        for table, column in cursor.fetchall():
            cursor.execute(f'SELECT 1 FROM "{table}" WHERE "{column}" = ANY(%s) LIMIT 1', [list(ids)])
            if cursor.fetchone():
                found.append((table, column))
    return found
