"""Backups: stored as they were sent or not at all, told when they are damaged."""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from django.conf import settings as configured
from django.utils.timezone import now

from adiuva.accounts import services
from adiuva.accounts.models import User
from adiuva.object_store import garbage
from adiuva.object_store.models import Garbage
from adiuva.vault import backups, limits, receiving, scrub, uploads
from adiuva.vault.backups import Description
from adiuva.vault.errors import BaseMissing, OthersBuildOnIt
from adiuva.vault.models import Backup, Upload
from tests.conflicts import conflicts_of
from tests.factories import Person
from tests.sampling import ONE_SERVER
from tests.vault.helpers import backup_headers, begin, eventually, payer, reserved, sealed, send, sha, used

MIB = 1024 * 1024
NOW = 1_790_000_000_123


def put(rest: httpx.Client, data: bytes, at: int = NOW, **more: str) -> httpx.Response:
    return rest.put("/backup", content=data, headers=backup_headers(data, at, **more))


def place_of(name: str) -> Path:
    return Path(urlsplit(configured.STORE["url"]).path) / name


@pytest.mark.parametrize("web_on", ONE_SERVER, indirect=True)
def test_a_backup_lives_as_the_wire_says(web_on: str, mara: Person) -> None:
    first, second = sealed(2 * MIB + 1), sealed(1000)
    with mara.rest(web_on) as rest:
        assert rest.get("/backup").status_code == 404
        assert put(rest, first).json() == {"ok": True}
        assert put(rest, second, NOW + 60_000, **{"X-Backup-Chunks": "3"}).json() == {"ok": True}
        got = rest.get("/backup")
        assert got.content == second
        for name, value in backup_headers(second, NOW + 60_000).items():
            assert got.headers[name] == value
        newest, oldest = rest.get("/backup/history").json()
        assert (newest["chunk_count"], newest["size_bytes"], newest["timestamp"]) == (3, 1000, NOW + 60_000)
        assert (oldest["version"], oldest["state"]) == (1, "ok")
        assert rest.get(f"/backup/{oldest['id']}").content == first
        part = rest.get(f"/backup/{oldest['id']}", headers={"Range": f"bytes={MIB}-"})
        assert (part.status_code, part.content) == (206, first[MIB:])
        assert used(rest, "backup") == len(first) + len(second) and reserved(rest, "backup") == 0
        assert rest.delete(f"/backup/{newest['id']}").json() == {"ok": True}
        assert rest.delete(f"/backup/{newest['id']}").status_code == 404
        assert rest.get("/backup").content == first and used(rest, "backup") == len(first)


def test_the_same_again_is_no_second_one_and_other_bytes_of_its_time_are_refused(rest: httpx.Client) -> None:
    data = sealed()
    assert put(rest, data).status_code == put(rest, data).status_code == 200
    refused = put(rest, sealed())
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert len(rest.get("/backup/history").json()) == 1 and used(rest, "backup") == 100


def test_what_a_client_has_is_not_sent_again(rest: httpx.Client) -> None:
    data = sealed()
    put(rest, data)
    got = rest.get("/backup")
    for name, value in (
        ("If-None-Match", got.headers["ETag"]),
        ("If-Modified-Since", got.headers["Last-Modified"]),
    ):
        assert rest.get("/backup", headers={name: value}).status_code == 304, name
    other = rest.get("/backup", headers={"If-Match": f'"{"0" * 64}"'})
    assert (other.status_code, other.json()["code"]) == (412, "changed_meanwhile")
    assert other.json()["checksum"] == sha(data)
    put(rest, sealed(), NOW + 1000)
    for name in ("ETag", "Last-Modified"):
        header = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}[name]
        assert rest.get("/backup", headers={header: got.headers[name]}).status_code == 200


def test_what_is_not_as_it_says_leaves_nothing(rest: httpx.Client, mara: Person) -> None:
    data = sealed()
    wrong = put(rest, data, **{"X-Backup-Checksum": "0" * 64})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "checksum_mismatch")
    assert wrong.json()["found"] == hashlib.sha256(data).hexdigest()
    for name, bad in (("X-Backup-Version", "x"), ("X-Backup-Timestamp", "-1"), ("X-Backup-Checksum", "12")):
        refused = put(rest, data, **{name: bad})
        assert refused.status_code == 400 and name in refused.json()["fields"]
    unknown = rest.put("/backup", content=iter([data]), headers=backup_headers(data, NOW))
    assert (unknown.status_code, unknown.json()["code"]) == (411, "length_required")
    assert rest.get("/backup/history").json() == []
    assert (used(rest, "backup"), reserved(rest, "backup")) == (0, 0)
    assert not Upload.objects.of(mara.id).exists()


def test_a_time_that_http_has_no_date_for_is_refused_and_an_older_row_of_it_can_be_read(
    rest: httpx.Client, mara: Person
) -> None:
    data, last = sealed(), 253_402_300_799_999
    assert put(rest, data, last).status_code == 200
    assert rest.get("/backup").headers["Last-Modified"] == "Fri, 31 Dec 9999 23:59:59 GMT"
    for name in ("X-Backup-Timestamp", "X-Backup-Base"):
        refused = put(rest, sealed(), **{name: str(last + 1)})
        assert refused.status_code == 400
        assert refused.json()["fields"] == {name: [f"Not a whole number from 0 to {last}."]}
    Backup.objects.of(mara.id).update(timestamp_ms=NOW * 1000)
    got = rest.get("/backup")
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["X-Backup-Timestamp"] == str(NOW * 1000)


def test_an_upload_in_parts_becomes_a_backup(rest: httpx.Client) -> None:
    data = sealed(1000)
    upload = begin(rest, 1000, "backup")
    send(rest, upload, 0, data[:400])
    send(rest, upload, 400, data[400:])
    named = backup_headers(data, NOW, **{"X-Upload-Id": upload.rpartition("/")[2]})
    for _ in range(2):  # its answer may have been lost
        assert rest.put("/backup", headers=named).json() == {"ok": True}
    assert rest.get("/backup").content == data
    nowhere = backup_headers(b"", NOW + 1, **{"X-Upload-Id": str(uuid.uuid4())})
    assert rest.put("/backup", headers=nowhere).status_code == 404


def stored(person: Person, data: bytes, at: int, base: int | None = None) -> Backup:
    """A backup, without HTTP."""
    upload = uploads.begin(user_id=person.id, purpose="backup", length=len(data), direct=True)
    receiver = receiving.open_receiver(person.id, upload.pk, offset=0, direct=True)
    receiver.write(data)
    described = Description(1, at, hashlib.sha256(data).digest(), base_ms=base)
    made = backups.store(person.id, described, receiver.finish())
    receiver.close()
    return made


def test_the_oldest_beyond_those_that_are_kept_end(mara: Person, settings: Any) -> None:
    settings.STORE = {**settings.STORE, "keep_backups": 2}
    made = [stored(mara, sealed(10 + at), at) for at in range(4)]
    left = list(Backup.objects.of(mara.id).newest_first())
    assert left == made[:1:-1]
    assert Garbage.objects.get(name=made[0].object).owner == mara.id


def test_a_backup_of_a_clock_that_is_slow_ends_no_sooner(mara: Person, settings: Any) -> None:
    settings.STORE = {**settings.STORE, "keep_backups": 2}
    fast = [stored(mara, sealed(), at) for at in (NOW, NOW + 1)]
    slow = [stored(mara, sealed(), at) for at in (1, 2)]
    left = set(Backup.objects.of(mara.id))
    assert left == {*slow, fast[1]}  # and the newest by its own time


def test_what_is_kept_is_kept_with_what_it_builds_on(mara: Person, settings: Any) -> None:
    settings.STORE = {**settings.STORE, "keep_backups": 2}
    times = [(1, None), (2, 1), (3, 2), (4, None)]
    made = {at: stored(mara, sealed(10 + at), at, base) for at, base in times}
    mine = Backup.objects.of(mara.id)
    assert set(mine.values_list("timestamp_ms", flat=True)) == {1, 2, 3, 4}
    with pytest.raises(OthersBuildOnIt):
        backups.delete(user_id=mara.id, backup_id=made[2].pk)
    stored(mara, sealed(), 5)
    assert set(mine.values_list("timestamp_ms", flat=True)) == {4, 5}


def test_nothing_is_built_on_what_is_not_there_or_damaged(rest: httpx.Client, mara: Person) -> None:
    data = sealed()
    for _ in range(2):
        refused = put(rest, data, **{"X-Backup-Base": "5"})
        assert (refused.status_code, refused.json()["code"]) == (409, "base_missing")
        put(rest, sealed(), 5)
        Backup.objects.of(mara.id).update(corrupt=True)
    Backup.objects.of(mara.id).update(corrupt=False)
    assert put(rest, data, **{"X-Backup-Base": "5"}).status_code == 200
    assert rest.get("/backup").headers["X-Backup-Base"] == "5"
    assert [each["base"] for each in rest.get("/backup/history").json()] == [5, None]
    backups.delete(user_id=mara.id, backup_id=backups.latest(mara.id).pk)
    assert used(rest, "backup") == 100 and reserved(rest, "backup") == 0
    with pytest.raises(BaseMissing):  # also where it went while the bytes came
        stored(mara, sealed(), 9, base=8)


def test_a_backup_is_never_deleted_while_another_is_built_on_it(rest: httpx.Client, mara: Person) -> None:
    for at in range(10, 30, 2):
        base = stored(mara, sealed(), at)
        with ThreadPoolExecutor(2) as pool:
            deleted = pool.submit(rest.delete, f"/backup/{base.pk}")
            built = pool.submit(put, rest, sealed(), at + 1, **{"X-Backup-Base": str(at)})
        answers = (deleted.result().status_code, built.result().status_code)
        assert answers in ((200, 409), (409, 200)), answers


def flip_a_bit(name: str, at: int) -> None:
    with place_of(name).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_damage_is_found_told_and_mended_by_the_client(rest: httpx.Client, mara: Person) -> None:
    data = sealed(2 * MIB)
    put(rest, data)
    row = Backup.objects.get(user_id=mara.id)
    flip_a_bit(row.object, MIB + 3)
    with pytest.raises(httpx.RemoteProtocolError):  # no clean end
        rest.get("/backup")
    refused = rest.get("/backup")
    assert (refused.status_code, refused.json()["code"]) == (409, "corrupt")
    assert rest.get("/backup/history").json()[0]["state"] == "corrupt"
    assert rest.get("/storage/usage").json()["corrupt"] == 1
    assert put(rest, data).status_code == 200
    assert rest.get("/backup").content == data and used(rest, "backup") == len(data)
    assert [each["state"] for each in rest.get("/backup/history").json()] == ["ok"]


def test_scrubbing_finds_each_flipped_bit(mara: Person) -> None:
    made = [stored(mara, sealed(300 + at), at) for at in range(8)]
    for backup in made[:5]:
        flip_a_bit(backup.object, backup.size // 2)
    place_of(made[5].object).unlink()
    mine = Backup.objects.of(mara.id)
    for backup in mine:
        scrub._verify(backup, found := scrub.ScrubCounts())
        assert found.checked == 1
    assert set(mine.filter(corrupt=True)) == set(made[:6])


def test_a_deleted_account_leaves_no_object(mara: Person) -> None:
    backup = stored(mara, sealed(), 1)
    replaced = stored(mara, sealed(), 2)
    backups.delete(user_id=mara.id, backup_id=replaced.pk)
    upload = uploads.begin(user_id=mara.id, purpose="storage", length=10)
    receiver = receiving.open_receiver(mara.id, upload.pk, offset=0)
    receiver.write(b"12345")
    services.delete_account(user=User.objects.get(pk=mara.id))
    receiver.give_up()
    receiver.close()
    names = {backup.object, replaced.object, upload.object}
    queued = Garbage.objects.filter(name__in=names)
    # A worker of another test may have begun to delete them.
    assert set(queued.values_list("owner", flat=True)) <= {None}
    while queued.exists():
        garbage.collect()
    assert not any(place_of(name).exists() for name in names if name)


def test_what_is_deleted_waits_for_a_restored_database_and_orphans_are_found(
    mara: Person, settings: Any
) -> None:
    backup = stored(mara, sealed(), 1)
    backups.delete(user_id=mara.id, backup_id=backup.pk)
    garbage.collect()
    assert place_of(backup.object).exists()
    kept = stored(mara, sealed(), 2)
    Garbage.objects.filter(name=backup.object).delete()  # as in a database that is older than the store
    shards = [backup.object.rpartition("/")[0], kept.object.rpartition("/")[0]]
    garbage.compare(shards)
    assert not Garbage.objects.filter(name=backup.object).exists()  # it is too young
    garbage.compare(shards, older_than=-garbage.dt.timedelta(hours=1))
    assert not Garbage.objects.filter(name=kept.object).exists()
    while Garbage.objects.filter(name=backup.object).exists():
        garbage.collect()
    assert not place_of(backup.object).exists() and place_of(kept.object).exists()


def test_an_object_that_the_store_lost_is_missed_within_a_day(rest: httpx.Client, mara: Person) -> None:
    lost, kept = stored(mara, sealed(), 1), stored(mara, sealed(), 2)
    place_of(lost.object).unlink()
    garbage.compare([each.object.rpartition("/")[0] for each in (lost, kept)])
    states = {each["timestamp"]: each["state"] for each in rest.get("/backup/history").json()}
    assert states == {1: "corrupt", 2: "ok"}
    assert rest.get(f"/backup/{lost.pk}").json()["code"] == "corrupt"


def test_a_backup_that_breaks_off_leaves_nothing(rest: httpx.Client, mara: Person, web: str) -> None:
    address, data = urlsplit(web), sealed(3 * MIB)
    named = "".join(f"{name}: {value}\r\n" for name, value in backup_headers(data, NOW).items())
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = (
            f"PUT /api/v1/backup HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {mara.access_token}\r\n{named}Content-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data[: 2 * MIB])
        eventually(lambda: reserved(rest, "backup") == len(data))
    eventually(lambda: reserved(rest, "backup") == 0)
    assert used(rest, "backup") == 0 and rest.get("/backup").status_code == 404
    assert not Upload.objects.of(mara.id).exists()
    assert put(rest, data).json() == {"ok": True}  # the same time is free


def test_another_user_s_backup_is_answered_like_none(rest: httpx.Client, web: str) -> None:
    put(rest, sealed())
    (mine,) = rest.get("/backup/history").json()
    with payer().rest(web) as other:
        assert other.get(f"/backup/{mine['id']}").status_code == 404
        assert other.delete(f"/backup/{mine['id']}").status_code == 404
        assert other.get("/backup").status_code == 404 and other.get("/backup/history").json() == []
    assert rest.get("/backup").status_code == 200


def test_a_backup_that_ends_an_older_one_while_that_is_deleted(mara: Person, settings: Any) -> None:
    settings.STORE = {**settings.STORE, "keep_backups": 1}
    limits.amounts().add(mara.id, "backup_bytes", 10)
    fields: dict[str, Any] = {"user_id": mara.id, "version": 1, "chunk_count": 1, "checksum": b"0" * 32}
    older = Backup.objects.create(**fields, timestamp_ms=NOW, size=10, object=uuid.uuid4().hex)
    reservation = limits.amounts().reserve(mara.id, "backup_bytes", 5, lifetime=dt.timedelta(minutes=5))
    upload = Upload.objects.create(
        user_id=mara.id,
        purpose="backup",
        length=5,
        offset=5,
        object=uuid.uuid4().hex,
        reservation=reservation,
        expires_at=now() + dt.timedelta(minutes=5),
    )
    lease = upload.lease(dt.timedelta(minutes=1))
    whole = uploads.Whole(lease, str(upload.object), 5, b"1" * 32, reservation)
    described = Description(1, NOW + 1, whole.checksum)
    assert not conflicts_of(
        lambda: backups._store(mara.id, described, whole),
        lambda: backups.delete(user_id=mara.id, backup_id=older.pk),
    )
