"""Vectors that clients computed, compared exactly and only within an account: no index could miss one.

They are stored in half precision, in the row itself, so that comparing one reads no other page. A space has one number
of dimensions. The client seals the bytes beside a vector; they count as storage.
"""

from __future__ import annotations

import hashlib
import math
import struct
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Sum
from django.db.models.functions import Now
from pgvector import HalfVector

from adiuva.core.errors import Text
from adiuva.vault import capacity, limits
from adiuva.vault.errors import ChecksumMismatch, TooManyVectors, VectorRefused
from adiuva.vault.models import Vector, VectorSpace

MOST_AT_ONCE: Final = 100
MOST_DIMENSIONS: Final = 4_000  # no more fit on a row's page
MOST_BLOB_BYTES: Final = 64 * 1024
MOST_FOUND: Final = 100

# A transaction that changes vectors of an account locks its counter until the commit, as changes of its records do.
_HOLD: Final = """
INSERT INTO vault_changecounter (user_id, seq, epoch) VALUES (%s, 0, gen_random_uuid())
ON CONFLICT (user_id) DO UPDATE SET seq = vault_changecounter.seq
"""

# Written out, since composing it took longer than comparing a thousand vectors.
_NEAREST: Final = """
SELECT * FROM (
    SELECT id, vector <=> %(vector)s::halfvec AS distance, blob, checksum, tags FROM vault_vector
    WHERE space_id = %(space)s AND (%(tags)s::varchar[] = '{}' OR tags @> %(tags)s::varchar[])
) AS compared
WHERE %(furthest)s::float8 IS NULL OR distance <= %(furthest)s::float8
ORDER BY distance, id LIMIT %(top_k)s
"""


@dataclass(frozen=True, slots=True)
class NewVector:
    id: str
    vector: HalfVector
    blob: bytes
    checksum: bytes
    tags: Sequence[str] = ()

    @classmethod
    def of(
        cls, field: str, *, id: str, vector: object, blob: bytes, checksum: bytes, tags: Sequence[str]
    ) -> NewVector:
        """Return the vector that a client sent in this field. Raises VectorRefused or ChecksumMismatch."""
        parsed = parse(vector, field)
        found = hashlib.sha256(blob).digest()
        if found != checksum:
            raise ChecksumMismatch(checksum.hex(), found.hex())
        return cls(id, parsed, blob, checksum, tags)


@dataclass(frozen=True, slots=True)
class VectorMatch:
    """Vector that was found. `score` is the cosine similarity, from -1 to 1. `corrupt`: its bytes are damaged."""

    id: str
    score: float
    blob: bytes
    checksum: bytes
    tags: Sequence[str]
    corrupt: bool


def parse(values: object, field: str = "vector") -> HalfVector:
    """Return a list of numbers in half precision. Raises VectorRefused."""
    if not isinstance(values, list) or not values or not {type(each) for each in values} <= {int, float}:
        raise VectorRefused("not_numbers", Text("A list of numbers is required."), field=field)
    if len(values) > MOST_DIMENSIONS:
        problem = Text("A vector has at most {most} dimensions.", most=MOST_DIMENSIONS)
        raise VectorRefused("dimensions", problem, field=field)
    if not all(map(math.isfinite, values)):
        raise VectorRefused("not_finite", Text("Its numbers must be finite."), field=field)
    try:
        found = HalfVector(values)
    except (OverflowError, ValueError, struct.error):
        problem = Text("Its numbers must be within 65,504: scale it, which changes no result.")
        raise VectorRefused("too_large", problem, field=field) from None
    if not any(found.to_list()):
        problem = Text("It is zero, or becomes zero in half precision: nothing can be compared with it.")
        raise VectorRefused("zero", problem, field=field)
    return found


@transaction.atomic
def upsert(*, user_id: uuid.UUID, space: int, given: Sequence[NewVector]) -> int:
    """Store vectors, in place of those with the same ids; of two with one id the last counts. Returns how many.

    The first vector fixes the dimensions of a new space. Raises VectorRefused, TooManyVectors, or the errors of limits;
    then nothing is stored.
    """
    new = {each.id: each for each in given}
    if not new:
        return 0
    _hold(user_id)
    into = _space_for(user_id, space, next(iter(new.values())))
    _require_dimensions(into, given)
    there = dict(Vector.objects.filter(space=into, id__in=new).values_list("id", "size"))
    added = len(new) - len(there)
    _require_room(user_id, added)
    # Always in this order, so that two accounts' locks never cross: bytes, then vectors.
    size = sum(len(each.blob) for each in new.values()) - sum(there.values())
    capacity.require(size)
    limits.amounts().add(user_id, "storage_bytes", size)
    limits.amounts().add(user_id, "vectors", added)
    Vector.objects.bulk_create(
        (
            Vector(
                space=into,
                id=each.id,
                vector=each.vector,
                tags=list(each.tags),
                blob=each.blob,
                checksum=each.checksum,
                size=len(each.blob),
                updated_at=Now(),
            )
            for each in new.values()
        ),
        update_conflicts=True,
        unique_fields=["space", "id"],
        update_fields=["vector", "tags", "blob", "checksum", "size", "updated_at", "corrupt"],
    )
    VectorSpace.objects.filter(pk=into.pk).update(count=F("count") + added)
    return len(new)


def _hold(user_id: uuid.UUID) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_HOLD, [user_id])


def _space_for(user_id: uuid.UUID, space: int, first: NewVector) -> VectorSpace:
    made, _ = VectorSpace.objects.get_or_create(
        user_id=user_id, space=space, defaults={"dimensions": first.vector.dimensions()}
    )
    return made


def _require_dimensions(space: VectorSpace, given: Sequence[NewVector]) -> None:
    for number, each in enumerate(given):
        if each.vector.dimensions() != space.dimensions:
            raise _other_dimensions(space, each.vector, f"vectors.{number}.vector")


def _other_dimensions(space: VectorSpace, vector: HalfVector, field: str) -> VectorRefused:
    problem = Text(
        "It has {found} dimensions, and those of this space have {expected}.",
        found=vector.dimensions(),
        expected=space.dimensions,
    )
    return VectorRefused("dimensions", problem, field=field, dimensions=space.dimensions)


def _require_room(user_id: uuid.UUID, added: int) -> None:
    most = settings.STORE["vectors"]
    if added and most and count(user_id) + added > most:
        raise TooManyVectors(most)


def count(user_id: uuid.UUID) -> int:
    found: int | None = VectorSpace.objects.of(user_id).aggregate(n=Sum("count"))["n"]
    return found or 0


def search(
    *,
    user_id: uuid.UUID,
    space: int,
    vector: HalfVector,
    top_k: int,
    tags: Collection[str] = (),
    min_score: float | None = None,
) -> list[VectorMatch]:
    """Return the nearest by cosine, best first, of those with all these tags. A space that nobody filled has none.

    Raises VectorRefused if the space has other dimensions.
    """
    within = VectorSpace.objects.of(user_id).filter(space=space).only("dimensions").first()
    if within is None:
        return []
    if vector.dimensions() != within.dimensions:
        raise _other_dimensions(within, vector, "vector")
    with connection.cursor() as cursor:
        furthest = None if min_score is None else 1 - min_score
        cursor.execute(
            _NEAREST,
            {
                "vector": _text(vector),
                "space": within.pk,
                "tags": list(tags),
                "furthest": furthest,
                "top_k": top_k,
            },
        )
        return [_found(*row) for row in cursor.fetchall()]


def _text(vector: HalfVector) -> str:
    """Return numbers as text. Five digits distinguish numbers of half precision."""
    return f"[{','.join(f'{each:.5g}' for each in vector.to_list())}]"


def _found(
    id_: str, distance: float, blob: bytes | memoryview, checksum: bytes | memoryview, tags: Sequence[str]
) -> VectorMatch:
    stored, known = bytes(blob), bytes(checksum)
    damaged = hashlib.sha256(stored).digest() != known
    return VectorMatch(id_, 1 - distance, b"" if damaged else stored, known, tags, damaged)


@transaction.atomic
def delete(*, user_id: uuid.UUID, space: int, ids: Iterable[str] | None) -> int:
    """Delete these vectors of a space. Without ids, delete all of them and the space, whose dimensions are free again.

    Returns how many there were. Missing ones count as deleted.
    """
    _hold(user_id)
    within = VectorSpace.objects.of(user_id).filter(space=space).first()
    if within is None:
        return 0
    rows = Vector.objects.filter(space=within)
    if ids is not None:
        rows = rows.filter(id__in=list(ids))
    size: int = rows.aggregate(n=Sum("size"))["n"] or 0
    deleted, _ = rows.delete()
    limits.amounts().add(user_id, "storage_bytes", -size)
    limits.amounts().add(user_id, "vectors", -deleted)
    if ids is None:
        within.delete()
    else:
        VectorSpace.objects.filter(pk=within.pk).update(count=F("count") - deleted)
    return deleted
