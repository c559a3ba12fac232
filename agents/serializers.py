"""REST serializers of agents: input is checked here, with a message for each field."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from django.utils.translation import gettext, gettext_noop
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.permissions import SAFE_METHODS

from adiuva.core.language import said
from adiuva.core.representation import ModelSerializer
from adiuva.core.serializer_fields import ChecksField, FilterConfigField, LinesField
from agents import configuration, form_choices, schedules, services
from agents.agent_types import DATA_TYPES
from agents.configuration import BadPart
from agents.models import (
    MAX_BUDGET_MICRO,
    MAX_CATCH_UP_HOURS,
    ON_TIME_WINDOW,
    Agent,
    AgentFamily,
    AgentType,
    Announce,
    CatchUp,
)
from integrations.errors import OLD_TOKEN_FIELD, old_token_error
from integrations.models import Provider

FAMILY_HELP = "`local` or `cloud`, for deployed clients; `agent_kind` is exact."
# Warnings about an agent after it was created or changed.
_UNKNOWN_DEVICE: Final = gettext_noop(
    "None of your devices has called itself “{device}” yet: the agent's runs wait until one does. "
    "GET /api/v1/devices lists those that have connected."
)
_SAME_FOLDERS: Final = gettext_noop(
    "The agent “{agent}” reads the same folders: what it has found is not found again, so each "
    "record arrives once, from the agent that reads first."
)
_SAME_MAILBOX: Final = gettext_noop(
    "The agent “{agent}” reads the same mailbox: what it has found is not found again, so each "
    "record arrives once, from the agent that reads first."
)
Given = TypeVar("Given")
Checked = TypeVar("Checked")


def _checked(check: Callable[[Given], Checked], given: Given) -> Checked:
    try:
        return check(given)
    except BadPart as error:
        raise serializers.ValidationError(said(error.problem)) from None


class LocalAgentSerializer(ModelSerializer[Agent]):
    agent_type = serializers.ChoiceField(
        choices=AgentFamily.choices, source="family", read_only=True, help_text=FAMILY_HELP
    )
    agent_kind = serializers.ChoiceField(
        choices=AgentType.choices, source="type", read_only=True, help_text="What exactly it reads."
    )
    name = serializers.CharField(max_length=200)
    device_id = serializers.CharField(
        max_length=200,
        help_text="The device whose folders are read, as it names itself in its hello.",
        style={"options": form_choices.devices, "first": True},
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
        style={"options": form_choices.schedules},
        help_text='Five cron fields or "@daily" and friends, such as "0 8 * * 1-5". Empty: only by hand. '
        "A local time that does not exist runs at the first minute that does; one that comes twice runs once if the "
        "hour is fixed and each time if it is a wildcard.",
    )
    timezone = serializers.CharField(
        max_length=64,
        allow_blank=True,
        required=False,
        help_text="IANA zone of the schedule, such as Europe/Rome. Empty: your own.",
        style={"options": form_choices.zones},
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
    announce = serializers.ChoiceField(
        choices=Announce.choices,
        required=False,
        initial=Announce.PROBLEMS,
        help_text="Which ends of its scheduled runs are told, in a conversation for agents and as `run_ended`: "
        "`never`; `problems`, the same one once a day unless a run succeeded in between; `always`.",
    )
    budget_micro = serializers.IntegerField(
        min_value=0,
        max_value=MAX_BUDGET_MICRO,
        allow_null=True,
        required=False,
        help_text="What its runs may cost a month, in millionths of the currency (GET /api/v1/usage names it). Once it "
        "is spent, they wait for the next month. Empty: no limit of its own.",
    )
    enabled = serializers.BooleanField(
        default=True,
        initial=True,
        help_text="Whether the schedule runs. By hand an agent can always be run.",
    )
    held_by_plan = serializers.BooleanField(
        read_only=True,
        help_text="Whether the agent does not run although it is enabled, because your plan has no room for it. It "
        "runs again when there is room; POST /api/v1/agents/keep says which agents run.",
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
            "announce",
            "budget_micro",
            "enabled",
            "held_by_plan",
            "last_run_at",
            "next_run_at",
            "next_runs",
            "warnings",
            "created_at",
            "updated_at",
        ]
        read_only_fields = ["id", "held_by_plan", "last_run_at", "next_run_at", "created_at", "updated_at"]

    def validate_directory_paths(self, paths: list[str]) -> list[str]:
        return _checked(configuration.folders, paths)

    def validate_data_types(self, names: list[str]) -> list[str]:
        return _checked(configuration.tables, names)

    def validate_file_extensions(self, extensions: list[str]) -> list[str]:
        return _checked(configuration.extensions, extensions)

    def validate_schedule_cron(self, text: str | None) -> str:
        return _checked(configuration.schedule, text)

    def validate_timezone(self, name: str) -> str:
        return _checked(configuration.zone, name)

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        """Check that only `within` has hours; another way of catching up drops them."""
        before = self.instance if isinstance(self.instance, Agent) else Agent()
        if values.get("catch_up", before.catch_up) == CatchUp.WITHIN:
            if values.get("catch_up_hours", before.catch_up_hours) is None:
                raise serializers.ValidationError({"catch_up_hours": gettext('Needed for "within".')})
        elif values.get("catch_up_hours") is not None:
            raise serializers.ValidationError({"catch_up_hours": gettext('Only for "within".')})
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
        unknown, overlaps = [], gettext(_SAME_MAILBOX)
        if agent.is_local:
            overlaps = gettext(_SAME_FOLDERS)
            if not services.is_device_known(agent):
                unknown = [gettext(_UNKNOWN_DEVICE).format(device=agent.device_id)]
        return unknown + [overlaps.format(agent=other.name) for other in services.overlapping(agent)]


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
        style={"base_template": "choice.html", "options": form_choices.connections},
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
            "announce",
            "budget_micro",
            "enabled",
            "held_by_plan",
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


class KeptAgentsChoiceSerializer(serializers.Serializer[Any]):
    """The agents to keep running where the plan has no room for all that are enabled."""

    agent_ids = serializers.ListField(
        child=serializers.UUIDField(),
        allow_empty=False,
        max_length=1_000,
        help_text="Enabled agents, local ones and others. They run before all others.",
    )


class KeptAgentsSerializer(serializers.Serializer[Any]):
    running = serializers.ListField(child=serializers.UUIDField(), help_text="The agents that run now.")
    held = serializers.ListField(
        child=serializers.UUIDField(), help_text="Those that are enabled and held by the plan."
    )


class CatalogSerializer(serializers.Serializer[Any]):
    type = serializers.CharField()
    name = serializers.CharField()
    description = serializers.CharField()
    config_schema = serializers.DictField(help_text="JSON Schema of its configuration.")
    available = serializers.BooleanField(help_text="Whether this server can make one.")
