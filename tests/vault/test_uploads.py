"""Uploads that resume (tus 1.0): nothing is lost that was said to be there, and nothing counts that is not whole."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from django.db.models.functions import Now

from adiuva.object_store.models import Garbage
from adiuva.object_store.store import store
from adiuva.vault import receiving, uploads
from adiuva.vault.errors import TooManyUploads
from adiuva.vault.models import Upload
from tests.factories import Person
from tests.sampling import ONE_SERVER
from tests.vault.helpers import TUS, begin, eventually, payer, reserved, sealed, send, sha, used

MIB = 1024 * 1024
both_servers = pytest.mark.parametrize("web_on", ONE_SERVER, indirect=True)


@pytest.fixture
def rest_on(web_on: str, mara: Person) -> Iterator[httpx.Client]:
    with mara.rest(web_on) as client:
        yield client


def offset(rest: httpx.Client, upload: str) -> int:
    return int(rest.head(upload, headers=TUS).headers["Upload-Offset"])


def as_record(rest: httpx.Client, upload: str, data: bytes) -> httpx.Response:
    name = upload.rpartition("/")[2]
    return rest.post("/storage/records", json={"table": "files", "upload": name, "checksum": sha(data)})


@both_servers
def test_an_upload_in_parts_becomes_a_record(rest_on: httpx.Client) -> None:
    rest, data = rest_on, sealed(3 * MIB + 17)
    upload = begin(rest, len(data))
    assert (offset(rest, upload), reserved(rest), used(rest)) == (0, len(data), 0)
    at = 0
    for size in (MIB, 5, 2 * MIB + 12):
        answer = send(rest, upload, at, data[at : at + size])
        at += size
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, str(at)), answer.text
    made = as_record(rest, upload, data)
    assert made.status_code == 201, made.text
    got = rest.get(f"/storage/records/{made.json()['id']}")
    assert got.content == data and got.headers["X-Checksum"] == sha(data)
    assert (reserved(rest), used(rest)) == (0, len(data))
    assert rest.head(upload, headers=TUS).status_code == 404
    ranged = rest.get(f"/storage/records/{made.json()['id']}", headers={"Range": f"bytes={MIB}-{MIB + 9}"})
    assert (ranged.status_code, ranged.content) == (206, data[MIB : MIB + 10])


@both_servers
def test_what_a_broken_connection_brought_is_kept(rest_on: httpx.Client, mara: Person, web_on: str) -> None:
    rest, data = rest_on, sealed(5 * MIB)
    upload = begin(rest, len(data))
    address = urlsplit(web_on)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = (
            f"PATCH /api/v1{upload} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {mara.access_token}\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data[: 3 * MIB])
    there = _free_again(rest, upload)
    assert 0 < there <= 3 * MIB
    assert send(rest, upload, there + 1, data[there:]).json()["offset"] == there
    assert send(rest, upload, there, data[there:]).status_code == 204
    made = as_record(rest, upload, data)
    assert rest.get(f"/storage/records/{made.json()['id']}").content == data


def _free_again(rest: httpx.Client, upload: str) -> int:
    """The offset, once the broken request has let go."""
    mine = Upload.objects.filter(pk=name_of(upload), lease_until=None, offset__gt=0)
    eventually(mine.exists)
    return offset(rest, upload)


def test_a_fifth_request_at_once_waits_for_one_of_four(rest: httpx.Client, mara: Person) -> None:
    places = [begin(rest, 100) for _ in range(receiving.MOST_AT_ONCE + 1)]
    held = [receiving.open_receiver(mara.id, name_of(place), offset=0) for place in places[:-1]]
    refused = send(rest, places[-1], 0, bytes(100))
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_uploads")
    assert int(refused.headers["Retry-After"]) > 0
    held[0].give_up()
    assert send(rest, places[-1], 0, bytes(100)).status_code == 204
    for receiver in held:
        receiver.close()


def test_a_user_has_only_so_many_uploads_open(mara: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_OPEN", 2)
    for _ in range(2):
        uploads.begin(user_id=mara.id, purpose="storage", length=1)
    with pytest.raises(TooManyUploads):
        uploads.begin(user_id=mara.id, purpose="storage", length=1)


def test_an_upload_whose_bytes_the_store_lost_is_over(rest: httpx.Client, mara: Person) -> None:
    upload = begin(rest, 100)
    assert send(rest, upload, 0, bytes(50)).status_code == 204
    name = Upload.objects.get(user_id=mara.id).object
    assert name is not None
    store().delete(name)
    over = send(rest, upload, 50, bytes(50))
    assert (over.status_code, over.json()["code"]) == (410, "upload_expired")
    assert rest.head(upload, headers=TUS).status_code == 404 and reserved(rest) == 0


def name_of(upload: str) -> uuid.UUID:
    return uuid.UUID(upload.rpartition("/")[2])


def test_wrong_bytes_leave_nothing(rest: httpx.Client) -> None:
    data = sealed(100)
    upload = begin(rest, 100)
    send(rest, upload, 0, data)
    refused = as_record(rest, upload, b"something else")
    assert (refused.status_code, refused.json()["code"]) == (400, "checksum_mismatch")
    assert refused.json()["found"] == sha(data)
    assert (reserved(rest), used(rest)) == (0, 0) and rest.head(upload, headers=TUS).status_code == 404


def test_a_part_with_a_wrong_checksum_does_not_count(rest: httpx.Client) -> None:
    data = sealed(200)
    upload = begin(rest, 200)
    for algorithm in ("sha1", "sha256"):
        wrong = base64.b64encode(hashlib.new(algorithm, b"other").digest()).decode()
        refused = send(rest, upload, 0, data[:100], **{"Upload-Checksum": f"{algorithm} {wrong}"})
        assert (refused.status_code, offset(rest, upload)) == (460, 0)
    right = base64.b64encode(hashlib.sha256(data[:100]).digest()).decode()
    assert send(rest, upload, 0, data[:100], **{"Upload-Checksum": f"sha256 {right}"}).status_code == 204
    assert send(rest, upload, 100, data[100:], **{"Upload-Checksum": "crc32 AAAA"}).status_code == 400
    assert send(rest, upload, 100, data[100:]).status_code == 204
    assert as_record(rest, upload, data).status_code == 201


def test_requests_that_do_not_fit_are_refused(rest: httpx.Client) -> None:
    upload = begin(rest, 100)
    assert send(rest, upload, 1, b"x").json() == {
        "code": "offset_mismatch",
        "message": "the upload goes on at another place",
        "offset": 0,
    }
    assert send(rest, upload, 0, bytes(101)).json()["code"] == "too_large"
    assert send(rest, upload, 0, b"x", **{"Tus-Resumable": "0.9"}).status_code == 412
    assert send(rest, upload, 0, b"x", **{"Content-Type": "text/plain"}).status_code == 400
    incomplete = as_record(rest, upload, b"")
    assert (incomplete.status_code, incomplete.json()["code"]) == (409, "upload_incomplete")
    assert (incomplete.json()["offset"], incomplete.json()["length"]) == (0, 100)
    assert rest.post("/storage/uploads", headers=TUS).json()["code"] == "length_required"
    huge = rest.post("/storage/uploads", headers={**TUS, "Upload-Length": str(10**15)})
    assert (huge.status_code, huge.json()["code"]) == (413, "too_large")
    options = rest.options("/storage/uploads")
    assert options.status_code == 204 and "creation" in options.headers["Tus-Extension"]
    for_a_backup = begin(rest, 0, "backup")
    assert as_record(rest, for_a_backup, b"").status_code == 409
    assert rest.delete(upload, headers=TUS).status_code == 204
    assert rest.head(upload, headers=TUS).status_code == 404 and reserved(rest) == 0


def test_two_requests_are_never_at_one_upload(rest: httpx.Client) -> None:
    upload = begin(rest, 100)
    held = receiving.open_receiver(_owner(upload), name_of(upload), offset=0)
    busy = send(rest, upload, 0, bytes(100))
    assert (busy.status_code, busy.json()["code"]) == (423, "upload_busy")
    assert busy.headers["Retry-After"]
    assert rest.delete(upload, headers=TUS).status_code == 423
    held.give_up()
    held.close()
    assert send(rest, upload, 0, bytes(100)).status_code == 204


def _owner(upload: str) -> uuid.UUID:
    return Upload.objects.get(pk=name_of(upload)).user_id


def test_an_upload_that_nobody_goes_on_with_expires_with_its_room(rest: httpx.Client, mara: Person) -> None:
    upload = begin(rest, 100)
    send(rest, upload, 0, bytes(50))
    name = Upload.objects.get(user_id=mara.id).object
    Upload.objects.of(mara.id).update(expires_at=Now())
    gone = send(rest, upload, 50, bytes(50))
    assert (gone.status_code, gone.json()["code"]) in ((410, "upload_expired"), (404, "not_found"))
    uploads.expire()
    assert not Upload.objects.of(mara.id).exists() and reserved(rest) == 0
    assert Garbage.objects.filter(name=name).values_list("owner", flat=True).first() is None


def test_after_a_database_was_restored_uploads_begin_anew_and_their_objects_wait(
    rest: httpx.Client, mara: Person
) -> None:
    data = sealed(1000)
    upload = begin(rest, 1000)
    send(rest, upload, 0, data[:400])
    older = Upload.objects.of(mara.id).get()
    send(rest, upload, 400, data[400:])
    named = {"table": "notes", "upload": upload.rpartition("/")[2], "checksum": sha(data)}
    assert rest.post("/storage/records", json=named).status_code == 201
    older.save(force_insert=True)  # as in a dump of then
    over = send(rest, upload, 400, data[400:])
    assert (over.status_code, over.json()["code"]) == (410, "upload_expired")
    older.save(force_insert=True)
    Garbage.objects.filter(name=older.object).delete()
    uploads.end_all()
    assert rest.head(upload, headers=TUS).status_code in (404, 410)
    while Upload.objects.of(mara.id).exists():
        uploads.expire()
    assert not Garbage.objects.filter(name=older.object).exists()
    assert b"".join(store().read(str(older.object), 0, 1000)) == data


def test_another_user_s_upload_is_answered_like_none(rest: httpx.Client, web: str) -> None:
    upload = begin(rest, 10)
    with payer().rest(web) as other:
        assert send(other, upload, 0, b"x").status_code == 404
        assert other.head(upload, headers=TUS).status_code == 404
        assert other.delete(upload, headers=TUS).status_code == 404
        assert as_record(other, upload, b"").status_code == 404
    assert offset(rest, upload) == 0


@both_servers
def test_a_bad_token_is_refused_before_its_body(web_on: str) -> None:
    address = urlsplit(web_on)
    for method, path in (("PUT", "/backup"), ("PATCH", f"/storage/uploads/{uuid.uuid4()}")):
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(
                f"{method} /api/v1{path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer no\r\n"
                "Content-Length: 1073741824\r\n\r\n".encode()
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


@both_servers
@pytest.mark.parametrize(
    ("route", "token"),
    [
        ("POST /auth/login", "Authorization: Bearer no\r\n"),
        ("POST /storage/records", "Authorization: Bearer no\r\n"),
        ("POST /nothing/here", "Authorization: Bearer no\r\n"),
        ("PUT /backup", "Authorization: Bearer no\r\n"),
        ("POST /chat", "Authorization: Bearer no\r\n"),
        ("POST /storage/records", ""),
        ("PUT /backup", ""),
    ],
)
def test_of_strangers_no_more_is_read_than_shows_them_the_answer(web_on: str, route: str, token: str) -> None:
    address, (method, path) = urlsplit(web_on), route.split()
    piece, left = bytes(1024 * 1024), 64 * 1024 * 1024
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(
            f"{method} /api/v1{path} HTTP/1.1\r\nHost: {address.netloc}\r\n{token}"
            f"Content-Type: application/json\r\nContent-Length: {left}\r\n\r\n".encode()
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 4")
        connection.settimeout(10)  # the server closes after two seconds
        with contextlib.suppress(OSError):
            while left:
                left -= connection.send(piece)
    assert left > 40 * 1024 * 1024  # the rest lies in the buffers of both ends
