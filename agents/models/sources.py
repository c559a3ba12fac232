"""The ledger of sources that agents have read, and the records that they found there."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.core.sealed import SealedJSONField
from agents.models.agents import Agent


class Source(models.Model):
    """A line of the ledger: which content of a source was read, and with what outcome. It is not read again until the
    content or the agent's configuration changes.

    `document` identifies the source: it stays when a file is renamed or moved, and is the same for all agents of a
    user. A mail is identified by its Message-ID, wherever it lies. Records found in it are in FoundRecord.
    """

    class Outcome(models.TextChoices):
        DONE = "done"
        QUARANTINED = "quarantined", "done, with unusable records"
        POISON = "poison", "quarantined: workers crashed over it"

    agent = models.ForeignKey(Agent, models.CASCADE, related_name="sources", db_index=False)
    key = models.BinaryField(help_text="keyed hash of the path or message id")
    document = models.UUIDField(help_text="what the source is, whatever its path")
    copy_of = models.UUIDField(null=True, help_text="the document whose copy it was when it was first seen")
    content_hash = models.BinaryField(help_text="keyed hash")
    config_version = models.BinaryField(help_text="keyed hash of the prompt, the data types and the model")
    outcome = models.CharField(max_length=12, choices=Outcome)
    missed = models.PositiveSmallIntegerField(
        default=0, help_text="listings in a row in which it was not there"
    )
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["agent", "key"], name="one_row_a_source")]
        indexes = [
            models.Index(fields=["content_hash"], name="sources_by_content"),
            models.Index(fields=["document"], name="sources_by_document"),
        ]

    def __str__(self) -> str:
        return f"{self.outcome} {self.updated_at:%Y-%m-%d}"


class FoundRecord(models.Model):
    """A record as it stands in a document: the next reading of the document is shown it, and answers what became of it.
    Its id is that of the outbox's record.

    `pending` is the change that the device has not confirmed yet: `{"updates": {…} or null to withdraw it, "source":
    path, …}`, with what was sent of it, if anything was.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+", db_index=False)
    agent = models.ForeignKey(
        Agent, models.SET_NULL, null=True, related_name="+", help_text="the one that found it"
    )
    document = models.UUIDField()
    table = models.CharField(max_length=20)
    found = SealedJSONField(help_text="its title, date, people and status, as last found")
    pending = SealedJSONField(null=True)
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [
            models.Index(fields=["user", "document"], name="found_in_document"),
            models.Index(fields=["agent"], condition=Q(pending__isnull=False), name="found_records_pending"),
            models.Index(fields=["updated_at"], name="found_records_by_age"),
        ]

    def __str__(self) -> str:
        return f"{self.table} {self.id}"


class SourceInFlight(models.Model):
    """A source that a worker is reading. A row left behind by a dead worker marks a possible cause of its death."""

    agent = models.ForeignKey(Agent, models.CASCADE, related_name="+", db_index=False)
    key = models.BinaryField(help_text="keyed hash of the path or message id")
    in_flight = models.BooleanField(default=True, help_text="being read by the current attempt")
    crashes = models.PositiveSmallIntegerField(
        default=0, help_text="workers that died while they were reading it"
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["agent", "key"], name="one_row_a_source_in_flight")]

    def __str__(self) -> str:
        return f"{self.crashes} crashes"
