"""Records: stored as they are, never lost to another writer, listed without gaps."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from django.db.models.functions import Now
from rest_framework.test import APIClient

from adiuva.vault import changes, records, scrub, sweep
from adiuva.vault.models import Record
from adiuva.vault.records import Precondition
from billing import plans
from billing.models import StoredAmount
from tests.factories import Person, somebody
from tests.vault.helpers import content, payer, sealed, sha, used

RECORDS = "/storage/records"


def create(rest: httpx.Client, data: bytes, **more: Any) -> str:
    made = rest.post(RECORDS, json=content(data, **{"table": "notes", **more}))
    assert made.status_code == 201, made.text
    found: str = made.json()["id"]
    return found


def if_match(data: bytes) -> dict[str, str]:
    return {"If-Match": f'"{sha(data)}"'}


def test_a_record_lives_as_the_wire_says(rest: httpx.Client) -> None:
    first, second = sealed(), sealed(2000)
    made = rest.post(RECORDS, json=content(first, table="notes"))
    assert made.status_code == 201 and set(made.json()) == {"id", "created_at"}
    place = f"{RECORDS}/{made.json()['id']}"
    got = rest.get(place)
    assert (got.content, got.headers["X-Checksum"]) == (first, sha(first))
    assert got.headers["ETag"] == f'"{sha(first)}"'
    replaced = rest.put(place, json=content(second))
    assert replaced.json() == {"ok": True, "checksum": sha(second), "version": 2}
    assert used(rest) == 2000
    (listed,) = rest.get(RECORDS, params={"table": "notes"}).json()
    assert {"id", "table", "checksum", "created_at", "updated_at"} <= set(listed)
    assert rest.get(RECORDS, params={"table": "tasks"}).json() == []
    assert rest.delete(place).json() == {"ok": True}
    assert rest.get(place).status_code == 404 and rest.delete(place).status_code == 404
    assert used(rest) == 0 and rest.get(RECORDS).json() == []


def test_bytes_that_do_not_have_their_checksum_are_refused(rest: httpx.Client) -> None:
    wrong = {**content(b"abc"), "checksum": sha(b"abd"), "table": "notes"}
    refused = rest.post(RECORDS, json=wrong)
    assert (refused.status_code, refused.json()["code"]) == (400, "checksum_mismatch")
    assert (refused.json()["expected"], refused.json()["found"]) == (sha(b"abd"), sha(b"abc"))
    for field, bad in (("blob", "%%%"), ("checksum", "00"), ("table", "a b"), ("blob", 1), ("table", "")):
        answer = rest.post(RECORDS, json={**content(b"abc", table="notes"), field: bad})
        assert answer.status_code == 400 and field in answer.json()["fields"], (field, answer.text)
    assert rest.get(RECORDS).json() == [] and used(rest) == 0


def test_what_changed_meanwhile_is_not_overwritten_and_equal_content_is_no_conflict(
    rest: httpx.Client,
) -> None:
    mine, theirs, newest = sealed(), sealed(), sealed()
    place = f"{RECORDS}/{create(rest, mine)}"
    assert rest.put(place, json=content(theirs), headers=if_match(mine)).status_code == 200
    refused = rest.put(place, json=content(newest), headers=if_match(mine))
    assert (refused.status_code, refused.json()["code"]) == (412, "changed_meanwhile")
    assert (refused.json()["checksum"], refused.json()["version"]) == (sha(theirs), 2)
    same = rest.put(place, json=content(theirs), headers=if_match(mine))  # a retry whose answer was lost
    assert (same.status_code, same.json()["version"]) == (200, 2)
    assert rest.delete(place, headers=if_match(mine)).status_code == 412
    assert rest.get(place).content == theirs
    assert rest.put(place, json=content(newest), headers={"If-Match": "*"}).status_code == 200
    assert rest.put(place, json=content(mine), headers={"If-Match": "what"}).status_code == 400
    only_new = {"If-None-Match": "*"}
    assert rest.put(place, json=content(mine, table="notes"), headers=only_new).status_code == 412
    other = f"{RECORDS}/{uuid.uuid4()}"
    assert rest.put(other, json=content(mine)).status_code == 404
    assert rest.put(other, json=content(mine, table="notes"), headers=only_new).status_code == 201


def test_a_record_with_the_client_s_own_id_is_made_once(rest: httpx.Client) -> None:
    data, own = sealed(), str(uuid.uuid4())
    assert create(rest, data, id=own) == own
    again = rest.post(RECORDS, json=content(data, table="notes", id=own))
    assert (again.status_code, again.json()["id"]) == (200, own)
    other = rest.post(RECORDS, json=content(sealed(), table="notes", id=own))
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert used(rest) == len(data)


def test_fifty_writers_of_one_record_lose_nothing(rest: httpx.Client, web: str, mara: Person) -> None:
    place = f"{RECORDS}/{create(rest, b'')}"
    at_once = threading.Barrier(10)

    def write(number: int) -> int:
        """Add a byte of one's own to what is there, until it is accepted. Returns how often it was refused."""
        at_once.wait()
        refused = 0
        with mara.rest(web) as client:
            for step in range(2):
                while True:
                    there = client.get(place).content
                    new = there + bytes([number * 2 + step])
                    answer = client.put(place, json=content(new), headers=if_match(there))
                    if answer.status_code == 200:
                        break
                    assert answer.json()["code"] == "changed_meanwhile"
                    refused += 1
        return refused

    with ThreadPoolExecutor(10) as pool:
        refusals = sum(pool.map(write, range(10)))
    found = rest.get(place)
    assert sorted(found.content) == list(range(20)) and found.headers["X-Version"] == "21"
    assert refusals > 0 and used(rest) == 20


def test_changes_name_each_change_once_and_deletions(rest: httpx.Client) -> None:
    empty = rest.get("/storage/changes").json()
    assert (empty["changes"], empty["complete"]) == ([], True)
    first, second = create(rest, sealed()), create(rest, sealed())
    found = rest.get("/storage/changes", params={"limit": 1}).json()
    assert [each["id"] for each in found["changes"]] == [first]
    assert (found["more"], found["complete"]) == (True, False)
    rest.put(f"{RECORDS}/{first}", json=content(b"new"))
    rest.delete(f"{RECORDS}/{second}")
    found = rest.get("/storage/changes", params={"since": found["cursor"]}).json()
    shown = [(each["id"], each["version"], each["deleted"]) for each in found["changes"]]
    assert shown == [(first, 2, False), (second, 2, True)] and found["complete"]
    later = rest.get("/storage/changes", params={"since": found["cursor"]}).json()
    assert (later["changes"], later["cursor"]) == ([], found["cursor"])
    assert rest.get("/storage/changes", params={"since": "nonsense"}).status_code == 400


def test_cursor_readers_miss_nothing_while_others_write(rest: httpx.Client, web: str, mara: Person) -> None:
    done = threading.Event()
    seen: dict[str, int] = {}

    def read() -> None:
        cursor = ""
        with mara.rest(web) as client:
            while True:
                last = done.is_set()
                while True:
                    found = client.get("/storage/changes", params={"since": cursor, "limit": 7}).json()
                    for each in found["changes"]:
                        assert each["version"] > seen.get(each["id"], 0)
                        seen[each["id"]] = each["version"]
                    cursor = found["cursor"]
                    if found["complete"]:
                        break
                if last:
                    return

    def write(_: int) -> None:
        with mara.rest(web) as client:
            mine = create(client, sealed())
            for _ in range(4):
                client.put(f"{RECORDS}/{mine}", json=content(sealed()))

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read)
        list(pool.map(write, range(8)))
        done.set()
        reader.result(60)
    there = {str(row.id): row.version for row in Record.objects.of(mara.id)}
    assert seen == there and len(there) == 8


def test_after_a_database_was_restored_cursors_begin_again(rest: httpx.Client, mara: Person) -> None:
    create(rest, sealed())
    cursor = rest.get("/storage/changes").json()["cursor"]
    epoch, _, seq = cursor.partition("-")
    ahead = rest.get("/storage/changes", params={"since": f"{epoch}-{int(seq) + 5}"})
    assert (ahead.status_code, ahead.json()["code"]) == (410, "cursor_too_old")
    changes.forget_positions()
    assert rest.get("/storage/changes", params={"since": cursor}).status_code == 410
    assert len(rest.get("/storage/changes").json()["changes"]) == 1


def test_a_cursor_that_is_none_of_ours_is_refused_before_anything_is_stored_and_after(
    rest: httpx.Client,
) -> None:
    foreign = f"{uuid.uuid4().hex}-1"
    for _ in range(2):
        refused = rest.get("/storage/changes", params={"since": "yesterday"})
        assert (refused.status_code, list(refused.json()["fields"])) == (400, ["since"])
        assert rest.get("/storage/changes", params={"since": foreign}).status_code == 410
        create(rest, sealed())


def test_a_deleted_record_comes_back_within_a_week(rest: httpx.Client, mara: Person) -> None:
    data = sealed()
    made = create(rest, data)
    place = f"{RECORDS}/{made}"
    rest.delete(place)
    back = rest.post(f"{place}/undelete")
    assert (back.status_code, back.json()["version"]) == (200, 3)
    assert rest.get(place).content == data and used(rest) == len(data)
    rest.delete(place)
    Record.objects.of(mara.id).update(deleted_at=Now() - sweep.UNDELETE_WITHIN)
    sweep.run()
    assert rest.post(f"{place}/undelete").status_code == 404
    (row,) = Record.objects.of(mara.id)
    assert row.blob is None
    (tombstone,) = rest.get("/storage/changes").json()["changes"]
    assert (tombstone["id"], tombstone["deleted"]) == (made, True)


def test_a_record_that_is_purged_while_others_are_verified_is_not_damaged(db: None) -> None:
    mara, long_ago = payer(), dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    for data in (sealed(), sealed()):
        given = records.inline(data, hashlib.sha256(data).digest())
        made, _ = records.create(user_id=mara.id, table="notes", content=given)
    records.delete(user_id=mara.id, record_id=made.id, when=Precondition())
    mine = Record.objects.of(mara.id)
    for number, row in enumerate(mine.order_by("number")):
        mine.filter(pk=row.pk).update(verified_at=long_ago + dt.timedelta(days=number))
    due = scrub._due(Record, long_ago + dt.timedelta(days=9))
    scrub._verify(next(due), found := scrub.ScrubCounts())
    mine.filter(pk=made.pk).update(deleted_at=Now() - sweep.UNDELETE_WITHIN)
    sweep.purge()
    for row in due:
        scrub._verify(row, found)
    assert (found.checked, found.corrupt) == (1, 0)
    assert not mine.filter(corrupt=True).exists()


def test_parts_of_a_record_are_read_by_range(rest: httpx.Client) -> None:
    data = sealed(1000)
    place = f"{RECORDS}/{create(rest, data)}"
    for wanted, start, end in (("bytes=0-99", 0, 100), ("bytes=900-", 900, 1000), ("bytes=-10", 990, 1000)):
        part = rest.get(place, headers={"Range": wanted, "If-Range": f'"{sha(data)}"'})
        assert (part.status_code, part.content) == (206, data[start:end])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/1000"
    beyond = rest.get(place, headers={"Range": "bytes=1000-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */1000")
    assert rest.get(place, headers={"Range": "bytes=0-9", "If-Range": '"old"'}).content == data
    assert rest.get(place, headers={"If-None-Match": f'"{sha(data)}"'}).status_code == 304
    assert rest.head(place).headers["Content-Length"] == "1000"


def test_plans_say_how_much_is_stored(committed_db: str, settings: Any) -> None:
    settings.PLANS = True
    plans.forget()
    free, paying = (APIClient(), APIClient())
    for client, person in ((free, somebody(tier="free")), (paying, payer())):
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    refused = free.post(f"/api/v1{RECORDS}", content(b"", table="notes"))
    assert (refused.status_code, refused.json()["code"]) == (403, "not_in_plan")
    assert refused.json()["upgrade_to"] == "pro"
    data = sealed(1000)
    limit = plans.plan_of("pro").storage_bytes
    assert limit is not None
    made = paying.post(f"/api/v1{RECORDS}", content(data, table="notes")).json()["id"]
    StoredAmount.objects.filter(user__email=person.email).update(used=limit)
    refused = paying.post(f"/api/v1{RECORDS}", content(b"1", table="notes"))
    assert (refused.status_code, refused.json()["code"]) == (402, "quota_exceeded")
    place = f"/api/v1{RECORDS}/{made}"
    assert paying.put(place, content(sealed(1000))).status_code == 200  # as much in its place
    assert paying.put(place, content(sealed(1001))).status_code == 402
    assert paying.put(place, content(sealed(10))).status_code == 200
    assert paying.get("/api/v1/storage/usage").json()["storage"] == {
        "used": limit - 990,
        "reserved": 0,
        "limit": limit,
    }
    plans.forget()


def test_another_user_s_record_is_answered_like_none(rest: httpx.Client, web: str) -> None:
    data = sealed()
    made = create(rest, data)
    with payer().rest(web) as other:
        for path, method, body in (
            (made, "get", None),
            (made, "put", content(b"x")),
            (made, "delete", None),
            (f"{made}/undelete", "post", None),
        ):
            answers = [
                other.request(method, f"{RECORDS}/{each}", json=body)
                for each in (path, path.replace(made, str(uuid.uuid4())))
            ]
            assert [answer.status_code for answer in answers] == [404, 404]
        assert create(other, b"mine", id=made) == made  # ids are each account's own
    assert rest.get(f"{RECORDS}/{made}").content == data


@pytest.mark.parametrize("size", [1024 * 1024 + 1])
def test_what_is_too_large_for_a_row_is_told_to_be_uploaded(rest: httpx.Client, size: int) -> None:
    refused = rest.post(RECORDS, json=content(bytes(size), table="notes"))
    assert refused.status_code == 400 and "blob" in refused.json()["fields"]
