"""REST serializers of the use of models."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers


class WindowSerializer(serializers.Serializer[Any]):
    starts_at = serializers.DateTimeField()
    renews_at = serializers.DateTimeField(help_text="When the next one begins: midnight in the user's zone.")


class FiguresSerializer(serializers.Serializer[Any]):
    calls = serializers.IntegerField(
        help_text="Requests to models, also those that were cancelled or broke off."
    )
    input_tokens = serializers.IntegerField()
    cached_tokens = serializers.IntegerField(help_text="Of the input, what the provider had in its cache.")
    output_tokens = serializers.IntegerField()
    cost_micro = serializers.IntegerField(help_text="In millionths of the currency.")
    estimated_micro = serializers.IntegerField(
        help_text="The part of the cost that is an estimate, because the provider did not say."
    )
    unpriced_calls = serializers.IntegerField(help_text="Requests whose price the server does not know.")


class AgentUseSerializer(FiguresSerializer):
    agent_id = serializers.UUIDField()


class ModelUseSerializer(FiguresSerializer):
    model = serializers.CharField()


class AdditionSerializer(serializers.Serializer[Any]):
    micro = serializers.IntegerField()
    reason = serializers.CharField()
    created_at = serializers.DateTimeField()


class UsageOfMonthSerializer(FiguresSerializer):
    window = WindowSerializer()
    currency = serializers.CharField()
    limit_micro = serializers.IntegerField(
        allow_null=True, help_text="What may be spent in this window; null: nothing limits it."
    )
    added_micro = serializers.IntegerField(help_text="Of the limit, what staff added to your plan's budget.")
    added = AdditionSerializer(many=True, help_text="When and why they did, the latest first.")
    spent_micro = serializers.IntegerField(help_text="Of the limit, what is spent.")
    reserved_micro = serializers.IntegerField(help_text="What is held for work that is under way.")
    used_percent = serializers.IntegerField(allow_null=True, help_text="Of the limit, spent and reserved.")
    by_purpose = serializers.DictField(
        child=FiguresSerializer(),
        help_text="By what it was for: chat, followups, agents, journeys, memory, vectors.",
    )
    by_agent = AgentUseSerializer(many=True, help_text="The dearest first.")
    by_model = ModelUseSerializer(many=True, help_text="The dearest first.")
