"""Models of a user's memory: entries of four tiers with their sources and vectors, exchanges to read, receipts.

The content of entries and exchanges is sealed; the words that find entries are stored as keyed hashes.
"""

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

from adiuva.core.leases import Leased
from adiuva.core.rows import QuicklyRead
from adiuva.core.sealed import SealedJSONField
from memory.sign_bits import SignBitsField


class Tier(models.TextChoices):
    CORE = "core", "preferences and facts by key"
    ASSOCIATIVE = "associative", "statements, one sentence each"
    EPISODIC = "episodic", "accounts of what happened"
    PROACTIVE = "proactive", "patterns with a confidence"


class Memory(Leased):
    """A user's memory as a whole: its switch, its policy, and the row that writers lock. A consolidation leases it."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="memory"
    )
    enabled = models.BooleanField(
        default=True, help_text="if off, nothing is recalled and nothing new is remembered"
    )
    policy = models.JSONField(
        default=dict,
        blank=True,
        help_text="by tier, the model providers that may read it; any provider may read a tier not listed here",
    )
    consolidate_at = models.DateTimeField(
        null=True, editable=False, help_text="when consolidation is due; empty if nothing is new"
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
        """Return entries that are true now, without history and proposals."""
        return self.filter(valid_to__isnull=True, proposed=False)

    def proposals(self) -> Self:
        return self.filter(proposed=True)


class Entry(QuicklyRead):
    """One remembered thing. The sealed value is `{content, key?, replaces?}`; only core entries have a key.

    A changed entry keeps its id. Its former content moves to a new row, whose `successor` is this entry.

    A proposal came from a turn that had read texts of others. It is neither recalled nor searched until the user
    confirms or repeats it, and then takes the place of the current entry with its key, or of the one that `replaces`
    names.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(  # no index of its own: the indexes below begin with this column
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="memories", db_index=False
    )
    tier = models.CharField(max_length=11, choices=Tier)
    sealed = SealedJSONField(bound_to=("id", "tier"))
    key_hash = models.BinaryField(null=True, editable=False, help_text="keyed hash of a core entry's key")
    fingerprint = models.BinaryField(editable=False, help_text="keyed hash of key and content")
    terms = ArrayField(
        models.BigIntegerField(),
        default=list,
        editable=False,
        help_text="keyed hashes of the words in key and content",
    )
    confidence = models.FloatField(null=True, blank=True, help_text="of patterns only, from 0 to 1")
    derived = models.BooleanField(
        default=False,
        help_text="made from other entries or exchanges: deleted when any of its sources is forgotten",
    )
    proposed = models.BooleanField(
        default=False, help_text="not remembered yet: it waits for the user to say it again, or to confirm it"
    )
    began_at = models.DateTimeField(
        null=True, blank=True, help_text="of episodes: when the first exchange took place"
    )
    ended_at = models.DateTimeField(null=True, blank=True)
    valid_from = models.DateTimeField(db_default=Now())
    valid_to = models.DateTimeField(
        null=True, blank=True, help_text="when it stopped being true; empty while it is true"
    )
    successor = models.ForeignKey(
        "self",
        models.CASCADE,
        null=True,
        related_name="history",
        help_text="the entry that replaced this one",
    )
    uses = models.PositiveIntegerField(default=0, help_text="number of turns that recalled it")
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
                condition=Q(tier=Tier.CORE, valid_to__isnull=True, proposed=False),
                name="one_value_a_key",
            ),
            models.UniqueConstraint(
                fields=["user", "tier", "fingerprint", "proposed"],
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
            models.CheckConstraint(
                condition=Q(proposed=False) | Q(valid_to__isnull=True), name="entry_proposal_is_no_history"
            ),
        ]
        indexes = [
            models.Index(fields=["user", "tier", "-valid_from", "-id"], name="entries_of_user"),
            models.Index(
                fields=["user", "tier", "-valid_from"],
                condition=Q(valid_to__isnull=True),
                name="entries_current",
            ),
            # Terms are hashed with the user's own key, so each posting list holds rows of one user only. fastupdate is
            # off because each word would read its whole pending list: 100 pages of it cost 12 ms per recall.
            GinIndex(fields=["terms"], name="entries_by_term", fastupdate=False),
        ]

    @property
    def state(self) -> str:
        """`current`, `proposed` or `history`."""
        if self.proposed:
            return "proposed"
        return "current" if self.valid_to is None else "history"

    def __str__(self) -> str:
        return f"{self.tier} {self.pk}"


class SourceKind(models.TextChoices):
    CONVERSATION = "conversation", "a message in a conversation"
    REQUEST = "request", "a request in a chat that the device stores"
    RUN = "run", "a run of an agent"
    USER = "user", "the user, by hand"


class EntrySource(models.Model):
    """An origin of an entry. An entry that was said in several places has several."""

    entry = models.ForeignKey(Entry, models.CASCADE, related_name="sources", db_index=False)
    kind = models.CharField(max_length=12, choices=SourceKind)
    source_id = models.UUIDField(null=True, help_text="id of the conversation, request or run")
    seq = models.PositiveIntegerField(null=True, help_text="number of the message in the conversation")
    at = models.DateTimeField(db_default=Now())
    ended = models.BooleanField(
        default=False,
        help_text="here the user said that the entry holds no longer, so that it became history",
    )
    foreign = SealedJSONField(
        bound_to=("source_id",),
        null=True,
        help_text="sealed: which texts the turn had read that the user did not write, as {table, id}",
    )

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
    """The vector of an entry, made by one model. Vectors of different models are never compared.

    It is not encrypted: anybody with the model can tell a text's subject from its vector. The bits are made from the
    vector and say less.
    """

    entry = models.OneToOneField(Entry, models.CASCADE, primary_key=True, related_name="embedding")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+", db_index=False)
    tier = models.CharField(max_length=11, choices=Tier, help_text="the entry's, which never changes")
    embedding_model = models.CharField(max_length=200)
    # Without a fixed length: each model has its own.
    vector = HalfVectorField()
    bits = SignBitsField(of="vector")

    class Meta:
        # The bits of a user with many vectors are compared in the index alone. An index by user finds many rows of one
        # user in a third of the time that the primary key takes.
        indexes = [
            models.Index(
                fields=["user", "embedding_model", "entry"], include=["bits"], name="embeddings_of_user"
            )
        ]

    def __str__(self) -> str:
        return f"embedding of {self.pk}"


class Exchange(Leased):
    """The user's words in a turn and the answer to them, kept until facts were extracted and an episode was written.

    The sealed value is `{said: [...], answer, foreign: [{table, id}]}`. Workers lease exchanges before they ask the
    model about them.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="exchanges", db_index=False
    )
    kind = models.CharField(max_length=12, choices=SourceKind)
    source_id = models.UUIDField()
    seq = models.PositiveIntegerField(null=True, help_text="number of the user's message in the conversation")
    sealed = SealedJSONField()
    said_at = models.DateTimeField(db_default=Now())
    recorded_at = models.DateTimeField(
        null=True, editable=False, help_text="when facts were extracted from it"
    )
    attempts = models.PositiveSmallIntegerField(
        default=0, help_text="times that a worker claimed it to extract facts"
    )

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
                fields=["said_at"], condition=Q(recorded_at__isnull=True), name="exchanges_to_record"
            ),
            models.Index(fields=["source_id"], name="exchanges_by_source"),
        ]

    def __str__(self) -> str:
        return f"exchange {self.pk}"


class Receipt(models.Model):
    """A record of the entries that were sent to a model provider, when, and for what purpose."""

    class Purpose(models.TextChoices):
        TURN = "turn", "to answer in a chat"
        RECORD = "record", "to extract facts"
        CONSOLIDATE = "consolidate", "to condense episodes and find patterns"
        EMBED = "embed", "to compute vectors"
        EXTRACT = "extract", "to read documents knowing who the user is"
        TEXT = "text", "to compute the vector of a text that a client sent"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="memory_receipts", db_index=False
    )
    purpose = models.CharField(max_length=11, choices=Purpose)
    turn_id = models.UUIDField(null=True)
    conversation_id = models.UUIDField(null=True)
    provider = models.CharField(max_length=255, help_text="who received the entries")
    model = models.CharField(max_length=200)
    entries = ArrayField(models.UUIDField(), help_text="ids of the entries sent")
    withheld = ArrayField(
        models.CharField(max_length=11), default=list, help_text="tiers that the policy withheld"
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
