"""Vectors: the client's own, compared exactly, each account's for itself."""

from __future__ import annotations

import datetime as dt
import math
import random
from typing import Any

import httpx
import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from adiuva.accounts.models import User
from adiuva.core.errors import AdiuvaError
from adiuva.vault import scrub, vectors
from adiuva.vault.errors import TooManyVectors, VectorRefused
from adiuva.vault.export import _vectors
from adiuva.vault.models import Vector, VectorSpace
from adiuva.vault.vectors import NewVector
from billing import plans
from billing.models import StoredAmount
from tests.factories import Person
from tests.vault.helpers import content, payer, sealed, used

VECTORS = "/storage/vectors"


def new(name: str, vector: list[float], blob: bytes = b"", **more: Any) -> dict[str, Any]:
    return {"id": name, "vector": vector, **content(blob), **more}


def upsert(rest: httpx.Client, *given: dict[str, Any], **more: Any) -> httpx.Response:
    return rest.post(f"{VECTORS}/upsert", json={"vectors": list(given), **more})


def found(rest: httpx.Client, vector: list[float], **more: Any) -> list[dict[str, Any]]:
    answer = rest.post(f"{VECTORS}/search", json={"vector": vector, **more})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def delete(rest: httpx.Client, **body: Any) -> httpx.Response:
    return rest.request("DELETE", VECTORS, json=body)


def test_vectors_live_as_the_wire_says(rest: httpx.Client) -> None:
    first, second = sealed(300), sealed(70)
    assert found(rest, [1, 0, 0]) == []
    stored = upsert(rest, new("a", [1, 0, 0], first), new("b", [1, 1, 0], second), new("c", [-2, 0, 0.5]))
    assert (stored.status_code, stored.json()) == (200, {"upserted": 3})
    nearest = found(rest, [3, 0, 0], top_k=2)
    assert [(each["id"], round(each["score"], 3)) for each in nearest] == [("a", 1.0), ("b", 0.707)]
    assert [each["blob"] for each in nearest] == [content(first)["blob"], content(second)["blob"]]
    assert (used(rest), used(rest, "vectors")) == (370, 3)
    assert upsert(rest, new("a", [0, 1, 0], second)).json() == {"upserted": 1}  # in its place
    assert found(rest, [0, 1, 0], top_k=1)[0]["blob"] == content(second)["blob"]
    assert (used(rest), used(rest, "vectors")) == (140, 3)
    assert [each["id"] for each in rest.get(VECTORS).json()] == ["a", "b", "c"]
    assert delete(rest, ids=["a", "none"]).json() == {"ok": True, "deleted": 1}
    assert (used(rest), used(rest, "vectors")) == (70, 2)
    assert delete(rest).status_code == 400 and delete(rest, ids=["b"], all=True).status_code == 400
    assert delete(rest, all=True).json() == {"ok": True, "deleted": 2}
    assert (used(rest), used(rest, "vectors")) == (0, 0) and rest.get(VECTORS).json() == []


def test_spaces_have_their_own_dimensions_and_tags_choose(rest: httpx.Client) -> None:
    upsert(rest, new("note", [1, 0], tags=["x", "y"]), new("task", [1, 0.1], tags=["x"]))
    assert upsert(rest, new("note", [0, 1, 0]), space=7).status_code == 200
    refused = upsert(rest, new("other", [1, 2, 3]))
    assert (refused.status_code, refused.json()["reason"], refused.json()["dimensions"]) == (
        400,
        "dimensions",
        2,
    )
    assert "vectors.0.vector" in refused.json()["fields"]
    assert rest.post(f"{VECTORS}/search", json={"vector": [1, 2, 3]}).json()["reason"] == "dimensions"
    assert [each["id"] for each in found(rest, [0, 1, 0], space=7)] == ["note"]
    assert [each["id"] for each in found(rest, [1, 0], tags=["x"])] == ["note", "task"]
    assert [each["id"] for each in found(rest, [1, 0], tags=["y", "x"])] == ["note"]
    assert [each["id"] for each in found(rest, [1, 0], min_score=0.9999)] == ["note"]
    delete(rest, all=True)  # a new model: the space's dimensions are free again
    assert upsert(rest, new("other", [1, 2, 3])).status_code == 200
    assert len(found(rest, [0, 1, 0], space=7)) == 1


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([0, 0, 0], "zero"), ([1e-9, 0, 0], "zero"), ([70_000, 0, 1], "too_large"), ([], "not_numbers"),
        ("text", "not_numbers"), ([1, "2", 3], "not_numbers"), ([1, None, 3], "not_numbers"),
        ([True, 0, 1], "not_numbers"), ([1] * 4_001, "dimensions"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(rest: httpx.Client, vector: Any, reason: str) -> None:
    good = new("good", [1, 2, 3])
    refused = upsert(rest, good, {**good, "id": "bad", "vector": vector})
    assert (refused.status_code, refused.json()["code"], refused.json()["reason"]) == (400, "invalid", reason)
    assert list(refused.json()["fields"]) == ["vectors.1.vector"]
    asked = rest.post(f"{VECTORS}/search", json={"vector": vector})
    assert (asked.status_code, asked.json()["reason"]) == (400, reason)
    assert rest.get(VECTORS).json() == [] and used(rest, "vectors") == 0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(rest: httpx.Client, number: str) -> None:
    body = f'{{"vector": [1, {number}]}}'.encode()
    refused = rest.post(f"{VECTORS}/search", content=body, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_json")
    with pytest.raises(VectorRefused):  # where they do not come as JSON
        vectors.parse([1, float(number)])


def test_wrong_forms_are_refused(rest: httpx.Client) -> None:
    good = new("a", [1, 2], b"abc")
    for field, bad in (
        ("id", ""), ("id", "x" * 201), ("blob", "%"), ("checksum", "00"), ("tags", ["x" * 65]), ("tags", "x"),
        ("blob", content(bytes(65_537))["blob"]),
    ):  # fmt: skip
        refused = upsert(rest, {**good, field: bad})
        assert refused.status_code == 400 and any(field in name for name in refused.json()["fields"]), field
    wrong = upsert(rest, {**good, "checksum": content(b"abd")["checksum"]})
    assert wrong.json()["code"] == "checksum_mismatch"
    assert upsert(rest).status_code == 400
    assert upsert(rest, *(new(f"v{number}", [1]) for number in range(101))).status_code == 400
    for more in ({"top_k": 0}, {"top_k": 101}, {"space": -1}, {"space": 32_768}, {"min_score": 2}):
        assert rest.post(f"{VECTORS}/search", json={"vector": [1, 2], **more}).status_code == 400, more


def test_the_nearest_are_exactly_those_of_a_scan(rest: httpx.Client, web: str) -> None:
    chance = random.Random(5)
    given = {f"v{number}": [chance.gauss(0, 1) for _ in range(64)] for number in range(200)}
    names = list(given)
    for at in range(0, 200, 100):
        upsert(rest, *(new(name, given[name]) for name in names[at : at + 100]))
    with payer().rest(web) as other:  # another account's do not get in between
        upsert(other, *(new(name, given[name]) for name in names[:100]))
        question = [chance.gauss(0, 1) for _ in range(64)]
        best = sorted(names, key=lambda name: -_cosine(given[name], question))[:20]
        results = found(rest, question, top_k=20)
    assert [each["id"] for each in results] == best
    for each in results:
        assert each["score"] == pytest.approx(_cosine(given[each["id"]], question), abs=2e-3)


def _cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other))


def test_the_largest_vector_beside_the_largest_bytes_has_room(rest: httpx.Client) -> None:
    name, tags = "\U0001f512" * 200, ["\U0001f511" * 64] * 16
    large = new(name, [0.125] * 4_000, sealed(64 * 1024), tags=tags)
    assert upsert(rest, large).status_code == 200
    (result,) = found(rest, [1] * 4_000)
    assert (result["id"], result["blob"], result["tags"]) == (name, large["blob"], tags)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attstorage FROM pg_attribute WHERE attrelid = 'vault_vector'::regclass AND attname = 'vector'"
        )
        assert cursor.fetchone() == ("p",)  # in the row itself


def test_damaged_bytes_are_not_passed_off_as_good_ones(rest: httpx.Client, mara: Person) -> None:
    upsert(rest, new("a", [1, 2], b"sealed"), new("b", [2, 1], b"fine"))
    Vector.objects.of(mara.id).filter(id="a").update(blob=b"seaLed")
    results = {each["id"]: (each["blob"], each["corrupt"]) for each in found(rest, [1, 2])}
    assert results == {"a": ("", True), "b": (content(b"fine")["blob"], False)}


def test_damaged_bytes_are_found_without_a_search(
    rest: httpx.Client, mara: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "_AT_ONCE", 2)
    upsert(rest, *(new(name, [1, 2], b"sealed") for name in "abcde"))
    mine = Vector.objects.of(mara.id)
    mine.filter(id__in=["b", "e"]).update(blob=b"seaLed")
    long_ago = timezone.now() - dt.timedelta(days=3_000)
    VectorSpace.objects.of(mara.id).update(verified_at=long_ago)
    found = scrub.ScrubCounts()
    while scrub._verify_vectors(long_ago + dt.timedelta(days=1), found):
        pass
    assert (found.checked, found.bytes, found.corrupt) == (5, 30, 2)
    assert {each["id"] for each in rest.get(VECTORS).json() if each["corrupt"]} == {"b", "e"}
    assert rest.get("/storage/usage").json()["corrupt"] == 2
    upsert(rest, new("b", [1, 2], b"sealed"), new("e", [1, 2], b"sealed"))
    assert not mine.filter(corrupt=True).exists()
    assert rest.get("/storage/usage").json()["corrupt"] == 0


def test_a_plan_counts_vectors_exactly_and_a_smaller_one_keeps_reading(db: None, settings: Any) -> None:
    settings.PLANS = True
    plans.forget()
    person, limit = payer(), plans.plan_of("pro").vectors
    assert limit is not None
    mine = StoredAmount.objects.filter(user_id=person.id, kind="vectors")
    assert put(person, "a", "b", blob=b"12") == 2
    mine.update(used=limit)
    with pytest.raises(AdiuvaError) as full:
        put(person, "a", "c")
    assert (full.value.code, full.value.status) == ("quota_exceeded", 402)
    assert Vector.objects.of(person.id).count() == 2
    assert put(person, "a") == 1  # in the place of one there is room
    mine.update(used=2)
    User.objects.filter(pk=person.id).update(tier="free")
    assert put(person, "a") == 1
    with pytest.raises(AdiuvaError) as refused:
        put(person, "c")
    assert (refused.value.code, refused.value.status) == ("quota_exceeded", 402)
    assert len(vectors.search(user_id=person.id, space=0, vector=vectors.parse([1, 1]), top_k=5)) == 2
    assert vectors.delete(user_id=person.id, space=0, ids=["a", "b"]) == 2
    assert set(StoredAmount.objects.filter(user_id=person.id).values_list("used", flat=True)) == {0}
    plans.forget()


def put(person: Person, *names: str, blob: bytes = b"") -> int:
    checksum = bytes.fromhex(content(blob)["checksum"])
    given = [
        NewVector.of("v", id=name, vector=[1.0, 2.0], blob=blob, checksum=checksum, tags=()) for name in names
    ]
    return vectors.upsert(user_id=person.id, space=0, given=given)


def test_the_server_s_own_limit_holds_whatever_the_plan(db: None, settings: Any) -> None:
    person = payer()
    settings.STORE = {**settings.STORE, "vectors": 3}
    assert put(person, "a", "b") == 2 and put(person, "b", "b", "c") == 2
    with pytest.raises(TooManyVectors):
        put(person, "c", "d")
    assert vectors.count(person.id) == 3 == Vector.objects.of(person.id).count()


def test_the_database_takes_no_zero(db: None) -> None:
    space = VectorSpace.objects.create(user_id=payer().id, space=0, dimensions=2)
    row = {"space": space, "blob": b"", "checksum": bytes(32), "size": 0}
    with pytest.raises(IntegrityError, match="vector_not_zero"), transaction.atomic():
        Vector.objects.create(id="a", vector=[0, 0], **row)
    assert Vector.objects.create(id="b", vector=[6e-8, 0], **row).pk


def test_another_user_s_vectors_are_answered_like_none(rest: httpx.Client, web: str) -> None:
    upsert(rest, new("a", [1, 2], b"mine"))
    with payer().rest(web) as other:
        assert other.get(VECTORS).json() == [] and found(other, [1, 2]) == []
        assert delete(other, ids=["a"]).json()["deleted"] == 0
        assert delete(other, all=True).json()["deleted"] == 0
        assert upsert(other, new("a", [1, 2, 3])).status_code == 200  # dimensions are each account's own
    assert len(found(rest, [1, 2])) == 1


def test_the_archive_has_them_and_deletion_leaves_none(rest: httpx.Client, mara: Person) -> None:
    upsert(rest, new("a", [1, 2], b"sealed", tags=["x"]), space=3)
    space, row = _vectors(mara.id)
    assert space == {"space": 3, "dimensions": 2, "count": 1}
    shown = {name: row[name] for name in ("space", "id", "vector", "tags", "blob")}
    assert shown == {
        "space": 3,
        "id": "a",
        "vector": [1.0, 2.0],
        "tags": ["x"],
        "blob": content(b"sealed")["blob"],
    }
    User.objects.get(pk=mara.id).delete()
    assert not Vector.objects.of(mara.id).exists() and not VectorSpace.objects.of(mara.id).exists()
