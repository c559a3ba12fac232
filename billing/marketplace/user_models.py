"""Models of plugins in use: installations, ratings, reports, and transfers to another owner."""

from __future__ import annotations

import uuid
from typing import Any, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from billing.marketplace.models import Developer, Plugin, PluginVersion

# Unique constraints begin with the user.
_USER: dict[str, Any] = {"related_name": "+", "db_index": False}


class PluginInstallQuerySet(models.QuerySet["PluginInstall"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def present(self) -> Self:
        return self.filter(removed_at=None)


class PluginInstall(models.Model):
    """A plugin that a user has, or had. One row for each, so that installing again does not count twice."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, **_USER)
    plugin = models.ForeignKey(Plugin, models.CASCADE, related_name="user_installs")
    version = models.ForeignKey(PluginVersion, models.PROTECT, related_name="+")
    permissions = ArrayField(
        models.CharField(max_length=30), default=list, help_text="What the user has granted."
    )
    counted = models.BooleanField(default=False, help_text="Whether it is among the plugin's installs.")
    installed_at = models.DateTimeField(db_default=Now(), help_text="The first time since it was removed.")
    updated_at = models.DateTimeField(db_default=Now())
    removed_at = models.DateTimeField(null=True)

    objects = PluginInstallQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "plugin"], name="install_once")]

    def __str__(self) -> str:
        return f"install {self.pk}"


class PluginRating(models.Model):
    """An installer's opinion of a plugin. A trigger keeps the plugin's sums."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, **_USER)
    plugin = models.ForeignKey(Plugin, models.CASCADE, related_name="user_ratings")
    stars = models.PositiveSmallIntegerField()
    at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "plugin"], name="rating_once"),
            models.CheckConstraint(condition=Q(stars__gte=1, stars__lte=5), name="rating_stars"),
        ]

    def __str__(self) -> str:
        return f"rating {self.pk}"


class PluginReport(models.Model):
    """A user's report that something is wrong with a plugin. Staff decide."""

    class Reason(models.TextChoices):
        MALICIOUS = "malicious"
        BROKEN = "broken"
        IMITATION = "imitation"
        CONTENT = "content"
        OTHER = "other"

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    plugin = models.ForeignKey(Plugin, models.CASCADE, related_name="reports")
    version = models.ForeignKey(PluginVersion, models.PROTECT, null=True, related_name="+")
    reason = models.CharField(max_length=9, choices=Reason)
    text = models.CharField(max_length=2000, blank=True, help_text="Written for staff to read.")
    at = models.DateTimeField(db_default=Now(), editable=False)
    closed_at = models.DateTimeField(null=True, editable=False)
    closed_by = models.UUIDField(null=True, editable=False)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "plugin"], condition=Q(closed_at=None), name="report_open_once"
            ),
        ]
        indexes = [models.Index(fields=["at"], condition=Q(closed_at=None), name="reports_open")]

    def __str__(self) -> str:
        return f"report {self.pk}"


class PluginTransfer(models.Model):
    """A transfer of a plugin to another owner: accepted by them, and done after a hold in which it can be stopped."""

    class State(models.TextChoices):
        ASKED = "asked"
        ACCEPTED = "accepted", "accepted, on hold"
        DONE = "done"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    plugin = models.ForeignKey(Plugin, models.CASCADE, related_name="transfers")
    giver = models.ForeignKey(Developer, models.CASCADE, related_name="+")
    receiver = models.ForeignKey(Developer, models.CASCADE, related_name="+")
    state = models.CharField(max_length=9, choices=State, default=State.ASKED)
    asked_at = models.DateTimeField(db_default=Now(), editable=False)
    due_at = models.DateTimeField(null=True, help_text="When its hold ends.")

    class Meta:
        ordering = ["-asked_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["plugin"], condition=Q(state__in=["asked", "accepted"]), name="one_transfer_at_a_time"
            ),
        ]

    def __str__(self) -> str:
        return f"transfer {self.pk}"
