"""The memory's REST forms."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.logging import log
from memory import entries
from memory.entries import MAX_CONTENT_CHARS, MAX_KEY_CHARS
from memory.models import Entry, EntrySource, Receipt, SourceKind, Tier
from memory.search import MAX_QUESTION_CHARS

MAX_TEXT_CHARS: Final = 20_000  # characters of a text that a vector is asked for
FORGET_EVERYTHING_PHRASE: Final = "forget everything"
MAX_SEARCH_RESULTS: Final = 100
_PROVIDER = re.compile(r"[a-z0-9](?:[a-z0-9._:-]{0,253}[a-z0-9])?")


# ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────


class EntrySerializer(serializers.ModelSerializer[Entry]):
    """An entry, opened with the cipher in the context."""

    tier = serializers.ChoiceField(choices=Tier.choices)
    key = serializers.CharField(required=False, help_text="Of core entries alone: what they are about.")
    content = serializers.CharField()
    unreadable = serializers.BooleanField(
        required=False, help_text="True where the row was altered and does not open; `content` is empty then."
    )
    confidence = serializers.FloatField(required=False, help_text="Of patterns alone, from 0 to 1.")
    began_at = serializers.DateTimeField(required=False, help_text="Of the session that an episode tells of.")
    ended_at = serializers.DateTimeField(required=False)
    valid_to = serializers.DateTimeField(
        allow_null=True, help_text="When it stopped being so. None: it is so."
    )
    replaced_by = serializers.UUIDField(
        required=False, help_text="Of history alone: the entry that said this before."
    )
    uses = serializers.IntegerField(help_text="How many turns it was recalled for.")

    class Meta:
        model = Entry
        fields = [
            "id",
            "tier",
            "key",
            "content",
            "unreadable",
            "confidence",
            "began_at",
            "ended_at",
            "valid_from",
            "valid_to",
            "replaced_by",
            "uses",
            "used_at",
            "created_at",
            "updated_at",
        ]
        read_only_fields = fields

    def to_representation(self, entry: Entry) -> dict[str, Any]:
        cipher: UserCipher = self.context["cipher"]
        found: dict[str, Any] = {"id": str(entry.pk), "tier": entry.tier}
        try:
            said = entries.unseal_entry(entry, cipher)
        except SealBroken:
            # The row was altered. Its neighbours can be read, and it can be forgotten.
            log.error("memory.seal_broken", user_id=str(entry.user_id), entry=str(entry.pk))
            said = entries.EntryContent("")
            found["unreadable"] = True
        if said.key is not None:
            found["key"] = said.key
        found["content"] = said.content
        if entry.tier == Tier.PROACTIVE:
            found["confidence"] = entry.confidence
        if entry.tier == Tier.EPISODIC:
            found |= {"began_at": entry.began_at, "ended_at": entry.ended_at}
        found |= {"valid_from": entry.valid_from, "valid_to": entry.valid_to}
        if entry.successor_id is not None:
            found["replaced_by"] = str(entry.successor_id)
        return found | {
            "uses": entry.uses,
            "used_at": entry.used_at,
            "created_at": entry.created_at,
            "updated_at": entry.updated_at,
        }


class SourceSerializer(serializers.ModelSerializer[EntrySource]):
    kind = serializers.ChoiceField(choices=SourceKind.choices)
    id = serializers.UUIDField(
        source="source_id",
        allow_null=True,
        help_text="Of the conversation, the request or the run; none for what you wrote yourself.",
    )
    seq = serializers.IntegerField(allow_null=True, help_text="Of the message in the conversation.")

    class Meta:
        model = EntrySource
        fields = ["kind", "id", "seq", "at"]
        read_only_fields = fields


class EntryDetailSerializer(EntrySerializer):
    """With the latest sources and the latest history in the context."""

    sources = serializers.SerializerMethodField(
        help_text="Why this is known, the latest first: at most 100; all are at `sources`."
    )
    history = serializers.SerializerMethodField(
        help_text="What it said before, the latest first: at most 100; all is at `history`."
    )

    class Meta(EntrySerializer.Meta):
        fields = [*EntrySerializer.Meta.fields, "sources", "history"]
        read_only_fields = fields

    @extend_schema_field(SourceSerializer(many=True))
    def get_sources(self, entry: Entry) -> list[dict[str, Any]]:
        return list(SourceSerializer(self.context["sources"], many=True).data)

    @extend_schema_field(EntrySerializer(many=True))
    def get_history(self, entry: Entry) -> list[dict[str, Any]]:
        return list(EntrySerializer(self.context["history"], many=True, context=self.context).data)

    def to_representation(self, entry: Entry) -> dict[str, Any]:
        return super().to_representation(entry) | {
            "sources": self.get_sources(entry),
            "history": self.get_history(entry),
        }


_OWNERS: Final = {
    "key": Tier.CORE,
    "confidence": Tier.PROACTIVE,
    "began_at": Tier.EPISODIC,
    "ended_at": Tier.EPISODIC,
}


class CorrectionSerializer(serializers.Serializer[Any]):
    """What may be corrected of an entry: what it says. The tier is in the context."""

    key = serializers.CharField(
        max_length=MAX_KEY_CHARS,
        required=False,
        help_text="Of core entries: what it is about. One value a key.",
    )
    content = serializers.CharField(
        max_length=MAX_CONTENT_CHARS, required=False, style={"base_template": "textarea.html"}
    )
    confidence = serializers.FloatField(
        min_value=0, max_value=1, required=False, help_text="Of patterns; 1 if not given."
    )

    def validate_confidence(self, confidence: float) -> float:
        if not math.isfinite(confidence):
            raise serializers.ValidationError("A number from 0 to 1.")
        return confidence

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        for name, owner in _OWNERS.items():
            if name in self.initial_data and name not in self.fields:
                raise serializers.ValidationError({name: "It cannot be changed."})
            if values.get(name) is not None and self.context["tier"] != owner:
                raise serializers.ValidationError({name: f"Only {owner} entries have one."})
        return values


class NewEntrySerializer(CorrectionSerializer):
    """What is written by hand."""

    content = serializers.CharField(max_length=MAX_CONTENT_CHARS, style={"base_template": "textarea.html"})
    began_at = serializers.DateTimeField(
        required=False, allow_null=True, help_text="Of the session that an episode tells of."
    )
    ended_at = serializers.DateTimeField(required=False, allow_null=True)

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if self.context["tier"] == Tier.CORE and "key" not in values:
            raise serializers.ValidationError({"key": "Core entries need one."})
        began, ended = values.get("began_at"), values.get("ended_at")
        for name, when in (("began_at", began), ("ended_at", ended)):
            if when and not 1900 <= when.year < 2200:  # the outermost are in no year at all elsewhere
                raise serializers.ValidationError({name: "From 1900 to 2199."})
        if began and ended and ended < began:
            raise serializers.ValidationError({"ended_at": "It is before the beginning."})
        return super().validate(values)


# ── Search, forgetting ──────────────────────────────────────────────────────────────────────────────────


class SearchSerializer(serializers.Serializer[Any]):
    q = serializers.CharField(
        max_length=MAX_QUESTION_CHARS, help_text="What is looked for, in your own words."
    )
    tier = serializers.ChoiceField(choices=Tier.choices, required=False, help_text="Only in this tier.")
    limit = serializers.IntegerField(min_value=1, max_value=MAX_SEARCH_RESULTS, default=20)


class SearchHitSerializer(EntrySerializer):
    score = serializers.FloatField(help_text="Orders what one search found; means nothing beside another's.")

    class Meta(EntrySerializer.Meta):
        fields = [*EntrySerializer.Meta.fields, "score"]
        read_only_fields = fields


class SourceRefSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=SourceKind.choices)
    id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Of the conversation, the request or the run."
    )
    seq = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=2**31 - 1,
        help_text="One message of the conversation alone.",
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        by_hand = values["kind"] == SourceKind.USER
        if by_hand == (values.get("id") is not None):
            what = "What you wrote yourself has none." if by_hand else "Which one?"
            raise serializers.ValidationError({"id": what})
        return values


class ForgetSerializer(serializers.Serializer[Any]):
    source = SourceRefSerializer(  # type: ignore[assignment]  # the wire's word, and DRF's own
        required=False, help_text="Forget what is known from there alone."
    )
    everything = serializers.BooleanField(default=False)
    confirm = serializers.CharField(
        required=False,
        help_text=f'With `everything`: the words "{FORGET_EVERYTHING_PHRASE}", lest it be an accident.',
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if values["everything"] == ("source" in values):
            raise serializers.ValidationError("Either a source or everything is to be forgotten.")
        if values["everything"] and values.get("confirm") != FORGET_EVERYTHING_PHRASE:
            raise serializers.ValidationError(
                {"confirm": f'To forget everything, say "{FORGET_EVERYTHING_PHRASE}".'}
            )
        return values


class ForgottenSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField(default=True)
    forgotten = serializers.IntegerField(help_text="How many entries, history included.")


# ── Policy and receipts ─────────────────────────────────────────────────────────────────────────────────


class ProvidersField(serializers.ListField):
    """Names of model providers: a LiteLLM provider such as "openai", or the host of an endpoint."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            child=serializers.CharField(max_length=255),
            max_length=20,
            allow_null=True,
            required=False,
            **options,
        )

    def to_internal_value(self, data: Any) -> list[str]:
        names = [name.lower() for name in super().to_internal_value(data)]
        if any(not _PROVIDER.fullmatch(name) for name in names):
            raise serializers.ValidationError("Not the name of a provider, nor a host.")
        return names


class TiersSerializer(serializers.Serializer[Any]):
    """By tier, who may read it. None: any provider; an empty list: none."""

    core = ProvidersField()
    associative = ProvidersField()
    episodic = ProvidersField()
    proactive = ProvidersField()


class ProvidersSerializer(serializers.Serializer[Any]):
    chat = serializers.CharField(allow_null=True)
    embedding = serializers.CharField(
        allow_null=True, help_text="None: vectors are made on this server, and nothing leaves it."
    )


class PolicySerializer(serializers.Serializer[Any]):
    enabled = serializers.BooleanField(
        help_text="Off: nothing is recalled and nothing new is kept. What is remembered stays, yours to see and to "
        "forget; what was said and waits to be read is dropped."
    )
    tiers = TiersSerializer(
        help_text="Which model providers may read what. What you see here does not change."
    )
    providers = ProvidersSerializer(
        read_only=True, help_text="Who gets to read, as this server is configured now."
    )


class ReceiptSerializer(serializers.ModelSerializer[Receipt]):
    purpose = serializers.ChoiceField(choices=Receipt.Purpose.choices)
    entries = serializers.ListField(child=serializers.UUIDField(), help_text="What left, by id.")
    withheld = serializers.ListField(
        child=serializers.ChoiceField(choices=Tier.choices), help_text="Tiers that your policy kept back."
    )

    class Meta:
        model = Receipt
        fields = [
            "id",
            "purpose",
            "turn_id",
            "conversation_id",
            "provider",
            "model",
            "entries",
            "withheld",
            "at",
        ]
        read_only_fields = fields


class ReceiptQuerySerializer(serializers.Serializer[Any]):
    turn_id = serializers.UUIDField(required=False, help_text="Only of this turn.")
    conversation_id = serializers.UUIDField(required=False, help_text="Only of this conversation.")
    purpose = serializers.ChoiceField(choices=Receipt.Purpose.choices, required=False)


class EntryQuerySerializer(serializers.Serializer[Any]):
    current = serializers.ChoiceField(
        choices=["true", "false", "all"],
        default="true",
        help_text="What holds now, what does so no more (history), or both.",
    )


# ── Vectors ─────────────────────────────────────────────────────────────────────────────────────────────


class TextSerializer(serializers.Serializer[Any]):
    text = serializers.CharField(max_length=MAX_TEXT_CHARS, style={"base_template": "textarea.html"})


class VectorSerializer(serializers.Serializer[Any]):
    vector = serializers.ListField(child=serializers.FloatField())
    model = serializers.CharField(
        help_text="Whose vector it is. Vectors of models with different names are not to be compared; `lexical` finds "
        "shared words, not shared meaning."
    )
