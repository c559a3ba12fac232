"""Runs of agents, their journals, and the changes of a run on a device."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.leases import LEASE_FIELDS, Leased
from adiuva.core.rows import QuicklyRead
from adiuva.core.sealed import SealedJSONField, SealedTextField
from agents.models.agents import Agent, AgentFamily, AgentType


class RunQuerySet(models.QuerySet["Run"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def live(self) -> Self:
        return self.filter(state__in=Run.LIVE)


_RunManager = models.Manager.from_queryset(RunQuerySet)


class RunManager(_RunManager["Run"]):
    """Leaves previews out of queries: they may be large, and few callers need them."""

    def get_queryset(self) -> RunQuerySet:
        return RunQuerySet(self.model, using=self._db).defer("preview")


class Run(QuicklyRead, Leased):
    """One execution of an agent. Its worker holds the lease while it runs; after its end an undo or a delivery may."""

    class State(models.TextChoices):
        QUEUED = "queued"
        WAITING_DEVICE = "waiting_device", "waiting for the device"
        AWAITING_REAUTH = "awaiting_reauth", "waiting for its account to be connected again"
        AWAITING_BUDGET = "awaiting_budget", "waiting for money for its models"
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
        """The result of a run that came to its regular end."""

        COMPLETED = "completed"
        WITH_FAILURES = "completed_with_failures", "completed with failures"
        EMPTY = "empty", "there was nothing to read"

    class Announcement(models.TextChoices):
        """The state of telling a run's end in the conversation for agents."""

        DUE = "due", "to be told"
        TOLD = "told"

    PUT_ASIDE = (State.WAITING_DEVICE, State.AWAITING_REAUTH, State.AWAITING_BUDGET)
    LIVE = (State.QUEUED, State.WAITING_DEVICE, State.AWAITING_REAUTH, State.AWAITING_BUDGET, State.RUNNING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="runs", db_index=False)
    agent = models.ForeignKey(Agent, models.SET_NULL, null=True, related_name="runs")
    # Copies, because the history outlives the agent.
    agent_ref = models.UUIDField()
    agent_name_sealed = models.BinaryField(help_text="as in the agent's own row, and bound to that")
    agent_type = models.CharField(max_length=20, choices=AgentType)
    device_id = models.CharField(max_length=200, blank=True)
    trigger = models.CharField(max_length=10, choices=Trigger, default=Trigger.MANUAL)
    slot = models.DateTimeField(null=True, help_text="the scheduled time it runs for")
    slots = models.PositiveIntegerField(default=1, help_text="how many scheduled times it covers")
    state = models.CharField(max_length=20, choices=State, default=State.QUEUED)
    phase = models.CharField(max_length=20, choices=Phase, blank=True)
    verdict = models.CharField(max_length=30, choices=Verdict, blank=True)
    dry_run = models.BooleanField(
        default=False, help_text="shows what a run would create, and creates nothing"
    )
    max_sources = models.PositiveIntegerField(null=True, help_text="the most sources a dry run reads")
    sources_due = models.PositiveIntegerField(
        db_default=0, help_text="of a dry run: how many sources a real one would read"
    )
    preview = SealedTextField(null=True, help_text="what a dry run found, as JSON lines")
    attempt = models.PositiveSmallIntegerField(default=0)
    retries = models.PositiveSmallIntegerField(default=0, help_text="after transient failures")
    not_before = models.DateTimeField(null=True, help_text="when it may be tried again")
    workers_lost = models.PositiveSmallIntegerField(
        default=0, help_text="workers lost in a row without any progress"
    )
    deadline_at = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)
    files_seen = models.PositiveIntegerField(default=0)
    files_done = models.PositiveIntegerField(default=0, help_text="read, failed or unchanged")
    files_unchanged = models.PositiveIntegerField(default=0)
    files_failed = models.PositiveIntegerField(default=0)
    passed_over = models.JSONField(
        default=dict, help_text="files of kinds that cannot be read and were not asked for: suffix → number"
    )
    problems = models.PositiveIntegerField(default=0)
    items_created = models.PositiveIntegerField(default=0)
    model_calls = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(db_default=0)
    cached_tokens = models.PositiveBigIntegerField(db_default=0, help_text="of the input")
    output_tokens = models.PositiveBigIntegerField(db_default=0)
    cost_micro = models.PositiveBigIntegerField(db_default=0, help_text="millionths of the currency")
    created_at = models.DateTimeField(db_default=Now())
    enqueued_at = models.DateTimeField(db_default=Now())
    attempted_at = models.DateTimeField(null=True, help_text="when a worker last took it")
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    undone_at = models.DateTimeField(null=True)
    undelivered = models.BooleanField(
        db_default=False, help_text="a cloud agent's run that ended while records of it wait for a device"
    )

    announcement = models.CharField(
        max_length=4,
        choices=Announcement,
        blank=True,
        db_default="",
        help_text="of a scheduled run, in the conversation for agents",
    )

    objects = RunManager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["agent"],
                condition=Q(
                    state__in=["queued", "waiting_device", "awaiting_reauth", "awaiting_budget", "running"]
                ),
                name="one_live_run_an_agent",
            ),
            models.UniqueConstraint(
                fields=["agent", "slot"], condition=Q(slot__isnull=False), name="one_run_a_slot"
            ),
        ]
        indexes = [
            models.Index(fields=["user", "-created_at", "-id"], name="runs_of_user"),
            models.Index(fields=["agent_ref", "-created_at", "-id"], include=["user"], name="runs_of_agent"),
            models.Index(fields=["-created_at"], name="runs_newest"),
            models.Index(fields=["state", "-created_at"], name="runs_by_state"),
            models.Index(
                fields=["state", "lease_until"],
                condition=Q(
                    state__in=["queued", "waiting_device", "awaiting_reauth", "awaiting_budget", "running"]
                ),
                name="runs_live",
            ),
            models.Index(fields=["user"], condition=Q(undelivered=True), name="runs_undelivered"),
            models.Index(fields=["user"], condition=Q(announcement="due"), name="runs_to_announce"),
            models.Index(
                fields=["user", "-attempted_at"],
                condition=Q(attempted_at__isnull=False),
                name="runs_last_turn",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_agent_type_display()} {self.created_at:%Y-%m-%d %H:%M}"

    @property
    def agent_name(self) -> str:
        """The agent's name when the run began. Raises SealBroken."""
        return Agent.name_sealed.unseal(cipher_for(self.user_id), self.agent_name_sealed, self.agent_ref)

    def set(self, **fields: Any) -> None:
        """Set fields and save these alone. The row must be locked."""
        self._set(fields)

    def revoke(self, **fields: Any) -> None:
        """Like `set`, and end the lease of the worker that holds the run."""
        self.revoke_lease()
        self._set(fields, LEASE_FIELDS)

    def _set(self, fields: Mapping[str, Any], others: Collection[str] = ()) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self.save(update_fields=[*fields, *others])

    @property
    def status(self) -> str:
        """The state in the four values that clients of the first backend know."""
        if self.state in self.LIVE:
            return "running"
        if self.state in (self.State.CANCELLED, self.State.TIMEOUT):
            return "error"
        return str(self.state)

    @property
    def items_processed(self) -> int:
        """The number of sources that were read in this run."""
        return max(0, self.files_done - self.files_unchanged - self.files_failed)

    @property
    def is_live(self) -> bool:
        return self.state in self.LIVE

    @property
    def is_cloud(self) -> bool:
        return self.agent_type != AgentType.LOCAL_DIRECTORY

    @property
    def agent_family(self) -> AgentFamily:
        return AgentFamily.CLOUD if self.is_cloud else AgentFamily.LOCAL


class RunEvent(models.Model):
    """A line of a run's journal. `details` holds the user's data: the source's name and a message.

    The database assigns `seq`; `nonce` identifies the event within its run, so that it is written once.
    """

    class Kind(models.TextChoices):
        STARTED = "started"
        WAITING = "waiting"
        SOURCE_DONE = "source_done", "a source was read"
        SOURCE_FAILED = "source_failed", "a source could not be read"
        SOURCE_PARTIAL = "source_partial", "a part of a source could not be read"
        RECORD_QUARANTINED = "record_quarantined", "a record was set aside"
        RECORD_REFUSED = "record_refused", "the device refused a record"
        RECORD_UNCERTAIN = "record_uncertain", "it is not known whether the device has a record"
        NOTE = "note"
        FINISHED = "finished"

    PROBLEMS = (
        Kind.SOURCE_FAILED,
        Kind.SOURCE_PARTIAL,
        Kind.RECORD_QUARANTINED,
        Kind.RECORD_REFUSED,
        Kind.RECORD_UNCERTAIN,
    )

    seq = models.BigAutoField(primary_key=True)
    # No index of its own: the unique constraint and the index below begin with the run.
    run = models.ForeignKey(Run, models.CASCADE, related_name="events", db_index=False)
    at = models.DateTimeField(db_default=Now())
    kind = models.CharField(max_length=20, choices=Kind)
    code = models.CharField(max_length=50, blank=True)
    count = models.IntegerField(null=True)
    nonce = models.UUIDField(default=uuid.uuid4, editable=False)
    details = SealedJSONField(null=True, bound_to=("nonce",), help_text="[source, message]")
    is_over = models.BooleanField(
        db_default=False, help_text="a failure that a later attempt of the run has not met again so far"
    )

    class Meta:
        ordering = ["seq"]
        constraints = [models.UniqueConstraint(fields=["run", "nonce"], name="an_event_once")]
        indexes = [
            models.Index(fields=["run", "seq"], name="journal_of_run"),
            models.Index(fields=["code", "-seq"], condition=~Q(code=""), name="journal_by_code"),
            models.Index(
                fields=["-at"], condition=~Q(code="") & ~Q(kind="note"), name="journal_failures_newest"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.code}".strip()


class RunChanges(models.Model):
    """The rows that a run updated and withdrew on a device because their source had changed, and the data to take that
    back.

    `sealed` holds a list of adiuva.devices.row_undo.RowChange, each with the id of its record.
    """

    run = models.OneToOneField(Run, models.CASCADE, primary_key=True, related_name="changes")
    device = models.UUIDField(editable=False, help_text="the row id of the device")
    sealed = SealedJSONField()

    def __str__(self) -> str:
        return f"changes of run {self.pk}"
