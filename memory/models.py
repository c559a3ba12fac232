"""What is remembered of a user. What an entry says is sealed; words to find it by are kept as keyed hashes."""

from __future__ import annotations

import uuid
from typing import Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from pgvector.django import HalfVectorField


class Tier(models.TextChoices):
    CORE = "core", "preferences and facts, by key"
    ASSOCIATIVE = "associative", "what was said and seen"
    EPISODIC = "episodic", "what happened in a session"
    PROACTIVE = "proactive", "patterns, with a confidence"


class Memory(models.Model):
    """A user's memory as a whole: its switch, its policy, and the row that its writers lock."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="memory"
    )
    enabled = models.BooleanField(default=True, help_text="off: nothing is recalled and nothing is kept")
    policy = models.JSONField(
        default=dict,
        blank=True,
        help_text="by tier, the model providers that may read it; a tier that is not named goes to any",
    )
    consolidate_at = models.DateTimeField(
        null=True, editable=False, help_text="when it is due to be consolidated; none: nothing is new"
    )
    consolidated_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name_plural = "memories"
        indexes = [
            models.Index(
                fields=["consolidate_at"], condition=Q(consolidate_at__isnull=False), name="memory_due"
            ),
            models.Index(fields=["-created_at"], name="memory_newest"),
        ]

    def __str__(self) -> str:
        return f"memory of {self.pk}"


class EntryQuerySet(models.QuerySet["Entry"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def current(self) -> Self:
        """What holds now, without what it replaced."""
        return self.filter(valid_to__isnull=True)


class Entry(models.Model):
    """One thing that is remembered. The sealed part is `{content, key?}`, bound to owner, row and tier.

    An entry keeps its id when it changes; what it said before becomes a row of its own, its `successor` this one.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(  # indexes below begin with it
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="memories", db_index=False
    )
    tier = models.CharField(max_length=11, choices=Tier)
    sealed = models.BinaryField(editable=False)
    key_hash = models.BinaryField(null=True, editable=False, help_text="of a core entry's key")
    fingerprint = models.BinaryField(editable=False, help_text="keyed hash of what it says")
    terms = ArrayField(
        models.BigIntegerField(), default=list, editable=False, help_text="keyed hashes of its words"
    )
    confidence = models.FloatField(null=True, blank=True, help_text="of a pattern, from 0 to 1")
    derived = models.BooleanField(
        default=False, help_text="made of other entries: it goes when any of its sources does"
    )
    began_at = models.DateTimeField(null=True, blank=True, help_text="of the session that it tells of")
    ended_at = models.DateTimeField(null=True, blank=True)
    valid_from = models.DateTimeField(db_default=Now())
    valid_to = models.DateTimeField(
        null=True, blank=True, help_text="when it stopped being so; none: it is so"
    )
    successor = models.ForeignKey(
        "self", models.CASCADE, null=True, related_name="history", help_text="the entry that said this before"
    )
    uses = models.PositiveIntegerField(default=0, help_text="turns that it was recalled for")
    used_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = EntryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "entries"
        ordering = ["-valid_from", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "key_hash"],
                condition=Q(tier=Tier.CORE, valid_to__isnull=True),
                name="one_value_a_key",
            ),
            models.UniqueConstraint(
                fields=["user", "tier", "fingerprint"],
                condition=Q(valid_to__isnull=True),
                name="nothing_remembered_twice",
            ),
            models.CheckConstraint(condition=Q(tier__in=Tier.values), name="entry_tier_known"),
            models.CheckConstraint(
                condition=Q(tier=Tier.CORE, key_hash__isnull=False)
                | (~Q(tier=Tier.CORE) & Q(key_hash__isnull=True)),
                name="entry_core_has_a_key",
            ),
            models.CheckConstraint(
                condition=Q(tier=Tier.PROACTIVE, confidence__gte=0, confidence__lte=1)
                | (~Q(tier=Tier.PROACTIVE) & Q(confidence__isnull=True)),
                name="entry_pattern_has_a_confidence",
            ),
            models.CheckConstraint(
                condition=Q(valid_to__isnull=True) | Q(valid_to__gte=F("valid_from")), name="entry_ends_later"
            ),
            models.CheckConstraint(
                condition=Q(successor__isnull=True) | Q(valid_to__isnull=False), name="entry_history_is_over"
            ),
        ]
        indexes = [
            models.Index(fields=["user", "tier", "-valid_from", "-id"], name="entries_of_user"),
            models.Index(
                fields=["user", "tier", "-valid_from"],
                condition=Q(valid_to__isnull=True),
                name="entries_current",
            ),
            # Terms are keyed hashes of the user's own, so each posting list holds one user's rows alone. Without
            # fastupdate: what waits to be sorted in is read for every word, and 100 pages of it cost 12 ms a recall.
            GinIndex(fields=["terms"], name="entries_by_term", fastupdate=False),
        ]

    def __str__(self) -> str:
        return f"{self.tier} {self.pk}"


class SourceKind(models.TextChoices):
    CONVERSATION = "conversation", "a message in a conversation"
    REQUEST = "request", "a request of a chat that the device keeps"
    RUN = "run", "a run of an agent"
    USER = "user", "the user, by hand"


class EntrySource(models.Model):
    """Where an entry is from. One that was said in several places has several."""

    entry = models.ForeignKey(Entry, models.CASCADE, related_name="sources", db_index=False)
    kind = models.CharField(max_length=12, choices=SourceKind)
    source_id = models.UUIDField(null=True, help_text="of the conversation, the turn or the run")
    seq = models.PositiveIntegerField(null=True, help_text="of the message")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["at", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["entry", "kind", "source_id", "seq"],
                name="one_row_a_memory_source",
                nulls_distinct=False,
            ),
            models.CheckConstraint(
                condition=Q(kind=SourceKind.USER) | Q(source_id__isnull=False), name="source_is_named"
            ),
        ]
        indexes = [models.Index(fields=["source_id"], name="memory_sources_by_id")]

    def __str__(self) -> str:
        return f"{self.kind} {self.source_id or ''}"


class Embedding(models.Model):
    """Where an entry lies in the space of one model. Vectors of two models are never compared.

    It is not encrypted: a vector tells what a text is about to those who have the model.
    """

    entry = models.OneToOneField(Entry, models.CASCADE, primary_key=True, related_name="embedding")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+", db_index=False)
    embedding_model = models.CharField(max_length=200)
    vector = HalfVectorField()  # of the model's own length

    class Meta:
        indexes = [models.Index(fields=["user", "embedding_model"], name="embeddings_of_user")]

    def __str__(self) -> str:
        return f"embedding of {self.pk}"


class Exchange(models.Model):
    """What was said in a turn, kept sealed until it has been read for what is worth remembering, and an episode was
    made of it. The sealed part is `{said: [...], answer}`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="exchanges", db_index=False
    )
    kind = models.CharField(max_length=12, choices=SourceKind)
    source_id = models.UUIDField()
    seq = models.PositiveIntegerField(null=True, help_text="of the user's message")
    sealed = models.BinaryField(editable=False)
    said_at = models.DateTimeField(db_default=Now())
    recorded_at = models.DateTimeField(null=True, editable=False, help_text="when it was read for facts")
    attempts = models.PositiveSmallIntegerField(default=0)
    not_before = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["said_at", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "source_id", "seq"], name="one_exchange_a_message", nulls_distinct=False
            ),
        ]
        indexes = [
            models.Index(fields=["user", "said_at"], name="exchanges_of_user"),
            models.Index(
                fields=["not_before"], condition=Q(recorded_at__isnull=True), name="exchanges_to_record"
            ),
            models.Index(fields=["source_id"], name="exchanges_by_source"),
        ]

    def __str__(self) -> str:
        return f"exchange {self.pk}"


class Receipt(models.Model):
    """Which entries left for a model, when, and what for."""

    class Purpose(models.TextChoices):
        TURN = "turn", "to answer in a chat"
        RECORD = "record", "to compare with what was said"
        CONSOLIDATE = "consolidate", "to condense, and to find patterns"
        EMBED = "embed", "to make vectors"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="memory_receipts", db_index=False
    )
    purpose = models.CharField(max_length=11, choices=Purpose)
    turn_id = models.UUIDField(null=True)
    conversation_id = models.UUIDField(null=True)
    provider = models.CharField(max_length=255, help_text="who got to read them")
    model = models.CharField(max_length=200)
    entries = ArrayField(models.UUIDField(), help_text="ids of what left")
    withheld = ArrayField(
        models.CharField(max_length=11), default=list, help_text="tiers that the policy kept back"
    )
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [
            models.Index(fields=["user", "-at", "-id"], name="receipts_of_user"),
            models.Index(fields=["at"], name="receipts_by_age"),
        ]

    def __str__(self) -> str:
        return f"receipt {self.pk}"
