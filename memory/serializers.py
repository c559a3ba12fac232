"""REST serializers of memory."""

from __future__ import annotations

import math
from typing import Any, Final

import structlog
from django.utils.translation import gettext
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adiuva.core.crypto import SealBroken, UserCipher
from memory import entry_content
from memory.entry_content import MAX_CONTENT_CHARS, MAX_KEY_CHARS
from memory.models import Entry, EntrySource, SourceKind, Tier
from memory.search import MAX_QUESTION_CHARS

# The longest text to embed.
MAX_TEXT_CHARS: Final = 20_000
FORGET_EVERYTHING_PHRASE: Final = "forget everything"
MAX_SEARCH_RESULTS: Final = 100
log = structlog.get_logger(__name__)


# ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────


class EntrySerializer(serializers.ModelSerializer[Entry]):
    """An entry, unsealed with the cipher in the context."""

    tier = serializers.ChoiceField(choices=Tier.choices)
    state = serializers.ChoiceField(
        choices=["current", "proposed", "history"],
        help_text="`proposed`: not remembered yet. It came up when texts were open that you did not write; it waits "
        "for you to say it again or to confirm it.",
    )
    replaces = serializers.UUIDField(
        required=False, help_text="Only of proposals: the entry whose content it would replace."
    )
    key = serializers.CharField(required=False, help_text="Only of core entries: what the entry is about.")
    content = serializers.CharField()
    unreadable = serializers.BooleanField(
        required=False,
        help_text="True if the stored entry was altered and cannot be decrypted; `content` is empty then.",
    )
    confidence = serializers.FloatField(required=False, help_text="Only of patterns, from 0 to 1.")
    began_at = serializers.DateTimeField(required=False, help_text="Only of episodes: when it began.")
    ended_at = serializers.DateTimeField(required=False, help_text="Only of episodes: when it ended.")
    valid_to = serializers.DateTimeField(
        allow_null=True, help_text="When it stopped being true; null while it is true."
    )
    replaced_by = serializers.UUIDField(
        required=False, help_text="Only of history: the entry that replaced this one."
    )
    uses = serializers.IntegerField(help_text="How many turns recalled it.")

    class Meta:
        model = Entry
        fields = [
            "id",
            "tier",
            "state",
            "key",
            "content",
            "unreadable",
            "confidence",
            "began_at",
            "ended_at",
            "valid_from",
            "valid_to",
            "replaced_by",
            "replaces",
            "uses",
            "used_at",
            "created_at",
            "updated_at",
        ]
        read_only_fields = fields

    def to_representation(self, entry: Entry) -> dict[str, Any]:
        cipher: UserCipher = self.context["cipher"]
        found: dict[str, Any] = {"id": entry.pk, "tier": entry.tier, "state": entry.state}
        try:
            content = entry_content.unseal_entry(entry, cipher)
        except SealBroken:
            # The row was altered. Other entries can still be read, and this one can be forgotten.
            log.error("memory.seal_broken", user_id=str(entry.user_id), entry_id=str(entry.pk))
            content = entry_content.EntryContent("")
            found["unreadable"] = True
        if content.key is not None:
            found["key"] = content.key
        found["content"] = content.content
        if entry.tier == Tier.PROACTIVE:
            found["confidence"] = entry.confidence
        if entry.tier == Tier.EPISODIC:
            found["began_at"], found["ended_at"] = entry.began_at, entry.ended_at
        found["valid_from"], found["valid_to"] = entry.valid_from, entry.valid_to
        if entry.successor_id is not None:
            found["replaced_by"] = entry.successor_id
        if content.replaces is not None:
            found["replaces"] = content.replaces
        found["uses"], found["used_at"] = entry.uses, entry.used_at
        found["created_at"], found["updated_at"] = entry.created_at, entry.updated_at
        return found


class OpenedSerializer(serializers.Serializer[Any]):
    table = serializers.CharField(
        help_text="A table of your device, or `context` for what the app sent along."
    )
    id = serializers.CharField(help_text="The row's id.")


class SourceSerializer(serializers.ModelSerializer[EntrySource]):
    kind = serializers.ChoiceField(choices=SourceKind.choices)
    id = serializers.UUIDField(
        source="source_id",
        allow_null=True,
        help_text="Of the conversation, request or run; null for what you wrote yourself.",
    )
    seq = serializers.IntegerField(allow_null=True, help_text="Number of the message in the conversation.")
    ended = serializers.BooleanField(help_text="Whether you said there that it holds no longer.")
    opened = serializers.SerializerMethodField(
        help_text="The texts that had been read there and that you did not write: notes, records that agents found."
    )

    class Meta:
        model = EntrySource
        fields = ["kind", "id", "seq", "at", "ended", "opened"]
        read_only_fields = fields

    @extend_schema_field(OpenedSerializer(many=True))
    def get_opened(self, source: EntrySource) -> list[dict[str, str]]:
        return entry_content.opened_at(source, self.context["cipher"])


class EntryDetailSerializer(EntrySerializer):
    """An entry with its latest sources and its latest history, from the context."""

    sources = serializers.SerializerMethodField(
        help_text="Where this comes from, latest first, at most 100; the full list is at `sources`."
    )
    history = serializers.SerializerMethodField(
        help_text="Former versions, latest first, at most 100; the full list is at `history`."
    )

    class Meta(EntrySerializer.Meta):
        fields = [*EntrySerializer.Meta.fields, "sources", "history"]
        read_only_fields = fields

    @extend_schema_field(SourceSerializer(many=True))
    def get_sources(self, entry: Entry) -> list[dict[str, Any]]:
        return list(SourceSerializer(self.context["sources"], many=True, context=self.context).data)

    @extend_schema_field(EntrySerializer(many=True))
    def get_history(self, entry: Entry) -> list[dict[str, Any]]:
        return list(EntrySerializer(self.context["history"], many=True, context=self.context).data)

    def to_representation(self, entry: Entry) -> dict[str, Any]:
        return super().to_representation(entry) | {
            "sources": self.get_sources(entry),
            "history": self.get_history(entry),
        }


_TIER_BY_FIELD: Final = {
    "key": Tier.CORE,
    "confidence": Tier.PROACTIVE,
    "began_at": Tier.EPISODIC,
    "ended_at": Tier.EPISODIC,
}


class CorrectionSerializer(serializers.Serializer[Any]):
    """Changes to an entry. The tier is in the context."""

    key = serializers.CharField(
        max_length=MAX_KEY_CHARS,
        required=False,
        help_text="Of core entries: what the entry is about. Each key has one value.",
    )
    content = serializers.CharField(
        max_length=MAX_CONTENT_CHARS, required=False, style={"base_template": "textarea.html"}
    )
    confidence = serializers.FloatField(
        min_value=0, max_value=1, required=False, help_text="Of patterns; 1 if omitted."
    )

    def validate_confidence(self, confidence: float) -> float:
        if not math.isfinite(confidence):
            raise serializers.ValidationError(gettext("Must be a number from 0 to 1."))
        return confidence

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        for name, tier in _TIER_BY_FIELD.items():
            if name in self.initial_data and name not in self.fields:
                raise serializers.ValidationError({name: gettext("This field cannot be changed.")})
            if values.get(name) is not None and self.context["tier"] != tier:
                raise serializers.ValidationError(
                    {name: gettext("Only {tier} entries have this field.").format(tier=tier)}
                )
        return values


class NewEntrySerializer(CorrectionSerializer):
    """An entry that the user writes by hand."""

    content = serializers.CharField(max_length=MAX_CONTENT_CHARS, style={"base_template": "textarea.html"})
    began_at = serializers.DateTimeField(
        required=False, allow_null=True, help_text="Only of episodes: when it began."
    )
    ended_at = serializers.DateTimeField(
        required=False, allow_null=True, help_text="Only of episodes: when it ended."
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if self.context["tier"] == Tier.CORE and "key" not in values:
            raise serializers.ValidationError({"key": gettext("Core entries need a key.")})
        began, ended = values.get("began_at"), values.get("ended_at")
        for name, when in (("began_at", began), ("ended_at", ended)):
            if when and not 1900 <= when.year < 2200:  # dates at the limits have no year in other time zones
                raise serializers.ValidationError({name: gettext("Must be between 1900 and 2199.")})
        if began and ended and ended < began:
            raise serializers.ValidationError({"ended_at": gettext("Must not be before `began_at`.")})
        return super().validate(values)


class EntryQuerySerializer(serializers.Serializer[Any]):
    current = serializers.ChoiceField(
        choices=["true", "false", "proposed", "all"],
        default="true",
        help_text="`true`: entries that are true now; `false`: history; `proposed`: what waits for you to confirm it; "
        "`all`: all of them.",
    )


# ── Search, forgetting ──────────────────────────────────────────────────────────────────────────────────


class SearchSerializer(serializers.Serializer[Any]):
    q = serializers.CharField(max_length=MAX_QUESTION_CHARS, help_text="What to look for, in your own words.")
    tier = serializers.ChoiceField(choices=Tier.choices, required=False, help_text="Search only this tier.")
    limit = serializers.IntegerField(min_value=1, max_value=MAX_SEARCH_RESULTS, default=20)


class SearchHitSerializer(EntrySerializer):
    score = serializers.FloatField(
        help_text="Orders the results of one search; not comparable between searches."
    )

    class Meta(EntrySerializer.Meta):
        fields = [*EntrySerializer.Meta.fields, "score"]
        read_only_fields = fields


class SourceRefSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=SourceKind.choices)
    id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Id of the conversation, request or run."
    )
    seq = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=2**31 - 1,
        help_text="Only this message of the conversation.",
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        by_hand = values["kind"] == SourceKind.USER
        if by_hand == (values.get("id") is not None):
            problem = (
                gettext("Must be omitted for kind `user`.") if by_hand else gettext("This field is required.")
            )
            raise serializers.ValidationError({"id": problem})
        return values


class ForgetSerializer(serializers.Serializer[Any]):
    source = SourceRefSerializer(  # type: ignore[assignment]  # the wire's word, and DRF's own
        required=False, help_text="Forget what is known only from this source."
    )
    everything = serializers.BooleanField(default=False)
    confirm = serializers.CharField(
        required=False,
        help_text=f'Required with `everything`: "{FORGET_EVERYTHING_PHRASE}".',
    )

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if values["everything"] == ("source" in values):
            raise serializers.ValidationError(gettext("Name either a source or everything."))
        if values["everything"] and values.get("confirm") != FORGET_EVERYTHING_PHRASE:
            raise serializers.ValidationError(
                {
                    "confirm": gettext('To forget everything, send "{phrase}".').format(
                        phrase=FORGET_EVERYTHING_PHRASE
                    )
                }
            )
        return values


class TakeBackSerializer(serializers.Serializer[Any]):
    source = SourceRefSerializer(  # type: ignore[assignment]  # the wire's word, and DRF's own
        help_text="The message, as in the sources of an entry. Without `seq`, all messages of the conversation."
    )


class TakenBackSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField(default=True)
    deleted = serializers.IntegerField(help_text="How many entries were deleted.")
    restored = serializers.IntegerField(help_text="How many entries are as they were before.")


class ForgottenSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField(default=True)
    forgotten = serializers.IntegerField(help_text="How many entries were deleted, including history.")


# ── Vectors ─────────────────────────────────────────────────────────────────────────────────────────────


class TextSerializer(serializers.Serializer[Any]):
    text = serializers.CharField(max_length=MAX_TEXT_CHARS, style={"base_template": "textarea.html"})


class VectorSerializer(serializers.Serializer[Any]):
    vector = serializers.ListField(child=serializers.FloatField())
    model = serializers.CharField(
        help_text="The model that computed the vector. Do not compare vectors of different models; `lexical` finds "
        "shared words, not shared meaning."
    )
    provider = serializers.CharField(
        allow_null=True, help_text="Who read the text; null: it did not leave the server."
    )
