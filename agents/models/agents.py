"""Agents, their positions in mailboxes, and the journeys that make them."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.rows import QuicklyRead
from adiuva.core.sealed import SealedJSONField, SealedTextField
from integrations.models import Connection, Health


class AgentType(models.TextChoices):
    LOCAL_DIRECTORY = "local_directory", "Local folders"
    GMAIL = "gmail", "Gmail"
    TEAMS = "teams", "Teams"
    OUTLOOK = "outlook", "Outlook"


class AgentFamily(models.TextChoices):
    """The value that deployed clients call `agent_type`."""

    LOCAL = "local", "Local folders"
    CLOUD = "cloud", "Mailboxes and channels"


class CatchUp(models.TextChoices):
    """The rule for slots that passed while the server or the agent's device was away."""

    ONCE = "once", "one run for all of them"
    SKIP = "skip", "none"
    WITHIN = "within", "one run, if the last of them is not too long ago"


class Announce(models.TextChoices):
    """The ends of an agent's scheduled runs that are announced to its user, in a conversation of their own."""

    NEVER = "never", "none"
    PROBLEMS = "problems", "those with problems"
    ALWAYS = "always", "all"


# A run that starts this long after its slot is still on time. This is four ticks of the beat, so that restarting the
# beat makes no agent miss a slot.
ON_TIME_WINDOW = dt.timedelta(minutes=2)
MAX_CATCH_UP_HOURS = 720
# The largest integer that a JSON number represents exactly in every language, in millionths.
MAX_BUDGET_MICRO = 2**53 - 1
# The time from a run's first claim to its forced end.
RUN_DEADLINE = dt.timedelta(hours=2)


class AgentQuerySet(models.QuerySet["Agent"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def names(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, str]:
        """Return the names of those of these agents that still exist."""
        return {agent.pk: agent.name for agent in self.filter(pk__in=ids).only("user_id", "name_sealed")}

    def local(self) -> Self:
        return self.filter(type=AgentType.LOCAL_DIRECTORY)

    def cloud(self) -> Self:
        return self.exclude(type=AgentType.LOCAL_DIRECTORY)

    def running(self) -> Self:
        """Return agents that are enabled, and not held by the plan."""
        return self.filter(enabled=True, held_by_plan=False)

    def with_usable_account(self) -> Self:
        """Return agents that are not paused: local ones, and those whose connection exists and needs no new sign-in."""
        healthy = Connection.objects.filter(pk=OuterRef("connection_id"), health=Health.OK)
        return self.filter(Q(type=AgentType.LOCAL_DIRECTORY) | Exists(healthy))


def _configured(name: str, default: Any) -> Any:
    """Return a property of an agent that is read and set like a column, but stored in its sealed configuration."""

    def get(agent: Agent) -> Any:
        values = agent.opened_configuration()
        return values[name] if name in values else deepcopy(default)

    def set(agent: Agent, value: Any) -> None:
        agent.seal_configuration({**agent.opened_configuration(), name: value})

    return property(get, set)


class Agent(QuicklyRead):
    """A saved configuration: what to read, what to look for in it, and when. Its words are sealed: the name, paths,
    filters and the prompt."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # No index of its own: two of those below begin with the user.
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="agents", db_index=False)
    type = models.CharField(max_length=20, choices=AgentType, default=AgentType.LOCAL_DIRECTORY)
    name_sealed = SealedTextField()
    configuration = SealedJSONField(help_text="paths, extensions, filters and prompt, by their names")
    device_id = models.CharField(max_length=200, blank=True)
    connection = models.ForeignKey(
        Connection,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="agents",
        help_text="the account a cloud agent reads",
    )
    data_types = ArrayField(models.CharField(max_length=20), default=list)
    schedule_cron = models.CharField(max_length=200, blank=True)
    timezone = models.CharField(max_length=64, blank=True, help_text="blank: the user's")
    catch_up = models.CharField(max_length=6, choices=CatchUp, default=CatchUp.ONCE)
    catch_up_hours = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="how late a run may be with `within`"
    )
    announce = models.CharField(
        max_length=8,
        choices=Announce,
        default=Announce.PROBLEMS,
        help_text="which ends of its scheduled runs its user is told of",
    )
    enabled = models.BooleanField(default=True)
    held_by_plan = models.BooleanField(
        default=False,
        editable=False,
        help_text="enabled, but the user's plan has no room for it (agents/plan_limits.py)",
    )
    budget_micro = models.PositiveBigIntegerField(
        null=True,
        blank=True,
        help_text="what its runs may cost a month, in millionths; empty: no limit of its own",
    )
    last_run_at = models.DateTimeField(null=True, editable=False)
    next_run_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    objects = AgentQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["user", "-created_at"], name="agents_of_user"),
            models.Index(fields=["-created_at"], name="agents_newest"),
            models.Index(
                fields=["next_run_at"],
                condition=Q(enabled=True, next_run_at__isnull=False),
                name="agents_due",
            ),
            models.Index(
                fields=["user", "next_run_at"],
                condition=Q(enabled=True, next_run_at__isnull=False),
                name="agents_due_of_user",
            ),
            models.Index(fields=["user"], condition=Q(held_by_plan=True), name="agents_held"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(held_by_plan=False) | Q(enabled=True), name="agent_held_is_enabled"
            ),
            models.CheckConstraint(
                condition=Q(
                    catch_up=CatchUp.WITHIN,
                    catch_up_hours__isnull=False,
                    catch_up_hours__range=(1, MAX_CATCH_UP_HOURS),
                )
                | (~Q(catch_up=CatchUp.WITHIN) & Q(catch_up_hours__isnull=True)),
                name="catch_up_hours_with_within",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_type_display()} agent {self.pk}"

    directory_paths: list[str] = _configured("directory_paths", [])
    file_extensions: list[str] = _configured("file_extensions", [])
    # The filters of a cloud agent: labels, senders, dates.
    filter_config: dict[str, Any] = _configured("filter_config", {})
    prompt_template: str = _configured("prompt_template", "")

    @property
    def name(self) -> str:
        return Agent.name_sealed.unseal_from(cipher_for(self.user_id), self) if self.name_sealed else ""

    @name.setter
    def name(self, text: str) -> None:
        Agent.name_sealed.seal_into(cipher_for(self.user_id), self, text)

    def opened_configuration(self) -> dict[str, Any]:
        """Return the sealed part of the configuration. Raises SealBroken."""
        if not self.configuration:
            return {}
        known: tuple[bytes, dict[str, Any]] | None = self.__dict__.get("_opened")
        if known is None or known[0] is not self.configuration:  # another value was read from the database
            known = self.configuration, Agent.configuration.unseal_from(cipher_for(self.user_id), self)
            self.__dict__["_opened"] = known
        return known[1]

    def seal_configuration(self, values: Mapping[str, Any]) -> None:
        """Set the sealed part of the configuration; the caller saves it."""
        Agent.configuration.seal_into(cipher_for(self.user_id), self, dict(values))

    @property
    def zone(self) -> str:
        return self.timezone or self.user.timezone

    @property
    def family(self) -> AgentFamily:
        return AgentFamily.LOCAL if self.is_local else AgentFamily.CLOUD

    @property
    def is_local(self) -> bool:
        return self.type == AgentType.LOCAL_DIRECTORY

    @property
    def paused(self) -> str:
        """The reason why an enabled agent's schedule does not run: `no_connection`, `needs_reauth`, or none ("")."""
        if self.is_local:
            return ""
        if self.connection is None:
            return "no_connection"
        return "" if self.connection.health == Health.OK else "needs_reauth"

    def accepts_slot(self, slot: dt.datetime, now: dt.datetime) -> bool:
        """Return whether a slot still deserves a run: yes while it is on time, afterwards as `catch_up` says."""
        late = now - slot
        if late <= ON_TIME_WINDOW or self.catch_up == CatchUp.ONCE:
            return True
        hours = self.catch_up_hours if self.catch_up == CatchUp.WITHIN else None
        return hours is not None and late <= dt.timedelta(hours=hours)


class AgentCursor(models.Model):
    """The position from which a cloud agent continues reading its mailbox; valid for one configuration only."""

    agent = models.OneToOneField(Agent, models.CASCADE, primary_key=True, related_name="+")
    config_version = models.BinaryField()
    cursor = SealedTextField()
    updated_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.updated_at:%Y-%m-%d %H:%M}"


class JourneySession(models.Model):
    """A journey: an interview that ends with a proposed agent configuration. `state` is its sealed conversation."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="journeys")
    agent = models.ForeignKey(
        Agent, models.SET_NULL, null=True, related_name="+", help_text="the agent to change, if any"
    )
    agent_type = models.CharField(
        max_length=20, choices=AgentType, blank=True, help_text="blank: which mailbox is the open question"
    )
    state = SealedTextField(help_text="JSON")
    version = models.PositiveIntegerField(default=1, help_text="counts the steps taken")
    expires_at = models.DateTimeField(db_index=True)
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.agent_type} {self.created_at:%Y-%m-%d %H:%M}"
