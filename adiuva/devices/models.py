"""Models of devices, and of the outbox: records on their way to a device."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Final, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F
from django.db.models.functions import Greatest, Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.sealed import SealedJSONField, SealedTextField

# The connections of a process count as online for this long without a word from it.
LEASE: Final = dt.timedelta(seconds=45)


class Process(models.Model):
    """Web process that holds connections of devices. While its lease runs, all of them are online.

    Idle devices cost no write: however many a process holds, it renews this one row.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    lease_until = models.DateTimeField(editable=False)

    def __str__(self) -> str:
        return f"process {self.pk}"


class DeviceQuerySet(models.QuerySet["Device"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def online(self) -> Self:
        return self.filter(_IS_ONLINE)

    def seen_last_first(self) -> Self:
        """Return devices that are online first, the last that came first of all; then by `seen_at`. Use it for one
        user's devices, since no index serves it."""
        is_here = models.Case(models.When(_IS_ONLINE, then=1), default=0)
        came_or_seen = models.Case(models.When(_IS_ONLINE, then=F("last_seen")), default=_SEEN_AT)
        return self.order_by(is_here.desc(), came_or_seen.desc(), "id")

    def with_online(self) -> Self:
        """Return devices with `is_online` and `seen_at`: when each was last known to be connected, as exact as its
        process's lease."""
        is_online = models.Case(
            models.When(_IS_ONLINE, then=True), default=False, output_field=models.BooleanField()
        )
        return self.annotate(is_online=is_online, seen_at=_SEEN_AT)


_IS_ONLINE: Final = models.Q(process__lease_until__gt=Now())
# The process of a device that left is NULL, and NULLs do not count.
_SEEN_AT: Final = Greatest(
    F("last_seen"),
    models.ExpressionWrapper(F("process__lease_until") - LEASE, output_field=models.DateTimeField()),
)


class Device(models.Model):
    """Installation of a user. It is online while its process's lease runs; each connection raises the epoch."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="devices")
    device_id = models.CharField(max_length=200, help_text="the id that the device chose for itself")
    name_sealed = SealedTextField(null=True, bound_to=("device_id",))
    platform = models.CharField(max_length=100, blank=True)
    app_version = models.CharField(max_length=100, blank=True)
    timezone = models.CharField(max_length=64, blank=True, help_text="IANA zone, as it said")
    protocol = models.PositiveSmallIntegerField(default=1)
    capabilities = ArrayField(models.CharField(max_length=50), default=list, blank=True)
    grants_sealed = SealedJSONField(null=True, bound_to=("device_id",), help_text="NULL if it did not say")
    session_id = models.UUIDField(null=True, editable=False, help_text="the session that it signed in with")
    epoch = models.BigIntegerField(default=1, editable=False)
    channel = models.CharField(max_length=200, blank=True, editable=False)
    # No constraint, because the row of a lost process is deleted, and comes back if the process does.
    process = models.ForeignKey(
        Process,
        models.DO_NOTHING,
        null=True,
        editable=False,
        related_name="devices",
        db_constraint=False,
        db_index=False,
    )
    last_seen = models.DateTimeField(
        db_default=Now(), editable=False, help_text="when it came or left; while it is online, it came then"
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = DeviceQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device_id", "user"], name="one_row_a_device"),
        ]
        indexes = [
            models.Index(fields=["-last_seen"], name="devices_by_last_seen"),
            models.Index(
                fields=["process"], condition=models.Q(process__isnull=False), name="devices_by_process"
            ),
        ]

    def __str__(self) -> str:
        return f"device {self.pk}"

    @property
    def name(self) -> str:
        """Return the owner's name for the device; empty if the device did not send one. Raises SealBroken."""
        if self.name_sealed is None:
            return ""
        return Device.name_sealed.unseal_from(cipher_for(self.user_id), self)

    @property
    def grants(self) -> list[str] | None:
        """Return the folders that agents may read on it; None if it did not say. Raises SealBroken."""
        if self.grants_sealed is None:
            return None
        return list(Device.grants_sealed.unseal_from(cipher_for(self.user_id), self))


class OutboxQuerySet(models.QuerySet["OutboxRecord"]):
    def waiting(self) -> Self:
        return self.filter(state__in=(OutboxRecord.State.WAITING, OutboxRecord.State.SENT))


class OutboxRecord(models.Model):
    """Record for a device, with the outcome of its delivery. Its id is its dedupe key, and the id of every call that
    delivers it."""

    class State(models.TextChoices):
        WAITING = "waiting"
        SENT = "sent", "sent, no answer yet"
        DELIVERED = "delivered"
        REFUSED = "refused", "refused by the device"
        UNCERTAIN = "uncertain", "sent, outcome unknown"
        EXPIRED = "expired", "its device did not connect in time"
        UNDONE = "undone", "deleted by an undo of its run"
        WITHDRAWN = "withdrawn", "deleted again, because its source no longer holds it"

    id = models.UUIDField(primary_key=True, editable=False, help_text="the dedupe key and call id")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+", db_index=False)
    device = models.ForeignKey(Device, models.SET_NULL, null=True, related_name="+")
    source_run = models.UUIDField(db_index=True, help_text="the run that produced it")
    source = models.BinaryField(help_text="keyed hash of the source that it was found in")
    position = models.BigIntegerField(help_text="its order within its run")
    table = models.CharField(max_length=20)
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    sealed = SealedJSONField(
        null=True, help_text="[the row to insert, the name of its source]; NULL once delivered"
    )
    row_id_sealed = SealedTextField(null=True, help_text="the id that the device gave the row")
    row_hash = models.BinaryField(
        null=True, editable=False, help_text="keyed hash of the row as the device returned it"
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    settled_at = models.DateTimeField(null=True, editable=False)

    objects = OutboxQuerySet.as_manager()

    class Meta:
        ordering = ["source_run", "position"]
        indexes = [
            models.Index(fields=["user", "source"], name="outbox_by_source"),
            models.Index(
                fields=["source_run", "position"],
                condition=models.Q(state__in=["waiting", "sent"]),
                name="outbox_waiting",
            ),
            models.Index(
                fields=["created_at"],
                condition=models.Q(state__in=["waiting", "sent"]),
                name="outbox_by_age",
            ),
            models.Index(fields=["source_run"], condition=models.Q(state="expired"), name="outbox_expired"),
            models.Index(
                fields=["settled_at"],
                condition=models.Q(state__in=["undone", "withdrawn"]),
                name="outbox_taken_back",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.table} {self.id}"
