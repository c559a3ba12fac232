"""REST forms of journeys."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from agents.models import AgentFamily, AgentType

START_TYPES = [*AgentFamily.choices, *AgentType.choices]


class JourneyStartSerializer(serializers.Serializer[Any]):
    agent_type = serializers.ChoiceField(
        choices=START_TYPES,
        help_text="`local` is `local_directory`. `cloud` takes the one mailbox that is connected, or asks which.",
    )
    agent_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="An agent of yours that is to be changed."
    )
    data_types = serializers.JSONField(
        required=False, allow_null=True, help_text="Ignored: they come of what you answer."
    )


class JourneyAnswerSerializer(serializers.Serializer[Any]):
    session_id = serializers.CharField(max_length=100)
    message = serializers.CharField(
        max_length=4_000,
        allow_blank=True,
        required=False,
        default="",
        help_text="Your answer. May be left out with `back`.",
        style={"base_template": "textarea.html"},
    )
    back = serializers.BooleanField(
        required=False, default=False, help_text="Return to the question before and drop its answer."
    )
    turn = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=0,
        max_value=2**31 - 1,
        help_text="`turn` of the question that you answer. With it a message that is sent again is taken once.",
    )


class JourneyQuestionSerializer(serializers.Serializer[Any]):
    session_id = serializers.UUIDField()
    message = serializers.CharField(help_text="The question; with `done`, what the agent would do.")
    done = serializers.BooleanField()
    turn = serializers.IntegerField(help_text="Which step of the conversation it is.")


class JourneyFindSerializer(serializers.Serializer[Any]):
    """A record that the agent would propose."""

    table = serializers.CharField()
    data = serializers.DictField()  # type: ignore[assignment]  # the wire's name; DRF allows it
    source = serializers.CharField(help_text="What it was found in.")  # type: ignore[assignment]  # the same


class JourneyFoundSerializer(serializers.Serializer[Any]):
    """The records that the configuration finds in up to three documents. None of them is created."""

    sources = serializers.ListField(child=serializers.CharField(), help_text="The documents that were read.")
    records = JourneyFindSerializer(many=True, help_text="At most 100.")
    counts = serializers.DictField(child=serializers.IntegerField(), help_text="How many, by table.")
    code = serializers.CharField(
        allow_blank=True,
        help_text="Why not all, or nothing, was read: `device_offline`, `device_silent`, `no_folder`, `no_mailbox`, "
        "`nothing_to_read`, `out_of_time` or the code of an error. Blank if all went well.",
    )
    message = serializers.CharField(allow_blank=True, help_text="The same for people.")


class JourneySerializer(JourneyQuestionSerializer):
    """A journey. With `done` it has all fields, else the first four."""

    prompt_template = serializers.CharField(required=False)
    agent_kind = serializers.ChoiceField(choices=AgentType.choices, required=False)
    connection = serializers.UUIDField(
        required=False, allow_null=True, help_text="The mailbox that you chose; null if there was no choice."
    )
    data_types = serializers.ListField(child=serializers.CharField(), required=False)
    name = serializers.CharField(required=False)
    schedule_cron = serializers.CharField(required=False, allow_blank=True)
    filter_config = serializers.DictField(required=False, help_text="Of a cloud agent; empty for others.")
    file_extensions = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Of a local agent; empty for others."
    )
    notes = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="What of the model's proposal was left out."
    )
    found = JourneyFoundSerializer(required=False)


class JourneyMovedOnSerializer(serializers.Serializer[Any]):
    """The message came too late: another one was taken. This is where the conversation is now."""

    code = serializers.CharField(help_text="`journey_moved_on`.")
    message = serializers.CharField()
    question = serializers.CharField(allow_blank=True)
    done = serializers.BooleanField()
    turn = serializers.IntegerField()
