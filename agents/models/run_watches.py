"""Watches: the chats that are told when a run ends."""

from __future__ import annotations

import uuid
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.core.leases import Leased
from adiuva.core.sealed import SealedTextField
from agents.models.runs import Run


class WatchQuerySet(models.QuerySet["Watch"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def of_chat(self, conversation_id: uuid.UUID | None, device_id: str) -> Self:
        """Return watches of a conversation; without one, those of the chats on a device that have none."""
        if conversation_id is not None:
            return self.filter(conversation=conversation_id)
        return self.filter(conversation=None, device_id=device_id)


_WatchManager = models.Manager.from_queryset(WatchQuerySet)


class Watch(Leased):
    """A run, and the conversation in which its user wants to hear how it ended. The turn that tells it holds the lease.

    A chat without a conversation (protocol 1) is named by its device.
    """

    class State(models.TextChoices):
        WAITING = "waiting", "the run has not ended"
        DUE = "due", "the run has ended, and nobody has said so"
        HELD = "held", "a running turn is telling it"
        DONE = "done", "told by a turn or a message of its own"
        TOLD = "told", "heard in a turn of the user's, or nobody wants to hear it"
        DEAD = "dead", "no turn could tell it, only a notice"
        EXPIRED = "expired", "its device did not come to hear it"

    OPEN = (State.WAITING, State.DUE, State.HELD)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    run = models.ForeignKey(Run, models.CASCADE, related_name="watches", db_index=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    conversation = models.ForeignKey(
        "chat.Conversation", models.CASCADE, null=True, related_name="+", db_index=False
    )
    device_id = models.CharField(max_length=200, blank=True, help_text="the row of the device that asked")
    turn = models.UUIDField(help_text="the turn that asked; while it is held, the one that tells it")
    started = models.BooleanField(help_text="whether the run was started from there, or only asked about")
    asked = SealedTextField(help_text="what the user had said when it was started")
    depth = models.PositiveSmallIntegerField(
        default=0, help_text="1: of a run that a follow-up started, which is not followed up itself"
    )
    state = models.CharField(max_length=7, choices=State, default=State.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0, help_text="to tell it")
    due_at = models.DateTimeField(null=True, help_text="when the run ended")
    not_before = models.DateTimeField(null=True, help_text="when telling it may be tried again")
    message = models.UUIDField(null=True, editable=False, help_text="the message that told it")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = _WatchManager()

    class Meta:
        ordering = ["created_at", "id"]
        constraints = [
            models.UniqueConstraint(fields=["run", "conversation"], name="one_watch_a_conversation"),
            models.UniqueConstraint(
                fields=["run", "device_id"],
                condition=Q(conversation__isnull=True),
                name="one_watch_a_device",
            ),
        ]
        indexes = [
            models.Index(fields=["conversation", "-created_at"], name="watches_of_conversation"),
            models.Index(
                fields=["state", "not_before"],
                condition=Q(state__in=["due", "held", "dead"]),
                name="watches_due",
            ),
            models.Index(fields=["turn"], condition=Q(state="held"), name="watches_held"),
        ]

    def __str__(self) -> str:
        return f"watch of run {self.run_id}"
