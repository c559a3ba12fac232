"""Room of the installation, senders that fall silent, and what is counted: refused in words, and set right."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from adiuva import body_guard, body_streams
from adiuva.body_streams import BodyStreams
from adiuva.object_store.store import StorageFull
from adiuva.vault import capacity, receiving, records, recount, uploads, vectors
from adiuva.vault.models import Upload
from adiuva.vault.vectors import NewVector
from billing import storage_quota
from billing.models import StoredAmount
from tests.factories import Person
from tests.vault.helpers import backup_headers, sealed

NOTHING_FREE = 2**62


def ask(
    person: Person, method: str, path: str, headers: dict[str, str], pieces: Sequence[bytes]
) -> tuple[int, Any]:
    """A request whose body comes in these pieces, and then falls silent. Returns the status, and the JSON if any."""
    sent: list[dict[str, Any]] = []
    left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    given = {"Authorization": f"Bearer {person.access_token}", **headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": f"/api/v1{path}", "headers": pairs}
    asyncio.run(BodyStreams(_not_reached)(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], orjson.loads(body) if body else None


async def _not_reached(*_: Any) -> None:
    raise AssertionError("Django took the body")


def part(offset: int, length: int) -> dict[str, str]:
    return {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
        "Content-Length": str(length),
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_streams, "IDLE_S", 0.05)
    monkeypatch.setattr(body_guard, "LINGER_S", 0.01)


def test_a_silent_sender_is_told_and_what_came_is_kept(mara: Person) -> None:
    upload = uploads.begin(user_id=mara.id, purpose="storage", length=100)
    status, told = ask(mara, "PATCH", f"/storage/uploads/{upload.pk}", part(0, 100), [bytes(30), bytes(10)])
    assert (status, told["code"]) == (408, "too_slow")
    upload.refresh_from_db()
    assert (upload.offset, upload.lease_until) == (40, None)


def test_a_silent_sender_of_a_backup_leaves_nothing(mara: Person) -> None:
    data = sealed()
    headers = {**backup_headers(data, 1), "Content-Length": str(len(data))}
    status, told = ask(mara, "PUT", "/backup", headers, [data[:50]])
    assert (status, told["code"]) == (408, "too_slow")
    assert not Upload.objects.of(mara.id).exists()
    assert storage_quota.amounts(mara.id)["backup_bytes"][:2] == (0, 0)


def test_a_disk_without_room_is_told_and_what_came_is_kept(mara: Person, settings: Any) -> None:
    upload = uploads.begin(user_id=mara.id, purpose="storage", length=100)
    settings.STORE = {**settings.STORE, "least_free_bytes": NOTHING_FREE}
    with pytest.raises(StorageFull):  # nothing new
        uploads.begin(user_id=mara.id, purpose="storage", length=1)
    place = f"/storage/uploads/{upload.pk}"
    status, told = ask(mara, "PATCH", place, part(0, 100), [bytes(100)])
    assert (status, told["code"]) == (507, "storage_full")
    data = sealed()
    status, told = ask(mara, "PUT", "/backup", {**backup_headers(data, 1), "Content-Length": "100"}, [data])
    assert (status, told["code"]) == (507, "storage_full")
    assert storage_quota.amounts(mara.id)["backup_bytes"][:2] == (0, 0)
    settings.STORE = {**settings.STORE, "least_free_bytes": 0}
    upload.refresh_from_db()
    assert (upload.offset, upload.lease_until) == (0, None)
    receiver = receiving.open_receiver(mara.id, upload.pk, offset=0)
    receiver.write(bytes(100))
    assert receiver.end() == 100
    receiver.close()


def test_the_installation_has_a_cap(mara: Person, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_total", capacity.Known(lambda: held(mara)))  # other tests store too
    settings.STORE = {**settings.STORE, "most_bytes": 100}
    uploads.begin(user_id=mara.id, purpose="backup", length=60)
    for refused in (
        lambda: uploads.begin(user_id=mara.id, purpose="storage", length=41),
        lambda: record(mara, 41),
        lambda: vector(mara, 41),
    ):
        with pytest.raises(StorageFull):
            refused()
    record(mara, 30)
    vector(mara, 10)
    with pytest.raises(StorageFull):
        record(mara, 1)
    settings.STORE = {**settings.STORE, "most_bytes": 0}
    record(mara, 1)
    monkeypatch.setattr(capacity, "_total", capacity.Known(lambda: held(mara)))
    settings.STORE = {**settings.STORE, "most_bytes": 102}
    record(mara, 1)  # what is there is counted by rows
    with pytest.raises(StorageFull):
        record(mara, 1)


def held(person: Person) -> int:
    found = storage_quota.amounts(person.id)
    return sum(sum(found[kind][:2]) for kind in ("storage_bytes", "backup_bytes") if kind in found)


def test_room_that_became_free_is_seen_before_a_refusal(
    mara: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, counts, bytes_ = [0.0], [0], [90]

    def count() -> int:
        counts[0] += 1
        return bytes_[0]

    monkeypatch.setattr(capacity, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    known = capacity.Known(count)
    known.take(10, 100)
    with pytest.raises(StorageFull):
        known.take(1, 100)
    assert counts == [1]  # known just now
    bytes_[0], clock[0] = 50, 2.0
    for _ in range(50):
        known.take(1, 100)
    assert counts == [2]
    bytes_[0], clock[0] = 0, 3.5
    for _ in range(5):
        known.take(1, 100)
    assert counts == [3]


def test_beginning_an_upload_reads_all_others_only_where_room_is_short(
    mara: Person, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = [0]

    def count() -> int:
        sums[0] += 1
        return 0

    monkeypatch.setattr(capacity, "_expected", capacity.Known(count))
    for _ in range(5):
        uploads.begin(user_id=mara.id, purpose="storage", length=1)
    assert sums == [1]
    settings.STORE = {**settings.STORE, "url": "s3://bucket/vault"}
    monkeypatch.setattr(capacity, "_expected", capacity.Known(count))
    uploads.begin(user_id=mara.id, purpose="storage", length=1)
    assert sums == [1]  # nobody knows how much room a bucket has


def record(person: Person, size: int) -> None:
    data = sealed(size)
    content = records.inline(data, hashlib.sha256(data).digest())
    records.create(user_id=person.id, table="t", content=content)


def vector(person: Person, size: int) -> None:
    data = sealed(size)
    given = NewVector.of("v", id="a", vector=[1], blob=data, checksum=hashlib.sha256(data).digest(), tags=())
    vectors.upsert(user_id=person.id, space=0, given=[given])


def test_what_is_counted_wrongly_is_logged_and_set_right(mara: Person) -> None:
    record(mara, 100)
    vector(mara, 20)
    uploads.begin(user_id=mara.id, purpose="backup", length=60)

    def mine() -> list[recount.Difference]:
        return [each for each in recount.compare() if each.user_id == mara.id]

    assert mine() == []
    amounts = StoredAmount.objects.filter(user_id=mara.id)
    amounts.filter(kind="storage_bytes").update(used=127)
    amounts.filter(kind="vectors").update(used=0)
    amounts.filter(kind="backup_bytes").update(reserved=61)
    storage, backup = ("storage_bytes", 7, 0), ("backup_bytes", 0, 1)
    found = {(each.kind, each.used, each.reserved) for each in mine()}
    assert found == {storage, backup, ("vectors", -1, 0)}
    assert [(each.kind, each.reserved) for each in mine()] == [
        ("backup_bytes", 1)
    ]  # it ends with its uploads
    assert storage_quota.amounts(mara.id)["storage_bytes"][:2] == (120, 0)
    assert storage_quota.amounts(mara.id)["vectors"][:2] == (1, 0)
