"""The agents' REST forms: what comes in is checked here, with a message for each field."""

from __future__ import annotations

import re
from typing import Any
from zoneinfo import available_timezones

from rest_framework import serializers

from agents.catalog import DATA_TYPES
from agents.cron import BadCron, Cron
from agents.models import Agent, Run

_ABSOLUTE = re.compile(r"^(/|[A-Za-z]:[\\/]|\\\\[^\\/]+[\\/][^\\/]+)")
_EXTENSION = re.compile(r"^\.?[A-Za-z0-9]{1,15}$")
_ZONES = available_timezones()


class LocalAgentSerializer(serializers.ModelSerializer[Agent]):
    device_id = serializers.CharField(
        max_length=200, help_text="The device whose folders are read, as it names itself in its hello."
    )
    directory_paths = serializers.ListField(
        child=serializers.CharField(max_length=4096, trim_whitespace=False),
        allow_empty=False,
        max_length=100,
        help_text="Absolute paths on the device. It reads only what its owner granted there.",
    )
    data_types = serializers.ListField(
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
    file_extensions = serializers.ListField(
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
        help_text='Five cron fields or "@daily" and friends, such as "0 8 * * 1-5". Empty: only by hand.',
    )
    timezone = serializers.CharField(
        max_length=64,
        allow_blank=True,
        required=False,
        help_text="IANA zone of the schedule, such as Europe/Rome. Empty: your own.",
    )
    enabled = serializers.BooleanField(
        default=True, help_text="Whether the schedule runs. By hand an agent can always be run."
    )

    class Meta:
        model = Agent
        fields = [
            "id",
            "name",
            "device_id",
            "directory_paths",
            "data_types",
            "prompt_template",
            "file_extensions",
            "schedule_cron",
            "timezone",
            "enabled",
            "last_run_at",
            "next_run_at",
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
        if name and name not in _ZONES:
            raise serializers.ValidationError(f"{name!r} is not an IANA time zone.")
        return name


class CatalogSerializer(serializers.Serializer[Any]):
    type = serializers.CharField()
    name = serializers.CharField()
    description = serializers.CharField()
    config_schema = serializers.DictField(help_text="JSON Schema of its configuration.")
    available = serializers.BooleanField(help_text="Whether this server can make one.")


class RunSerializer(serializers.ModelSerializer[Run]):
    agent_id = serializers.UUIDField(source="agent_ref")
    status = serializers.ChoiceField(
        choices=["running", "success", "partial", "error"], help_text="For older clients; `state` is exact."
    )
    state = serializers.ChoiceField(choices=Run.State.choices)
    phase = serializers.ChoiceField(choices=Run.Phase.choices, allow_blank=True)
    items_processed = serializers.IntegerField(help_text="Sources that were read in this run.")
    errors = serializers.SerializerMethodField(  # type: ignore[assignment]  # the wire's name; DRF allows it
        help_text="What went wrong, at most 50; the journal has all."
    )

    class Meta:
        model = Run
        fields = [
            "id",
            "agent_id",
            "agent_name",
            "agent_type",
            "trigger",
            "status",
            "state",
            "phase",
            "files_seen",
            "files_done",
            "files_unchanged",
            "files_failed",
            "items_processed",
            "items_created",
            "model_calls",
            "errors",
            "created_at",
            "started_at",
            "completed_at",
        ]
        read_only_fields = fields

    def get_errors(self, run: Run) -> list[str]:
        return [problem_text(event) for event in self.context["problems"].get(run.pk, [])]


class EventSerializer(serializers.Serializer[Any]):
    seq = serializers.IntegerField()
    at = serializers.DateTimeField()
    kind = serializers.CharField()
    code = serializers.CharField()
    count = serializers.IntegerField(allow_null=True)
    source = serializers.CharField()  # type: ignore[assignment]  # the wire's name; DRF allows it
    message = serializers.CharField()


class RunDetailSerializer(RunSerializer):
    journal = serializers.SerializerMethodField(
        help_text="What happened, in order: at most 1,000 lines, more with `after`."
    )

    class Meta(RunSerializer.Meta):
        fields = [*RunSerializer.Meta.fields, "journal"]
        read_only_fields = fields

    def get_journal(self, run: Run) -> list[dict[str, Any]]:
        return list(EventSerializer(self.context["journal"], many=True).data)


class StartedSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField()
    run_id = serializers.UUIDField()


_WORDS = {
    "unreadable": "the device could not read it",
    "never_sent": "the device was asked for it and did not send it",
    "not_asked_for": "the device sent it without being asked",
    "too_large": "it is too large",
    "damaged_on_the_way": "it arrived damaged",
    "device_refused": "the device refused a record",
    "outcome_unknown": "it is not known whether the device has a record",
    "lost_on_the_way": "the device sent more files than arrived",
    "never_read": "it was not read",
    "and_more": "more files could not be read",
}


def problem_text(event: dict[str, Any]) -> str:
    """A journal event in a sentence: which source, what happened, how often."""
    words = event["message"] or _WORDS.get(event["code"], event["code"])
    counted = f" ({event['count']} times)" if (event["count"] or 0) > 1 else ""
    return f"{event['source']}: {words}{counted}" if event["source"] else f"{words}{counted}"
