"""Archives of accounts, in sealed chunks, with the state of each."""

from __future__ import annotations

import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.core.leases import Leased
from adiuva.core.sealed import SealedBytesField


class ExportQuerySet(models.QuerySet["Export"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def live(self) -> Self:
        return self.filter(state__in=Export.LIVE)

    def ready(self) -> Self:
        return self.filter(state=Export.State.READY)


class Export(Leased):
    """Archive of an account. The worker that builds it holds the row's lease."""

    class State(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        READY = "ready"
        FAILED = "failed"
        EXPIRED = "expired"

    LIVE = (State.QUEUED, State.RUNNING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(  # indexes below begin with it
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="exports", db_index=False
    )
    state = models.CharField(max_length=8, choices=State, default=State.QUEUED)
    code = models.CharField(max_length=50, blank=True, help_text="why it failed")
    attempt = models.PositiveSmallIntegerField(default=0)
    nudged_at = models.DateTimeField(db_default=Now(), editable=False)
    size = models.PositiveBigIntegerField(default=0, help_text="bytes")
    chunks = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    ended_at = models.DateTimeField(null=True, editable=False, help_text="when it was ready, or failed")
    expires_at = models.DateTimeField(null=True, editable=False)

    objects = ExportQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["user"], condition=Q(state__in=["queued", "running"]), name="one_live_export_a_user"
            ),
            models.CheckConstraint(
                condition=~Q(state="ready") | Q(expires_at__isnull=False), name="export_expires"
            ),
        ]
        indexes = [
            models.Index(fields=["user", "-created_at", "-id"], name="exports_of_user"),
            models.Index(fields=["-created_at", "-id"], name="exports_newest"),
            models.Index(
                fields=["state"],
                condition=Q(state__in=["queued", "running", "ready"]),
                name="exports_to_sweep",
            ),
        ]

    def __str__(self) -> str:
        return f"export {self.pk}"


class ExportChunk(models.Model):
    """Part of an archive."""

    export = models.ForeignKey(Export, models.CASCADE, related_name="parts", db_index=False)
    number = models.PositiveIntegerField(help_text="from 0")
    sealed = SealedBytesField(bound_to=("export_id", "number"))

    class Meta:
        constraints = [models.UniqueConstraint(fields=["export", "number"], name="one_chunk_a_place")]

    def __str__(self) -> str:
        return f"chunk {self.number}"
