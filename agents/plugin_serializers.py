"""REST forms of agents that templates offer."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from adiuva.core.language import said
from agents import configuration
from agents.agent_types import DATA_TYPES
from agents.configuration import BadPart
from agents.models import AgentFamily, AgentType
from integrations.models import Provider


class OfferedAgentSerializer(serializers.Serializer[Any]):
    """The offer of an installed template: the body of a new agent, except the parts that you choose."""

    agent_type = serializers.ChoiceField(
        choices=AgentFamily.choices, help_text="Where it is saved: `/agents/local` or `/agents/cloud`."
    )
    agent_kinds = serializers.ListField(
        child=serializers.ChoiceField(choices=AgentType.choices), help_text="What it can read: choose one."
    )
    name = serializers.CharField()
    prompt_template = serializers.CharField()
    data_types = serializers.ListField(child=serializers.ChoiceField(choices=DATA_TYPES))
    schedule_cron = serializers.CharField(allow_blank=True)
    file_extensions = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Of an agent that reads folders."
    )
    filter_config = serializers.DictField(required=False, help_text="Of an agent that reads a mailbox.")


class TryOutSerializer(serializers.Serializer[Any]):
    """The documents to try the template on: folders of a device, or a mailbox."""

    device_id = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)
    directory_paths = serializers.ListField(
        child=serializers.CharField(max_length=4096, trim_whitespace=False),
        required=False,
        default=list,
        max_length=10,
        help_text="Absolute paths on the device.",
    )
    provider = serializers.ChoiceField(choices=Provider.choices, required=False, default="", allow_blank=True)
    connection = serializers.UUIDField(
        required=False, allow_null=True, default=None, help_text="Needed if several mailboxes are connected."
    )

    def validate_directory_paths(self, paths: list[str]) -> list[str]:
        try:
            return configuration.folders(paths)
        except BadPart as error:
            raise serializers.ValidationError(said(error.problem)) from None
