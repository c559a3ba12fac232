"""REST forms of agents and runs: input is checked here, with a message for each field."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.permissions import SAFE_METHODS

from adiuva.accounts.validators import timezones
from adiuva.core.form_fields import ChecksField, FilterConfigField, LinesField
from agents import choices, journal, preview, schedules, services
from agents.catalog import DATA_TYPES
from agents.cron import BadCron, Cron
from agents.models import MAX_CATCH_UP_HOURS, ON_TIME_WINDOW, Agent, AgentFamily, AgentType, CatchUp, Run
from integrations.errors import OLD_TOKEN_FIELD, old_token_error
from integrations.models import Provider

_ABSOLUTE = re.compile(r"^(/|[A-Za-z]:[\\/]|\\\\[^\\/]+[\\/][^\\/]+)")
_FAMILY = "`local` or `cloud`, for deployed clients; `agent_kind` is exact."
_EXTENSION = re.compile(r"^\.?[A-Za-z0-9]{1,15}$")


class LocalAgentSerializer(serializers.ModelSerializer[Agent]):
    agent_type = serializers.ChoiceField(
        choices=AgentFamily.choices, source="family", read_only=True, help_text=_FAMILY
    )
    agent_kind = serializers.ChoiceField(
        choices=AgentType.choices, source="type", read_only=True, help_text="What exactly it reads."
    )
    name = serializers.CharField(max_length=200)
    device_id = serializers.CharField(
        max_length=200,
        help_text="The device whose folders are read, as it names itself in its hello.",
        style={"options": choices.devices, "first": True},
    )
    directory_paths = LinesField(
        child=serializers.CharField(max_length=4096, trim_whitespace=False),
        allow_empty=False,
        max_length=100,
        help_text="Absolute paths on the device. It reads only what its owner granted there.",
    )
    data_types = ChecksField(
        choices=DATA_TYPES,
        initial=["tasks", "timelines", "notes"],
        child=serializers.CharField(max_length=20),
        allow_empty=False,
        max_length=len(DATA_TYPES),
        help_text=f"The tables that records may be made for: {', '.join(DATA_TYPES)}.",
    )
    prompt_template = serializers.CharField(
        max_length=20_000,
        allow_blank=True,
        required=False,
        help_text="What to look for, in your own words.",
        style={"base_template": "textarea.html"},
    )
    file_extensions = LinesField(
        child=serializers.CharField(max_length=20),
        required=False,
        max_length=100,
        help_text='Such as ".md" or "eml". Empty: all that the device can read.',
    )
    schedule_cron = serializers.CharField(
        max_length=200,
        allow_blank=True,
        allow_null=True,
        required=False,
        style={"options": choices.schedules},
        help_text='Five cron fields or "@daily" and friends, such as "0 8 * * 1-5". Empty: only by hand. '
        "A local time that does not exist runs at the first minute that does; one that comes twice runs once if the "
        "hour is fixed and each time if it is a wildcard.",
    )
    timezone = serializers.CharField(
        max_length=64,
        allow_blank=True,
        required=False,
        help_text="IANA zone of the schedule, such as Europe/Rome. Empty: your own.",
        style={"options": choices.zones},
    )
    catch_up = serializers.ChoiceField(
        choices=CatchUp.choices,
        required=False,
        initial=CatchUp.ONCE,
        help_text="What becomes of scheduled times that passed while the server or the device was away (by more than"
        f" {ON_TIME_WINDOW // dt.timedelta(minutes=1)} minutes): `once`, one run that stands for all of them (`slots` "
        "of the run); `skip`, none; `within`, one run if the last of them is at most `catch_up_hours` ago.",
    )
    catch_up_hours = serializers.IntegerField(
        min_value=1,
        max_value=MAX_CATCH_UP_HOURS,
        allow_null=True,
        required=False,
        help_text="For `within`, and only for it: how many hours ago.",
    )
    enabled = serializers.BooleanField(
        default=True,
        initial=True,
        help_text="Whether the schedule runs. By hand an agent can always be run.",
    )
    next_runs = serializers.SerializerMethodField(
        help_text="The next five times of the schedule, ISO 8601 with the offset of its zone; also while the agent is "
        "switched off (`next_run_at` is null then). Empty without a schedule.",
    )

    warnings = serializers.SerializerMethodField(
        help_text="After it was made or changed: what deserves attention, in sentences, such as another agent that "
        "reads the same. Empty when it is read."
    )

    class Meta:
        model = Agent
        fields = [
            "id",
            "agent_type",
            "agent_kind",
            "name",
            "device_id",
            "directory_paths",
            "data_types",
            "prompt_template",
            "file_extensions",
            "schedule_cron",
            "timezone",
            "catch_up",
            "catch_up_hours",
            "enabled",
            "last_run_at",
            "next_run_at",
            "next_runs",
            "warnings",
            "created_at",
            "updated_at",
        ]
        read_only_fields = ["id", "last_run_at", "next_run_at", "created_at", "updated_at"]

    def validate_directory_paths(self, paths: list[str]) -> list[str]:
        for path in paths:
            if not _ABSOLUTE.match(path):
                raise serializers.ValidationError(f"{path[:100]!r} is not an absolute path.")
            if ".." in re.split(r"[\\/]", path):
                raise serializers.ValidationError(f'{path[:100]!r} has a ".." in it.')
        return list(dict.fromkeys(paths))

    def validate_data_types(self, names: list[str]) -> list[str]:
        if unknown := [name for name in names if name not in DATA_TYPES]:
            raise serializers.ValidationError(f"{unknown[0][:50]!r} is not one of {', '.join(DATA_TYPES)}.")
        return list(dict.fromkeys(names))

    def validate_file_extensions(self, extensions: list[str]) -> list[str]:
        for extension in extensions:
            if not _EXTENSION.match(extension):
                raise serializers.ValidationError(f"{extension!r} is not a file extension such as .md.")
        return list(dict.fromkeys("." + extension.lstrip(".").lower() for extension in extensions))

    def validate_schedule_cron(self, text: str | None) -> str:
        if not text:
            return ""
        try:
            Cron.parse(text)
        except BadCron as error:
            raise serializers.ValidationError(f"Not a schedule: {error}.") from None
        return text

    def validate_timezone(self, name: str) -> str:
        if name and name not in timezones():
            raise serializers.ValidationError(f"{name!r} is not an IANA time zone.")
        return name

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        """Hours belong to `within`; what was set for it goes when another way of catching up is chosen."""
        before = self.instance if isinstance(self.instance, Agent) else Agent()
        if values.get("catch_up", before.catch_up) == CatchUp.WITHIN:
            if values.get("catch_up_hours", before.catch_up_hours) is None:
                raise serializers.ValidationError({"catch_up_hours": 'Needed for "within".'})
        elif values.get("catch_up_hours") is not None:
            raise serializers.ValidationError({"catch_up_hours": 'Only for "within".'})
        else:
            values["catch_up_hours"] = None
        return values

    @extend_schema_field({"type": "array", "items": {"type": "string", "format": "date-time"}, "maxItems": 5})
    def get_next_runs(self, agent: Agent) -> list[str]:
        return [slot.isoformat() for slot in schedules.upcoming_slots(agent)]

    def get_warnings(self, agent: Agent) -> list[str]:
        request = self.context.get("request")
        if request is None or request.method in SAFE_METHODS:
            return []
        what = "folders" if agent.is_local else "mailbox"
        unknown = (
            [
                f"None of your devices has called itself “{agent.device_id}” yet: the agent's runs wait until one "
                "does. GET /api/v1/devices lists those that have connected."
            ]
            if agent.is_local and not services.is_device_known(agent)
            else []
        )
        return unknown + [
            f"The agent “{other.name}” reads the same {what}: what it has found is not found again, so each record "
            "arrives once, from the agent that reads first."
            for other in services.overlapping(agent)
        ]


class CloudAgentSerializer(LocalAgentSerializer):
    device_id = directory_paths = file_extensions = None  # type: ignore[assignment]  # DRF's way to leave them out
    provider = serializers.ChoiceField(
        choices=Provider.choices,
        source="type",
        help_text="Whose mailbox or channels are read. It stays as it is.",
    )
    connection = serializers.UUIDField(
        source="connection_id",
        required=False,
        allow_null=True,
        style={"base_template": "choice.html", "options": choices.connections},
        help_text="The account, from GET /api/v1/connections. Without it, your only one at the provider that works.",
    )
    filter_config = FilterConfigField(
        required=False,
        help_text="`labels[]` (labels or folders by name or id; `channels[]` is the same, for Teams), `senders[]` "
        "(addresses, domains or parts of a name) and `date_range{from, to}` (days of your zone, both included). "
        "Each may be left out.",
    )
    paused = serializers.ChoiceField(
        choices=["no_connection", "needs_reauth"],
        allow_blank=True,
        read_only=True,
        help_text="Why the schedule is paused although the agent is enabled: its account is disconnected or has to be "
        "connected again. Afterwards missed times are caught up as `catch_up` says. Blank if it is not paused.",
    )

    class Meta(LocalAgentSerializer.Meta):
        fields = [
            "id",
            "agent_type",
            "agent_kind",
            "provider",
            "name",
            "connection",
            "filter_config",
            "data_types",
            "prompt_template",
            "schedule_cron",
            "timezone",
            "catch_up",
            "catch_up_hours",
            "enabled",
            "paused",
            "last_run_at",
            "next_run_at",
            "next_runs",
            "warnings",
            "created_at",
            "updated_at",
        ]

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and OLD_TOKEN_FIELD in data:
            raise old_token_error()
        return super().to_internal_value(data)

    def validate_filter_config(self, given: Any) -> dict[str, Any]:
        return services.clean_filter_config(given)

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        values = super().validate(values)
        if "connection_id" in values:
            values["connection"] = values.pop("connection_id")
        return values


class CatalogSerializer(serializers.Serializer[Any]):
    type = serializers.CharField()
    name = serializers.CharField()
    description = serializers.CharField()
    config_schema = serializers.DictField(help_text="JSON Schema of its configuration.")
    available = serializers.BooleanField(help_text="Whether this server can make one.")


class RunSerializer(serializers.ModelSerializer[Run]):
    agent_id = serializers.UUIDField(source="agent_ref")
    agent_name = serializers.CharField(read_only=True)
    agent_type = serializers.ChoiceField(
        choices=AgentFamily.choices, source="agent_family", help_text=_FAMILY
    )
    agent_kind = serializers.ChoiceField(
        choices=AgentType.choices, source="agent_type", help_text="What exactly its agent reads."
    )
    status = serializers.ChoiceField(
        choices=["running", "success", "partial", "error"], help_text="For older clients; `state` is exact."
    )
    state = serializers.ChoiceField(choices=Run.State.choices)
    phase = serializers.ChoiceField(choices=Run.Phase.choices, allow_blank=True)
    verdict = serializers.ChoiceField(
        choices=Run.Verdict.choices,
        allow_blank=True,
        help_text="Of a run that ended in order, what it was worth; blank for others.",
    )
    items_processed = serializers.IntegerField(help_text="Sources that were read in this run.")
    records_waiting = serializers.SerializerMethodField(
        help_text="Records that its device has not come for yet. They wait 30 days."
    )
    records_expired = serializers.SerializerMethodField(
        help_text="Records that waited in vain. What is found again is sent again."
    )
    retries = serializers.IntegerField(
        help_text="How often it was put off for a fault that passes, such as a model that is away."
    )
    not_before = serializers.DateTimeField(
        allow_null=True, help_text="Of a run that was put off: when it is tried again. Null for others."
    )
    errors = serializers.SerializerMethodField(  # type: ignore[assignment]  # the wire's name; DRF allows it
        help_text="Why it is no success, and what went wrong, in sentences: at most 50; the journal has all."
    )

    class Meta:
        model = Run
        fields = [
            "id",
            "agent_id",
            "agent_name",
            "agent_type",
            "agent_kind",
            "trigger",
            "status",
            "state",
            "phase",
            "verdict",
            "dry_run",
            "files_seen",
            "files_done",
            "files_unchanged",
            "files_failed",
            "passed_over",
            "items_processed",
            "items_created",
            "records_waiting",
            "records_expired",
            "model_calls",
            "retries",
            "not_before",
            "errors",
            "created_at",
            "started_at",
            "completed_at",
            "undone_at",
        ]
        read_only_fields = fields

    def get_errors(self, run: Run) -> list[str]:
        return [journal.problem_text(event) for event in self.context["problems"].get(run.pk, [])]

    def get_records_waiting(self, run: Run) -> int:
        return int(self.context["left"][run.pk]["waiting"])

    def get_records_expired(self, run: Run) -> int:
        return int(self.context["left"][run.pk]["expired"])


class EventSerializer(serializers.Serializer[Any]):
    seq = serializers.IntegerField()
    at = serializers.DateTimeField()
    kind = serializers.CharField()
    code = serializers.CharField()
    count = serializers.IntegerField(allow_null=True)
    source = serializers.CharField()  # type: ignore[assignment]  # the wire's name; DRF allows it
    message = serializers.CharField()


class PreviewSerializer(serializers.Serializer[Any]):
    """A record that a dry run found."""

    table = serializers.CharField()
    data = serializers.DictField()  # type: ignore[assignment]  # the wire's name; DRF allows it
    source = serializers.CharField(help_text="What it was found in.")  # type: ignore[assignment]  # the same
    known = serializers.BooleanField(
        help_text="An earlier run found it: a real one would not create it again."
    )


class RunDetailSerializer(RunSerializer):
    journal = serializers.SerializerMethodField(
        help_text="What happened, in order: at most 1,000 lines, more with `after`."
    )
    records = serializers.SerializerMethodField(
        help_text="Of a dry run: the first 1,000 records that it found. Null for others."
    )

    class Meta(RunSerializer.Meta):
        fields = [*RunSerializer.Meta.fields, "max_sources", "journal", "records"]
        read_only_fields = fields

    def get_journal(self, run: Run) -> list[dict[str, Any]]:
        return list(EventSerializer(self.context["journal"], many=True).data)

    @extend_schema_field(PreviewSerializer(many=True, allow_null=True))
    def get_records(self, run: Run) -> list[dict[str, Any]] | None:
        return preview.read_records(run) if run.dry_run else None


class StartSerializer(serializers.Serializer[Any]):
    """The query of a start."""

    dry_run = serializers.BooleanField(
        required=False, default=False, help_text="Show what the run would create, and create nothing."
    )
    max_sources = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=10_000,
        help_text="Of a dry run: how many sources it reads at most. All that are due, if it is not given; what is "
        "there, if nothing is due.",
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if "max_sources" in values and not values["dry_run"]:
            raise serializers.ValidationError({"max_sources": "Only for a dry run."})
        return values


class StartedSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField()
    run_id = serializers.UUIDField()


class KeptSerializer(serializers.Serializer[Any]):
    table = serializers.CharField()
    id = serializers.CharField(allow_null=True, help_text="Null where the device never said it.")
    title = serializers.CharField(allow_null=True)
    reason = serializers.ChoiceField(
        choices=["edited", "approved", "in_use", "gone", "refused", "unknown"],
        help_text="`edited` or `approved` by you since; `in_use`: something that stays refers to it; `gone`: it was "
        "deleted before; `refused` by the device; `unknown`: it is not known whether it is there, or as it was.",
    )


class UndoneSerializer(serializers.Serializer[Any]):
    deleted = serializers.IntegerField(help_text="Records that were deleted again, in all.")
    restored = serializers.IntegerField(
        help_text="Rows that it had updated or withdrawn because their source had changed, and that are as they were."
    )
    never_sent = serializers.IntegerField(help_text="Records that were still in line and will not be sent.")
    kept = KeptSerializer(many=True)
    undone_at = serializers.DateTimeField(allow_null=True, help_text="Null while the undo is not complete.")


class UndoStoppedSerializer(UndoneSerializer):
    """The device disconnected or does not answer. Ask again to continue the undo."""

    code = serializers.CharField(help_text="`device_offline` or `outcome_unknown`, as a rule.")
    message = serializers.CharField()
