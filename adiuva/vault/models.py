"""Records, backups, uploads and vectors. Their bytes are sealed by clients: the server has no key to them.

The server, and staff with it, sees the record's table, sizes, and times. Vectors are not sealed, since the server
compares them.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Func, IntegerField, Q
from django.db.models.functions import Now
from django.db.models.lookups import Exact
from pgvector.django import HalfVectorField

from adiuva.core.leases import Leased, is_free

_RELATION: dict[str, Any] = {"related_name": "+", "db_index": False}  # constraints begin with the user


def _is_sha256(column: str) -> Exact:
    return Exact(Func(F(column), function="octet_length", output_field=IntegerField()), 32)


class ChangeCounter(models.Model):
    """Counter of the changes that an account's records have seen.

    A transaction that changes a record holds this row until the commit, so that numbers appear in their order, and a
    reader who has seen one has seen all before it. `epoch` changes when a database is restored: earlier positions say
    nothing.
    """

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="+")
    seq = models.BigIntegerField(default=0, db_default=0)
    epoch = models.UUIDField(default=uuid.uuid4, editable=False)

    def __str__(self) -> str:
        return f"changes of {self.pk}"


class RecordQuerySet(models.QuerySet["Record"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def live(self) -> Self:
        return self.filter(deleted_at=None)

    def without_bytes(self) -> Self:
        return self.defer("blob")

    def deleted_before(self, age: dt.timedelta) -> Self:
        """Return records that were deleted that long ago, and still have their bytes."""
        return self.filter(deleted_at__lt=Now() - age).exclude(blob=None, object=None)


class Record(models.Model):
    """Opaque bytes under an id that stays. A deleted record remains as a tombstone, for a while with its bytes."""

    number = models.BigAutoField(primary_key=True)
    id = models.UUIDField(default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, **_RELATION)
    table = models.CharField(max_length=100)
    blob = models.BinaryField(null=True, editable=False, help_text="the bytes, if they are few")
    object = models.CharField(max_length=100, null=True, editable=False, help_text="their place in the store")
    checksum = models.BinaryField(editable=False, help_text="SHA-256, as the server computed it")
    size = models.PositiveBigIntegerField()
    version = models.PositiveIntegerField(default=1)
    seq = models.BigIntegerField(help_text="the number of its last change among all of the account's")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)
    deleted_at = models.DateTimeField(null=True, editable=False)
    verified_at = models.DateTimeField(db_default=Now(), editable=False)
    corrupt = models.BooleanField(default=False, db_default=False)

    objects = RecordQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "id"], name="record_once"),
            models.UniqueConstraint(fields=["user", "seq"], name="record_change_once"),
            models.CheckConstraint(
                condition=Q(blob=None, object__isnull=False)
                | Q(blob__isnull=False, object=None)
                | Q(blob=None, object=None, deleted_at__isnull=False),
                name="record_has_bytes",
            ),
            models.CheckConstraint(condition=_is_sha256("checksum"), name="record_sha256"),
        ]
        indexes = [
            models.Index(fields=["user", "number"], condition=Q(deleted_at=None), name="records_of_user"),
            models.Index(
                fields=["user", "table", "number"], condition=Q(deleted_at=None), name="records_of_table"
            ),
            models.Index(
                fields=["object"],
                opclasses=["varchar_pattern_ops"],
                condition=Q(object__isnull=False),
                name="record_objects",
            ),
            models.Index(fields=["verified_at"], name="records_to_verify"),
            models.Index(
                fields=["deleted_at"],
                condition=Q(deleted_at__isnull=False) & (Q(blob__isnull=False) | Q(object__isnull=False)),
                name="records_to_purge",
            ),
        ]

    def __str__(self) -> str:
        return f"record {self.id}"


class UploadQuerySet(models.QuerySet["Upload"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def expired(self) -> Self:
        """Return uploads that nobody holds and that will not go on: their time is over, or their only request is."""
        return self.filter(is_free(), Q(expires_at__lt=Now()) | Q(direct=True))


class Upload(Leased):
    """Bytes on their way. The request that brings some holds the lease. Their use is known once they are whole.

    A direct upload is the body of one request, which nobody can resume.
    """

    class Purpose(models.TextChoices):
        STORAGE = "storage", "a record"
        BACKUP = "backup", "a backup"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    purpose = models.CharField(max_length=7, choices=Purpose)
    direct = models.BooleanField(default=False)
    length = models.PositiveBigIntegerField()
    offset = models.PositiveBigIntegerField(default=0)
    object = models.CharField(max_length=100, null=True, editable=False)
    state = models.JSONField(default=dict, editable=False, help_text="what the store needs to go on")
    checksum = models.BinaryField(null=True, editable=False, help_text="of the whole, once it is known")
    metadata = models.CharField(
        max_length=2000, blank=True, help_text="the client's Upload-Metadata, as it was"
    )
    reservation = models.UUIDField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField()

    objects = UploadQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(offset__lte=F("length")), name="upload_within_length"),
            models.CheckConstraint(condition=Q(purpose__in=["storage", "backup"]), name="upload_purpose"),
        ]
        indexes = [
            models.Index(fields=["object"], condition=Q(object__isnull=False), name="upload_objects"),
            models.Index(fields=["expires_at"], name="uploads_to_expire"),
        ]

    def __str__(self) -> str:
        return f"upload {self.pk}"


class BackupQuerySet(models.QuerySet["Backup"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def newest_first(self) -> Self:
        return self.order_by("-timestamp_ms")


class Backup(models.Model):
    """Database of a client as it was at a time, sealed by the client."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, **_RELATION)
    version = models.PositiveIntegerField(help_text="of the client's format")
    timestamp_ms = models.BigIntegerField(help_text="when the client made it")
    base_ms = models.BigIntegerField(null=True, help_text="the time of the backup that it builds on")
    checksum = models.BinaryField(editable=False, help_text="SHA-256, as the server computed it")
    size = models.PositiveBigIntegerField()
    chunk_count = models.PositiveIntegerField(default=1)
    object = models.CharField(max_length=100, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    verified_at = models.DateTimeField(db_default=Now(), editable=False)
    corrupt = models.BooleanField(default=False, db_default=False)

    objects = BackupQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "timestamp_ms"], name="backup_once"),
            models.CheckConstraint(condition=_is_sha256("checksum"), name="backup_sha256"),
        ]
        indexes = [
            models.Index(fields=["object"], opclasses=["varchar_pattern_ops"], name="backup_objects"),
            models.Index(fields=["verified_at"], name="backups_to_verify"),
        ]

    def __str__(self) -> str:
        return f"backup {self.pk}"


class VectorSpaceQuerySet(models.QuerySet["VectorSpace"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)


class VectorSpace(models.Model):
    """Space of an account's vectors that can be compared: of one model, rotated alike. The client numbers its
    spaces."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, **_RELATION)
    space = models.PositiveSmallIntegerField()
    dimensions = models.PositiveSmallIntegerField(help_text="of each of its vectors, fixed by the first")
    count = models.PositiveIntegerField(default=0, db_default=0, help_text="its vectors")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    verified_at = models.DateTimeField(db_default=Now(), editable=False)
    verified_to = models.CharField(
        max_length=200, blank=True, editable=False, help_text="the id up to which it is verified again by now"
    )

    objects = VectorSpaceQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "space"], name="space_once"),
            models.CheckConstraint(
                condition=Q(dimensions__gte=1, dimensions__lte=4000), name="space_dimensions"
            ),
        ]
        indexes = [models.Index(fields=["verified_at"], name="spaces_to_verify")]

    def __str__(self) -> str:
        return f"vector space {self.pk}"


class VectorQuerySet(models.QuerySet["Vector"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(space__user_id=user_id)


class Vector(models.Model):
    """Vector that a client computed, with sealed bytes that tell the client what it belongs to."""

    number = models.BigAutoField(primary_key=True)
    space = models.ForeignKey(VectorSpace, models.CASCADE, related_name="+", db_index=False)
    id = models.CharField(max_length=200, help_text="the client's")
    vector = HalfVectorField()
    tags = ArrayField(models.CharField(max_length=64), default=list, help_text="what a search can ask for")
    blob = models.BinaryField(editable=False)
    checksum = models.BinaryField(editable=False, help_text="SHA-256 of the bytes")
    size = models.PositiveIntegerField(help_text="of the bytes")
    updated_at = models.DateTimeField(db_default=Now(), editable=False)
    corrupt = models.BooleanField(default=False, db_default=False)

    objects = VectorQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["space", "id"], name="vector_once"),
            models.CheckConstraint(condition=_is_sha256("checksum"), name="vector_sha256"),
        ]
        indexes = [
            models.Index(fields=["space", "number"], name="vectors_of_space"),
            models.Index(fields=["space"], condition=Q(corrupt=True), name="vectors_corrupt"),
        ]

    def __str__(self) -> str:
        return f"vector {self.number}"


class Scrub(models.Model):
    """Count of the objects that were read again and compared on one day."""

    day = models.DateField(primary_key=True, help_text="in UTC")
    checked = models.PositiveBigIntegerField(default=0)
    bytes = models.PositiveBigIntegerField(default=0)
    corrupt = models.PositiveIntegerField(default=0)
    missing = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ["-day"]

    def __str__(self) -> str:
        return f"scrub of {self.day}"
