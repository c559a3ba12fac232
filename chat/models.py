"""Models of conversations, their messages, and turns. Texts are sealed with the user's key."""

from __future__ import annotations

import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.core.leases import Leased
from adiuva.core.rows import QuicklyRead
from adiuva.core.sealed import SealedJSONField, SealedTextField


class AssistantKind(models.TextChoices):
    HOME = "home"
    FLOATING = "floating"


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)


class Conversation(QuicklyRead):
    """A thread of messages. Its title and the summary of its older messages are sealed."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="conversations", db_index=False
    )
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
    for_agents = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="holds what agents tell of their scheduled runs",
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
        constraints = [
            models.UniqueConstraint(
                fields=["user"], condition=Q(for_agents=True), name="one_conversation_for_agents"
            ),
        ]

    def __str__(self) -> str:
        return f"conversation {self.pk}"


class Message(models.Model):
    """One message. `sealed` holds `{text, mutations?, finish?, code?, steps?, model_calls?}`.

    A message that the user sent while a turn ran also has `steered`: `{at, call}`, the time when the model read it and
    the number of the turn's model call, from 1. A message that nobody asked for also has `origin`.
    """

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(Conversation, models.CASCADE, related_name="messages", db_index=False)
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

    def waiting(self) -> Self:
        """Return turns that wait for the turns before them in their conversation."""
        return self.filter(state=Turn.State.WAITING)

    def with_changes(self) -> Self:
        """Return turns that changed rows on a device, and so can be undone there."""
        return self.filter(changes__isnull=False)

    def to_begin(self) -> Self:
        """Return turns whose time has come, and that no process has begun yet."""
        return self.running().exclude(waiting_request=None)


class Turn(Leased):
    """One request and how it ended. The row is the claim: a request id is carried out only once.

    The process that runs the turn holds its lease: a turn whose lease ran out has lost its process. One turn of a
    conversation runs at a time; the others wait, and nobody holds their leases (chat.turn_queue).
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        STOP = "stop", "answered"
        CANCELLED = "cancelled"
        ERROR = "error"
        LIMIT = "limit", "stopped at a limit"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="turns", db_index=False)
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
    queue_no = models.PositiveIntegerField(
        null=True,
        editable=False,
        help_text="its place among those that wait in the conversation, the lowest next",
    )
    joins = models.UUIDField(
        null=True, editable=False, help_text="the turn whose model may read its message while it waits"
    )
    waiting_request = SealedJSONField(
        null=True, help_text="sealed: what was asked, until the turn begins or what it joined has ended"
    )
    memory = models.BooleanField(
        default=True, db_default=True, help_text="off: it was asked to leave nothing in memory"
    )
    foreign = SealedJSONField(
        null=True, help_text="sealed: which texts it read that the user did not write, as {table, id}"
    )
    late_answer = SealedJSONField(
        null=True,
        help_text="sealed: the answer that came after the turn was lost and its conversation had gone on",
    )
    model = models.CharField(
        max_length=200, blank=True, db_default="", help_text="of several, the one that cost most"
    )
    input_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(db_default=0, help_text="of the input")
    output_tokens = models.PositiveIntegerField(default=0)
    cost_micro = models.PositiveBigIntegerField(db_default=0, help_text="millionths of the currency")
    model_calls = models.PositiveIntegerField(default=0)
    tool_calls = models.PositiveIntegerField(default=0)
    mutations = models.PositiveIntegerField(default=0)
    is_stored = models.BooleanField(
        db_default=False,
        editable=False,
        help_text="whether its process has stored what it did and cost: once",
    )
    started_at = models.DateTimeField(db_default=Now(), editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)

    objects = TurnQuerySet.as_manager()

    class Meta:
        ordering = ["-started_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["request_id", "user"], name="one_turn_a_request"),
            models.UniqueConstraint(
                fields=["conversation"], condition=Q(state="running"), name="one_running_turn_a_conversation"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "running"], ended_at__isnull=True)
                | (~Q(state__in=["waiting", "running"]) & Q(ended_at__isnull=False)),
                name="turn_ends_once",
            ),
        ]
        indexes = [
            models.Index(fields=["-started_at", "-id"], name="turns_newest"),
            models.Index(fields=["user", "-started_at"], name="turns_of_user"),
            models.Index(fields=["state", "-started_at", "-id"], name="turns_by_state"),
            models.Index(fields=["code", "-started_at"], condition=~Q(code=""), name="turns_by_code"),
            models.Index(
                fields=["conversation", "queue_no"], condition=Q(state="waiting"), name="turns_waiting"
            ),
            models.Index(
                fields=["lease_until"],
                condition=Q(state="running", waiting_request__isnull=False),
                name="turns_to_begin",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.started_at:%Y-%m-%d %H:%M}"


class TurnChanges(Leased):
    """The changes that a turn made on a device, and the data to take them back. The undo holds the row's lease.

    `sealed` holds a list of adiuva.devices.row_undo.RowChange.
    """

    turn = models.OneToOneField(Turn, models.CASCADE, primary_key=True, related_name="changes")
    device = models.UUIDField(null=True, editable=False, help_text="the row id of the device")
    sealed = SealedJSONField()
    undone_at = models.DateTimeField(null=True, editable=False)

    def __str__(self) -> str:
        return f"changes of turn {self.pk}"
