"""Models of agents, their runs and journals, the ledger of sources, and journeys."""

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
from adiuva.core.leases import LEASE_FIELDS, Leased
from adiuva.core.sealed import SealedJSONField, SealedTextField
from integrations.models import Connection, Health


class AgentType(models.TextChoices):
    LOCAL_DIRECTORY = "local_directory", "Local folders"
    GMAIL = "gmail", "Gmail"
    TEAMS = "teams", "Teams"
    OUTLOOK = "outlook", "Outlook"


class AgentFamily(models.TextChoices):
    """What deployed clients call `agent_type`."""

    LOCAL = "local", "Local folders"
    CLOUD = "cloud", "Mailboxes and channels"


class CatchUp(models.TextChoices):
    """What happens to slots that passed while the server or the agent's device was away."""

    ONCE = "once", "one run for all of them"
    SKIP = "skip", "none"
    WITHIN = "within", "one run, if the last of them is not too long ago"


# A run that starts this long after its slot is still on time. Four ticks of the beat, so that restarting the beat makes
# no agent miss a slot.
ON_TIME_WINDOW = dt.timedelta(minutes=2)
MAX_CATCH_UP_HOURS = 720
# From a run's first claim to its forced end.
RUN_DEADLINE = dt.timedelta(hours=2)


class AgentQuerySet(models.QuerySet["Agent"]):
    def of(self, user_id: uuid.UUID) -> Self:
        return self.filter(user_id=user_id)

    def local(self) -> Self:
        return self.filter(type=AgentType.LOCAL_DIRECTORY)

    def cloud(self) -> Self:
        return self.exclude(type=AgentType.LOCAL_DIRECTORY)

    def with_usable_account(self) -> Self:
        """Agents that are not paused: local ones, and those whose connection exists and needs no new sign-in."""
        healthy = Connection.objects.filter(pk=OuterRef("connection_id"), health=Health.OK)
        return self.filter(Q(type=AgentType.LOCAL_DIRECTORY) | Exists(healthy))


def _configured(name: str, default: Any) -> Any:
    """A property of an agent that is kept in its sealed configuration, and read and set like a column."""

    def get(agent: Agent) -> Any:
        return agent.opened_configuration().get(name, deepcopy(default))

    def set(agent: Agent, value: Any) -> None:
        agent.seal_configuration({**agent.opened_configuration(), name: value})

    return property(get, set)


class Agent(models.Model):
    """What to read, what to look for in it, and when. Its words are sealed: the name, paths, filters and the prompt."""

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
        return f"{self.get_type_display()} agent {self.pk}"

    directory_paths: list[str] = _configured("directory_paths", [])
    file_extensions: list[str] = _configured("file_extensions", [])
    # What a cloud agent reads: labels, senders, dates.
    filter_config: dict[str, Any] = _configured("filter_config", {})
    prompt_template: str = _configured("prompt_template", "")

    @property
    def name(self) -> str:
        return Agent.name_sealed.unseal_from(cipher_for(self.user_id), self) if self.name_sealed else ""

    @name.setter
    def name(self, text: str) -> None:
        Agent.name_sealed.seal_into(cipher_for(self.user_id), self, text)

    def opened_configuration(self) -> dict[str, Any]:
        """The sealed part of the configuration. Raises SealBroken."""
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
        """Why an enabled agent's schedule does not run: `no_connection` or `needs_reauth`; empty if it does."""
        if self.is_local:
            return ""
        if self.connection is None:
            return "no_connection"
        return "" if self.connection.health == Health.OK else "needs_reauth"

    def accepts_slot(self, slot: dt.datetime, now: dt.datetime) -> bool:
        """Whether a slot still deserves a run: yes while it is on time, afterwards as `catch_up` says."""
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
    """Leaves previews out of queries: they may be large, and few callers need them."""

    def get_queryset(self) -> RunQuerySet:
        return RunQuerySet(self.model, using=self._db).defer("preview")


class Run(Leased):
    """One execution of an agent. Its worker holds the lease while it runs; after its end an undo or a delivery may."""

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
        """The result of a run that came to its regular end."""

        COMPLETED = "completed"
        WITH_FAILURES = "completed_with_failures", "completed with failures"
        EMPTY = "empty", "there was nothing to read"

    LIVE = (State.QUEUED, State.WAITING_DEVICE, State.AWAITING_REAUTH, State.RUNNING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="runs")
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
    created_at = models.DateTimeField(db_default=Now())
    enqueued_at = models.DateTimeField(db_default=Now())
    attempted_at = models.DateTimeField(null=True, help_text="when a worker last took it")
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    undone_at = models.DateTimeField(null=True)
    undelivered = models.BooleanField(
        db_default=False, help_text="a cloud agent's run that ended while records of it wait for a device"
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
        """How many sources were read in this run."""
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
    """A line of a run's journal. `details` holds what belongs to the user: the source's name and a message.

    `seq` is given by the database; `nonce` identifies the event within its run, so that it is written once.
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
        indexes = [models.Index(fields=["run", "seq"], name="journal_of_run")]

    def __str__(self) -> str:
        return f"{self.kind} {self.code}".strip()


class Source(models.Model):
    """A line of the ledger: which content of a source was read, and with what outcome. It is not read again until the
    content or the agent's configuration changes.

    `document` is what the source is: it stays when a file is renamed or moved, and is one for all agents of a user. A
    mail is its Message-ID, wherever it lies. What was found in it is in FoundRecord.
    """

    class Outcome(models.TextChoices):
        DONE = "done"
        QUARANTINED = "quarantined", "done, with unusable records"
        POISON = "poison", "quarantined: workers crashed over it"

    agent = models.ForeignKey(Agent, models.CASCADE, related_name="sources")
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
    """A record as it stands in a document: the next reading of the document is told of it, and answers what became of
    it. Its id is that of the outbox's record.

    `pending` is what the device is still to be told: `{"updates": {…} or null to withdraw it, "source": path}`.
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


class RunChanges(models.Model):
    """What a run updated and withdrew on a device because its source had changed, and what is needed to take it back.

    `sealed` holds a list of adiuva.devices.row_undo.RowChange, each with the id of its record.
    """

    run = models.OneToOneField(Run, models.CASCADE, primary_key=True, related_name="changes")
    device = models.UUIDField(editable=False, help_text="the row id of the device")
    sealed = SealedJSONField()

    def __str__(self) -> str:
        return f"changes of run {self.pk}"


class SourceInFlight(models.Model):
    """A source that a worker is reading. A row left behind by a dead worker marks a possible cause of its death."""

    agent = models.ForeignKey(Agent, models.CASCADE, related_name="+")
    key = models.BinaryField(help_text="keyed hash of the path or message id")
    in_flight = models.BooleanField(default=True, help_text="being read by the current attempt")
    crashes = models.PositiveSmallIntegerField(
        default=0, help_text="workers that died while they were reading it"
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["agent", "key"], name="one_row_a_source_in_flight")]

    def __str__(self) -> str:
        return f"{self.crashes} crashes"


class JourneySession(models.Model):
    """A journey: an interview that ends with a proposed agent configuration. `state` is what was said in it."""

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


class AgentCursor(models.Model):
    """Where a cloud agent continues reading its mailbox; valid for one configuration only."""

    agent = models.OneToOneField(Agent, models.CASCADE, primary_key=True, related_name="+")
    config_version = models.BinaryField()
    cursor = SealedTextField()
    updated_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.updated_at:%Y-%m-%d %H:%M}"
