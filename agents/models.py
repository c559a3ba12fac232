"""Agents, their runs, the journal of a run, and the ledger of what was read."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Mapping
from typing import Any, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from adiuva.core.leases import LEASE_FIELDS, Leased
from integrations.models import Connection, Health


class AgentType(models.TextChoices):
    LOCAL_DIRECTORY = "local_directory", "Local folders"
    GMAIL = "gmail", "Gmail"
    TEAMS = "teams", "Teams"
    OUTLOOK = "outlook", "Outlook"


class CatchUp(models.TextChoices):
    """What becomes of scheduled times that passed while nobody could run them."""

    ONCE = "once", "one run for all of them"
    SKIP = "skip", "none"
    WITHIN = "within", "one run, if the last of them is not too long ago"


ON_TIME_WINDOW = dt.timedelta(minutes=2)  # four ticks of the beat: a restart of it makes nobody miss a slot
MAX_CATCH_UP_HOURS = 720


class AgentQuerySet(models.QuerySet["Agent"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def local(self) -> Self:
        return self.filter(type=AgentType.LOCAL_DIRECTORY)

    def cloud(self) -> Self:
        return self.exclude(type=AgentType.LOCAL_DIRECTORY)

    def with_usable_account(self) -> Self:
        """Without those that are paused: they read with a connection that is gone, or that its user has to renew."""
        healthy = Connection.objects.filter(pk=OuterRef("connection_id"), health=Health.OK)
        return self.filter(Q(type=AgentType.LOCAL_DIRECTORY) | Exists(healthy))


class Agent(models.Model):
    """What to read, what to look for in it, and when."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(  # indexes below begin with it
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="agents", db_index=False
    )
    type = models.CharField(max_length=20, choices=AgentType, default=AgentType.LOCAL_DIRECTORY)
    name = models.CharField(max_length=200)
    device_id = models.CharField(max_length=200, blank=True)
    directory_paths = ArrayField(models.CharField(max_length=4096), default=list, blank=True)
    file_extensions = ArrayField(models.CharField(max_length=20), default=list, blank=True)
    connection = models.ForeignKey(
        Connection,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="agents",
        help_text="of a cloud agent",
    )
    filter_config = models.JSONField(
        default=dict, blank=True, help_text="of a cloud agent: labels, senders, dates"
    )
    data_types = ArrayField(models.CharField(max_length=20), default=list)
    prompt_template = models.TextField(blank=True)
    schedule_cron = models.CharField(max_length=200, blank=True)
    timezone = models.CharField(max_length=64, blank=True, help_text="blank: the user's own")
    catch_up = models.CharField(max_length=6, choices=CatchUp, default=CatchUp.ONCE)
    catch_up_hours = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="for within: how long ago"
    )
    enabled = models.BooleanField(default=True)
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
        ]
        constraints = [
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
        return self.name

    @property
    def zone(self) -> str:
        return self.timezone or self.user.timezone

    @property
    def is_local(self) -> bool:
        return self.type == AgentType.LOCAL_DIRECTORY

    @property
    def paused(self) -> str:
        """Why its schedule stands still although it is switched on; empty if it does not."""
        if self.is_local:
            return ""
        if self.connection is None:
            return "no_connection"
        return "" if self.connection.health == Health.OK else "needs_reauth"

    def accepts_slot(self, slot: dt.datetime, now: dt.datetime) -> bool:
        """Whether a scheduled time is still worth a run: always while it is on time, then as `catch_up` says."""
        late = now - slot
        if late <= ON_TIME_WINDOW or self.catch_up == CatchUp.ONCE:
            return True
        hours = self.catch_up_hours if self.catch_up == CatchUp.WITHIN else None
        return hours is not None and late <= dt.timedelta(hours=hours)


class RunQuerySet(models.QuerySet["Run"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def live(self) -> Self:
        return self.filter(state__in=Run.LIVE)


_RunManager = models.Manager.from_queryset(RunQuerySet)


class RunManager(_RunManager["Run"]):
    """A preview may be large, and only who shows it reads it."""

    def get_queryset(self) -> RunQuerySet:
        return RunQuerySet(self.model, using=self._db).defer("preview")


class Run(Leased):
    """One execution of an agent. A worker holds its lease while it runs; an undo or a delivery does once it ended."""

    class State(models.TextChoices):
        QUEUED = "queued"
        WAITING_DEVICE = "waiting_device", "waiting for the device"
        AWAITING_REAUTH = "awaiting_reauth", "waiting for its account to be connected again"
        RUNNING = "running"
        SUCCESS = "success"
        PARTIAL = "partial"
        ERROR = "error"
        CANCELLED = "cancelled"
        TIMEOUT = "timeout"

    class Phase(models.TextChoices):
        COLLECTING = "collecting"
        EXTRACTING = "extracting"
        DELIVERING = "delivering"

    class Trigger(models.TextChoices):
        MANUAL = "manual"
        SCHEDULE = "schedule"

    class Verdict(models.TextChoices):
        """What a run that ended in order was worth."""

        COMPLETED = "completed"
        WITH_FAILURES = "completed_with_failures", "completed with failures"
        EMPTY = "empty", "there was nothing to read"

    LIVE = (State.QUEUED, State.WAITING_DEVICE, State.AWAITING_REAUTH, State.RUNNING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="runs")
    agent = models.ForeignKey(Agent, models.SET_NULL, null=True, related_name="runs")
    # The history outlives the agent.
    agent_ref = models.UUIDField()
    agent_name = models.CharField(max_length=200)
    agent_type = models.CharField(max_length=20, choices=AgentType)
    device_id = models.CharField(max_length=200, blank=True)
    trigger = models.CharField(max_length=10, choices=Trigger, default=Trigger.MANUAL)
    slot = models.DateTimeField(null=True, help_text="the scheduled time it is for")
    slots = models.PositiveIntegerField(default=1, help_text="how many scheduled times it stands for")
    state = models.CharField(max_length=20, choices=State, default=State.QUEUED)
    phase = models.CharField(max_length=20, choices=Phase, blank=True)
    verdict = models.CharField(max_length=30, choices=Verdict, blank=True)
    dry_run = models.BooleanField(
        default=False, help_text="it shows what it would create, and creates nothing"
    )
    max_sources = models.PositiveIntegerField(
        null=True, help_text="of a dry run: how many sources it reads at most"
    )
    preview = models.BinaryField(null=True, editable=False, help_text="sealed: what a dry run found")
    attempt = models.PositiveSmallIntegerField(default=0)
    retries = models.PositiveSmallIntegerField(default=0, help_text="after transient faults")
    not_before = models.DateTimeField(null=True, help_text="when a retry is due")
    workers_lost = models.PositiveSmallIntegerField(
        default=0, help_text="workers lost in a row without any progress"
    )
    deadline_at = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)
    files_seen = models.PositiveIntegerField(default=0)
    files_done = models.PositiveIntegerField(default=0, help_text="read, failed or unchanged")
    files_unchanged = models.PositiveIntegerField(default=0)
    files_failed = models.PositiveIntegerField(default=0)
    problems = models.PositiveIntegerField(default=0)
    items_created = models.PositiveIntegerField(default=0)
    model_calls = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(db_default=Now())
    enqueued_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    undone_at = models.DateTimeField(null=True)
    undelivered = models.BooleanField(
        db_default=False, help_text="it ended, of a cloud agent, and records of it wait for a device"
    )

    objects = RunManager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["agent"],
                condition=Q(state__in=["queued", "waiting_device", "awaiting_reauth", "running"]),
                name="one_live_run_an_agent",
            ),
            models.UniqueConstraint(
                fields=["agent", "slot"], condition=Q(slot__isnull=False), name="one_run_a_slot"
            ),
        ]
        indexes = [
            models.Index(fields=["user", "-created_at"], name="runs_of_user"),
            models.Index(fields=["agent_ref", "-created_at"], name="runs_of_agent"),
            models.Index(fields=["-created_at"], name="runs_newest"),
            models.Index(fields=["state", "-created_at"], name="runs_by_state"),
            models.Index(
                fields=["state", "lease_until"],
                condition=Q(state__in=["queued", "waiting_device", "awaiting_reauth", "running"]),
                name="runs_live",
            ),
            models.Index(fields=["user"], condition=Q(undelivered=True), name="runs_undelivered"),
        ]

    def __str__(self) -> str:
        return f"{self.agent_name} {self.created_at:%Y-%m-%d %H:%M}"

    def set(self, **fields: Any) -> None:
        """Set fields and save these alone. The row must be locked."""
        self._set(fields)

    def revoke(self, **fields: Any) -> None:
        """As `set`, and take the run from whoever holds it."""
        self.revoke_lease()
        self._set(fields, LEASE_FIELDS)

    def _set(self, fields: Mapping[str, Any], others: Collection[str] = ()) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self.save(update_fields=[*fields, *others])

    @property
    def status(self) -> str:
        """The four values that clients of the first backend know."""
        if self.state in self.LIVE:
            return "running"
        if self.state in (self.State.CANCELLED, self.State.TIMEOUT):
            return "error"
        return str(self.state)

    @property
    def items_processed(self) -> int:
        """Sources that were read in this run."""
        return max(0, self.files_done - self.files_unchanged - self.files_failed)

    @property
    def is_live(self) -> bool:
        return self.state in self.LIVE

    @property
    def is_cloud(self) -> bool:
        return self.agent_type != AgentType.LOCAL_DIRECTORY


class RunEvent(models.Model):
    """A line of a run's journal. `seq` is given by the database; the sealed part says which file, in whose words."""

    class Kind(models.TextChoices):
        STARTED = "started"
        WAITING = "waiting"
        SOURCE_DONE = "source_done", "a source was read"
        SOURCE_FAILED = "source_failed", "a source could not be read"
        RECORD_QUARANTINED = "record_quarantined", "a record was set aside"
        RECORD_REFUSED = "record_refused", "the device refused a record"
        RECORD_UNCERTAIN = "record_uncertain", "it is not known whether the device has a record"
        NOTE = "note"
        FINISHED = "finished"

    PROBLEMS = (Kind.SOURCE_FAILED, Kind.RECORD_QUARANTINED, Kind.RECORD_REFUSED, Kind.RECORD_UNCERTAIN)

    seq = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(
        Run, models.CASCADE, related_name="events", db_index=False
    )  # the others begin with it
    at = models.DateTimeField(db_default=Now())
    kind = models.CharField(max_length=20, choices=Kind)
    code = models.CharField(max_length=50, blank=True)
    count = models.IntegerField(null=True)
    nonce = models.UUIDField(
        default=uuid.uuid4, editable=False, help_text="which event it is; what the sealed part is bound to"
    )
    sealed = models.BinaryField(null=True, editable=False)
    is_over = models.BooleanField(
        db_default=False, help_text="a later attempt of the run began, and has not failed in the same way"
    )

    class Meta:
        ordering = ["seq"]
        constraints = [models.UniqueConstraint(fields=["run", "nonce"], name="an_event_once")]
        indexes = [models.Index(fields=["run", "seq"], name="journal_of_run")]

    def __str__(self) -> str:
        return f"{self.kind} {self.code}".strip()


class Source(models.Model):
    """The ledger: what of a source was read, and how it went. An unchanged one costs nothing."""

    class Outcome(models.TextChoices):
        DONE = "done"
        QUARANTINED = "quarantined", "done, with records set aside"
        POISON = "poison", "set aside: workers died over it"

    agent = models.ForeignKey(Agent, models.CASCADE, related_name="sources")
    key = models.BinaryField(help_text="keyed hash of the path or message id")
    content_hash = models.BinaryField()
    config_version = models.BinaryField(help_text="hash of the prompt, the data types and the model")
    outcome = models.CharField(max_length=12, choices=Outcome)
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["agent", "key"], name="one_row_a_source")]

    def __str__(self) -> str:
        return f"{self.outcome} {self.updated_at:%Y-%m-%d}"


class SourceInFlight(models.Model):
    """A source that a worker has in hand. What is still here when the worker is dead may be why it died."""

    agent = models.ForeignKey(Agent, models.CASCADE, related_name="+")
    key = models.BinaryField(help_text="keyed hash of the path or message id")
    in_flight = models.BooleanField(default=True, help_text="of the attempt under way")
    crashes = models.PositiveSmallIntegerField(
        default=0, help_text="workers that died while they were reading it"
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["agent", "key"], name="one_row_a_source_in_flight")]

    def __str__(self) -> str:
        return f"{self.crashes} crashes"


RUN_DEADLINE = dt.timedelta(hours=2)


class JourneySession(models.Model):
    """A conversation that ends with an agent's configuration. The sealed part is what was said in it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="journeys")
    agent = models.ForeignKey(Agent, models.SET_NULL, null=True, related_name="+", help_text="to be changed")
    agent_type = models.CharField(max_length=20, choices=AgentType)
    sealed = models.BinaryField(editable=False)
    version = models.PositiveIntegerField(default=1, help_text="one more with each step that was taken")
    expires_at = models.DateTimeField(db_index=True)
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.agent_type} {self.created_at:%Y-%m-%d %H:%M}"


class AgentCursor(models.Model):
    """Where a cloud agent goes on reading its mailbox. Sealed; of no use for another configuration."""

    agent = models.OneToOneField(Agent, models.CASCADE, primary_key=True, related_name="cursor")
    config_version = models.BinaryField()
    sealed = models.BinaryField(editable=False)
    updated_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.updated_at:%Y-%m-%d %H:%M}"
