"""Models of conversations, their messages, and turns. Texts are sealed with the user's key."""

from __future__ import annotations

import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.core.leases import Leased
from adiuva.core.sealed import SealedJSONField, SealedTextField


class AssistantKind(models.TextChoices):
    HOME = "home"
    FLOATING = "floating"


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)


class Conversation(models.Model):
    """A thread of messages. Its title and the summary of its older messages are sealed."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="conversations")
    kind = models.CharField(max_length=8, choices=AssistantKind, default=AssistantKind.HOME)
    title = SealedTextField(null=True, help_text="sealed")
    summary = SealedTextField(null=True, help_text="sealed: what the older messages said")
    summary_upto = models.PositiveIntegerField(
        default=0, help_text="the last message that the summary covers"
    )
    message_count = models.PositiveIntegerField(default=0)
    memory = models.BooleanField(
        default=True,
        db_default=True,
        help_text="off: nothing of it is remembered, and nothing is recalled for it",
    )
    has_private = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="later answers may tell of a private message, and are not kept in memory",
    )
    has_foreign = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="answers may quote texts that the user did not write, and are not kept in memory",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False, help_text="of the last message")

    objects = ConversationQuerySet.as_manager()

    class Meta:
        ordering = ["-updated_at", "-id"]
        indexes = [
            models.Index(fields=["user", "-updated_at", "-id"], name="conversations_of_user"),
            models.Index(fields=["-updated_at", "-id"], name="conversations_newest"),
        ]

    def __str__(self) -> str:
        return f"conversation {self.pk}"


class Message(models.Model):
    """One message. `sealed` holds `{text, mutations?, finish?, code?}`."""

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, models.CASCADE, related_name="messages")
    seq = models.PositiveIntegerField(help_text="from 1, in the order in which they were said")
    role = models.CharField(max_length=9, choices=Role)
    sealed = SealedJSONField(bound_to=("conversation_id", "seq", "role"))
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ["seq"]
        constraints = [
            models.UniqueConstraint(fields=["conversation", "seq"], name="one_message_a_place"),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.seq}"


class TurnQuerySet(models.QuerySet["Turn"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def running(self) -> Self:
        return self.filter(state=Turn.State.RUNNING)


class Turn(models.Model):
    """One request and how it ended. The row is the claim: a request id is carried out only once."""

    class State(models.TextChoices):
        RUNNING = "running"
        STOP = "stop", "answered"
        CANCELLED = "cancelled"
        ERROR = "error"
        LIMIT = "limit", "stopped at a limit"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="turns")
    request_id = models.CharField(max_length=200)
    conversation = models.ForeignKey(Conversation, models.SET_NULL, null=True, related_name="turns")
    seq = models.PositiveIntegerField(null=True, help_text="the place of its request in the conversation")
    kind = models.CharField(max_length=8, choices=AssistantKind)
    state = models.CharField(max_length=10, choices=State, default=State.RUNNING)
    code = models.CharField(max_length=50, blank=True)
    owner = models.CharField(
        max_length=200, editable=False, help_text="the channel of the process it runs in"
    )
    prompt_version = models.CharField(max_length=60, blank=True)
    memory = models.BooleanField(
        default=True, db_default=True, help_text="off: it was asked to leave nothing in memory"
    )
    foreign = SealedJSONField(
        null=True, help_text="sealed: which texts it read that the user did not write, as {table, id}"
    )
    input_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    model_calls = models.PositiveIntegerField(default=0)
    tool_calls = models.PositiveIntegerField(default=0)
    mutations = models.PositiveIntegerField(default=0)
    started_at = models.DateTimeField(db_default=Now(), editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)

    objects = TurnQuerySet.as_manager()

    class Meta:
        ordering = ["-started_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["user", "request_id"], name="one_turn_a_request"),
            models.CheckConstraint(
                condition=Q(state="running", ended_at__isnull=True)
                | (~Q(state="running") & Q(ended_at__isnull=False)),
                name="turn_ends_once",
            ),
        ]
        indexes = [
            models.Index(fields=["-started_at", "-id"], name="turns_newest"),
            models.Index(fields=["user", "-started_at"], name="turns_of_user"),
            models.Index(fields=["state", "-started_at", "-id"], name="turns_by_state"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.started_at:%Y-%m-%d %H:%M}"


class TurnChanges(Leased):
    """What a turn changed on a device, and what is needed to take it back. The undo holds the row's lease.

    `sealed` holds a list of adiuva.devices.row_undo.RowChange.
    """

    turn = models.OneToOneField(Turn, models.CASCADE, primary_key=True, related_name="changes")
    device = models.UUIDField(null=True, editable=False, help_text="the row id of the device")
    sealed = SealedJSONField()
    undone_at = models.DateTimeField(null=True, editable=False)

    def __str__(self) -> str:
        return f"changes of turn {self.pk}"
