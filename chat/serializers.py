"""REST serializers of conversations and of POST /chat."""

from __future__ import annotations

from typing import Any

import orjson
from django.utils.translation import gettext
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adiuva.core.representation import ModelSerializer
from adiuva.core.rest import Problem
from adiuva.devices.vocabulary import NOTICES
from chat.conversations import MAX_TITLE_CHARS
from chat.models import AssistantKind, Conversation, Message
from chat.request import MAX_MESSAGE_CHARS

MAX_CONTEXT_BYTES = 256 * 1024


class ConversationSerializer(ModelSerializer[Conversation]):
    # The view passes decrypted titles in the context.
    kind = serializers.ChoiceField(choices=AssistantKind.choices, read_only=True)
    title = serializers.SerializerMethodField(help_text="Empty until the first answer.")

    class Meta:
        model = Conversation
        fields = ["id", "kind", "title", "memory", "for_agents", "message_count", "created_at", "updated_at"]
        read_only_fields = fields

    def get_title(self, conversation: Conversation) -> str:
        found: str = self.context["titles"][conversation.pk]
        return found


class MutationSerializer(serializers.Serializer[Any]):
    action = serializers.ChoiceField(choices=["insert", "update", "delete"])
    table = serializers.CharField()
    data = serializers.DictField(  # type: ignore[assignment]  # the wire's name; DRF allows it
        help_text="The row as the device returned it."
    )


class SteeredSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    call = serializers.IntegerField(help_text="In which of the turn's calls of the model, from 1.")


class StepSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(
        choices=["tool", "said"],
        help_text="`tool`: something that the assistant did; `said`: it read what you said meanwhile.",
    )
    call = serializers.IntegerField(help_text="In which of the turn's calls of the model, from 1.")
    label = serializers.CharField(  # type: ignore[assignment]  # the wire's name; DRF allows it
        required=False, help_text="Of a tool: what you were shown."
    )
    table = serializers.CharField(required=False, help_text="Of a tool: what it was about.")
    count = serializers.IntegerField(required=False, help_text="Of a tool: how often, in this call.")
    ok = serializers.BooleanField(required=False, help_text="Of a tool: whether it was carried out.")
    seq = serializers.IntegerField(required=False, help_text="Of what was said: the place of its message.")
    at = serializers.DateTimeField(required=False, help_text="Of what was said: when it was read.")


class OriginSerializer(serializers.Serializer[Any]):
    type = serializers.ChoiceField(choices=["agent_run"])
    run_ids = serializers.ListField(child=serializers.UUIDField())
    agent_names = serializers.ListField(child=serializers.CharField())


class MessageSerializer(serializers.Serializer[Any]):
    seq = serializers.IntegerField(help_text="From 1, in the order in which they were said.")
    role = serializers.ChoiceField(choices=Message.Role.choices)
    text = serializers.CharField()
    mutations = MutationSerializer(many=True)
    finish = serializers.CharField(required=False, help_text="How the assistant's turn ended.")
    code = serializers.CharField(required=False, help_text="Why, where it did not end well.")
    steered = SteeredSerializer(
        required=False, help_text="Of what you said while the assistant answered: when it read it."
    )
    origin = OriginSerializer(
        required=False, help_text="Of a message that nobody asked for: the runs whose end it tells."
    )
    steps = StepSerializer(
        many=True, required=False, help_text="Of an answer: what the assistant did for it, in order."
    )
    model_calls = serializers.IntegerField(
        required=False, help_text="Of an answer: how often the model was asked for it."
    )
    created_at = serializers.DateTimeField()


class ChangingTurnSerializer(serializers.Serializer[Any]):
    request_id = serializers.CharField(help_text="For POST /chat/turns/{request_id}/undo.")
    seq = serializers.IntegerField(
        allow_null=True,
        help_text="The place of the message that it answers; null if nobody's message began it.",
    )
    mutations = serializers.IntegerField(help_text="How many rows it inserted, updated and deleted.")
    undone_at = serializers.DateTimeField(allow_null=True)


class ConversationDetailSerializer(ConversationSerializer):
    messages = serializers.SerializerMethodField(
        help_text="In order: at most 1,000 at once, more with `after`."
    )
    turns = serializers.SerializerMethodField(
        help_text="Those of the last 30 days that changed rows on a device, the latest first, at most 100."
    )

    class Meta(ConversationSerializer.Meta):
        fields = [*ConversationSerializer.Meta.fields, "messages", "turns"]
        read_only_fields = fields

    @extend_schema_field(ChangingTurnSerializer(many=True))
    def get_turns(self, conversation: Conversation) -> list[dict[str, Any]]:
        return list(ChangingTurnSerializer(self.context["turns"], many=True).data)

    @extend_schema_field(MessageSerializer(many=True))
    def get_messages(self, conversation: Conversation) -> list[dict[str, Any]]:
        return list(MessageSerializer(self.context["messages"], many=True).data)


class ConversationChangesSerializer(serializers.Serializer[Any]):
    title = serializers.CharField(max_length=MAX_TITLE_CHARS, required=False)
    memory = serializers.BooleanField(
        required=False,
        help_text="false: nothing more of it is remembered, and nothing is recalled for it. What is remembered stays.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError(
                {"title": [gettext("Nothing to change: give a title, or memory.")]}
            )
        return attrs


# ── POST /chat ──────────────────────────────────────────────────────────────────────────────────────────


class _AnyJSONField(serializers.JSONField):
    """JSON of any shape. Python's own JSON module raises RecursionError if it nests too deep."""

    def to_internal_value(self, data: Any) -> Any:
        try:
            return super().to_internal_value(data)
        except RecursionError:
            self.fail("invalid")


class HistorySerializer(serializers.Serializer[Any]):
    role = serializers.ChoiceField(choices=["user", "assistant"])
    content = serializers.CharField(allow_blank=True, trim_whitespace=False)


class ChatContextSerializer(serializers.Serializer[Any]):
    """The client's knowledge. The assistant reads it as data, without authority."""

    user_profile = _AnyJSONField(required=False, allow_null=True)
    relevant_documents = _AnyJSONField(required=False, allow_null=True)
    recent_tasks = _AnyJSONField(required=False, allow_null=True)
    conversation_history = HistorySerializer(
        many=True,
        required=False,
        allow_null=True,
        help_text="What was said before. Not needed, and not read, where a conversation is named.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        try:
            size = len(orjson.dumps(attrs))
        except orjson.JSONEncodeError:
            raise serializers.ValidationError(
                gettext("It nests too deep, or holds what is no JSON.")
            ) from None
        if size > MAX_CONTEXT_BYTES:
            raise serializers.ValidationError(
                gettext("It has at most {most} bytes as JSON.").format(most=MAX_CONTEXT_BYTES)
            )
        return attrs


class ChatSerializer(serializers.Serializer[Any]):
    message = serializers.CharField(max_length=MAX_MESSAGE_CHARS, style={"base_template": "textarea.html"})
    context = ChatContextSerializer(required=False, allow_null=True)  # type: ignore[assignment]  # the wire's name
    conversation_id = serializers.CharField(
        max_length=200,
        required=False,
        allow_blank=True,
        allow_null=True,
        help_text="A conversation that this continues, and that it is kept in. Without one nothing is kept.",
    )
    device_id = serializers.CharField(
        max_length=200,
        required=False,
        allow_blank=True,
        allow_null=True,
        help_text="The device whose data it is about, as it names itself in its hello. Without it, the one seen last.",
    )
    request_id = serializers.CharField(
        max_length=200,
        required=False,
        allow_blank=True,
        allow_null=True,
        help_text="A name of your own: sent again, the request is not carried out twice.",
    )
    memory = serializers.BooleanField(
        default=True,
        initial=True,
        help_text="false: nothing of this request is remembered, and nothing is recalled for it.",
    )
    busy = serializers.ChoiceField(
        choices=["enqueue", "steer", "reject"],
        default="enqueue",
        initial="enqueue",
        help_text="While another request of the conversation is answered: wait for its end; join it at its next call "
        "of the model (then `code` is `joined`, and its own answer is empty); or be refused as `conversation_busy`.",
    )


class UsageSerializer(serializers.Serializer[Any]):
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    model_calls = serializers.IntegerField()
    cached_tokens = serializers.IntegerField(
        required=False,
        help_text="Of the input, what the provider had in its cache; absent if it says nothing of it.",
    )
    model = serializers.CharField(
        required=False, help_text="The model that gave the answer, as the server's settings name it."
    )
    cost_micro = serializers.IntegerField(
        required=False,
        help_text="What it cost, in millionths of the server's currency; absent if the model has no price.",
    )
    percent_left = serializers.IntegerField(
        required=False, help_text="Of the month's allowance for models; absent if nothing limits it."
    )


class AnswerSerializer(serializers.Serializer[Any]):
    request_id = serializers.CharField(help_text="Yours, or one of the server's making. For its undo.")
    response = serializers.CharField()
    mutations = MutationSerializer(many=True, help_text="What was changed on the device.")
    conversation_id = serializers.UUIDField(allow_null=True)
    finish = serializers.ChoiceField(choices=["stop", "cancelled", "limit"])
    code = serializers.CharField(
        required=False,
        help_text="Which limit it was; `joined` if another request of the conversation has read this one.",
    )
    usage = UsageSerializer()
    device_id = serializers.CharField(
        allow_null=True,
        help_text="The device whose data was read or changed. Null if none was asked: the answer knows no rows then.",
    )
    notices = serializers.ListField(
        child=serializers.ChoiceField(choices=list(NOTICES)),
        help_text="What the server says of the answer, mostly in a sentence below it as well: "
        + "; ".join(f"`{code}`: {meaning}" for code, meaning in NOTICES.items()),
    )
    retry_at = serializers.DateTimeField(
        required=False, help_text="With `budget_spent`: when there is money for models again."
    )


class FailedSerializer(Problem):
    """The reason why there is no answer, with the text and the changes on the device until then."""

    request_id = serializers.CharField(required=False)
    response = serializers.CharField(required=False)
    mutations = MutationSerializer(many=True, required=False)
    conversation_id = serializers.UUIDField(allow_null=True, required=False)
    finish = serializers.CharField(required=False)
    usage = UsageSerializer(required=False)
    device_id = serializers.CharField(allow_null=True, required=False)
    notices = serializers.ListField(child=serializers.ChoiceField(choices=list(NOTICES)), required=False)


class KeptRowSerializer(serializers.Serializer[Any]):
    table = serializers.CharField()
    id = serializers.CharField()
    title = serializers.CharField()
    reason = serializers.ChoiceField(
        choices=["edited", "in_use", "gone", "refused", "unknown"],
        help_text="`edited` by you since; `in_use`: something that stays refers to it; `gone`: it was deleted since; "
        "`refused` by the device; `unknown`: what it was before is not known.",
    )


class MemoryUndoneSerializer(serializers.Serializer[Any]):
    deleted = serializers.IntegerField(help_text="Entries that were known from this turn alone.")
    restored = serializers.IntegerField(help_text="Entries that hold again what they held before the turn.")


class TurnUndoneSerializer(serializers.Serializer[Any]):
    undone = serializers.IntegerField(help_text="Rows that are as they were before the turn, in all.")
    kept = KeptRowSerializer(many=True)
    undone_at = serializers.DateTimeField(
        allow_null=True,
        help_text="Null if the turn changed nothing on the device, and while the undo is not complete.",
    )
    memory = MemoryUndoneSerializer(
        help_text="What this call took back in your memory. Nothing before the device's part is complete."
    )


class TurnUndoStoppedSerializer(TurnUndoneSerializer):
    """The device disconnected or does not answer. Ask again to continue the undo."""

    code = serializers.CharField(help_text="`device_offline` or `outcome_unknown`, as a rule.")
    message = serializers.CharField()
