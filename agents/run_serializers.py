"""REST serializers of runs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.utils.translation import gettext
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adiuva.core.representation import ModelSerializer
from agents import journal, preview, run_reports, run_watches
from agents.models import AgentFamily, AgentType, Run
from agents.serializers import FAMILY_HELP


class RunSerializer(ModelSerializer[Run]):
    agent_id = serializers.UUIDField(source="agent_ref")
    agent_name = serializers.CharField(read_only=True)
    agent_type = serializers.ChoiceField(
        choices=AgentFamily.choices, source="agent_family", help_text=FAMILY_HELP
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
        known = self.context["problems"]
        return [journal.problem_text(event) for event in known[run.pk]] if known else []

    def get_records_waiting(self, run: Run) -> int:
        return self._count_left(run, "waiting")

    def get_records_expired(self, run: Run) -> int:
        return self._count_left(run, "expired")

    def _count_left(self, run: Run, what: str) -> int:
        left = self.context["left"]  # mostly empty, and looking up a UUID takes a while
        return int(left[run.pk][what]) if left else 0


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

    found = serializers.SerializerMethodField(
        help_text="By table, how many records are new, whether delivered or not; of a dry run, how many there would be."
    )
    cost_micro = serializers.IntegerField(
        read_only=True,
        help_text="What its requests to models cost, in millionths of the currency of /usage; 0 also without a price.",
    )
    sources_due = serializers.IntegerField(
        read_only=True, help_text="Of a dry run: how many sources a real run would read. 0 for others."
    )
    would_cost_micro = serializers.SerializerMethodField(
        help_text="Of a dry run: about what a real run would cost that reads all of them. Null for others, and where "
        "nobody knows."
    )
    conversation_id = serializers.SerializerMethodField(
        help_text="The conversation that it was started from, where its end is told. Null for others."
    )

    class Meta(RunSerializer.Meta):
        fields = [
            *RunSerializer.Meta.fields,
            "max_sources",
            "sources_due",
            "cost_micro",
            "would_cost_micro",
            "found",
            "conversation_id",
            "journal",
            "records",
        ]
        read_only_fields = fields

    def get_found(self, run: Run) -> dict[str, int]:
        return run_reports.count_found(run)

    @extend_schema_field(serializers.IntegerField(allow_null=True))
    def get_would_cost_micro(self, run: Run) -> int | None:
        return run_reports.would_cost_micro(run)

    @extend_schema_field(serializers.UUIDField(allow_null=True))
    def get_conversation_id(self, run: Run) -> UUID | None:
        return run_watches.conversation_of(run)

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
    conversation_id = serializers.UUIDField(
        required=False, help_text="A conversation of yours that it is started from."
    )
    follow_up = serializers.BooleanField(
        required=False, help_text="Whether its end is told in the conversation; it is, if nothing is said."
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if "max_sources" in values and not values["dry_run"]:
            raise serializers.ValidationError({"max_sources": gettext("Only for a dry run.")})
        if "follow_up" in values and "conversation_id" not in values:
            required = self.fields["conversation_id"].error_messages["required"]
            raise serializers.ValidationError({"conversation_id": required})
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
