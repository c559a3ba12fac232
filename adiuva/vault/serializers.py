"""REST serializers of the vault: sealed records and their changes, backups, vectors and storage usage."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from django.utils.translation import gettext
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adiuva.vault import checksums, vectors
from adiuva.vault.models import Backup, Record, Vector

_SHA256 = "SHA-256 of the bytes, in 64 hexadecimal digits."


@extend_schema_field({"type": "string", "contentEncoding": "base64"})
class Base64Field(serializers.Field[bytes, str, str, Any]):
    def to_internal_value(self, data: Any) -> bytes:
        if not isinstance(data, str):
            raise serializers.ValidationError(gettext("Bytes in base64 are required."))
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise serializers.ValidationError(gettext("Bytes in base64 are required.")) from None

    def to_representation(self, value: bytes) -> str:
        return base64.b64encode(value).decode()


@extend_schema_field({"type": "string", "pattern": "^[0-9a-fA-F]{64}$"})
class ChecksumField(serializers.Field[bytes, str, str, Any]):
    def to_internal_value(self, data: Any) -> bytes:
        if not isinstance(data, str):
            raise serializers.ValidationError(gettext("A SHA-256 in 64 hexadecimal digits."))
        return checksums.parse(data)

    def to_representation(self, value: bytes) -> str:
        return bytes(value).hex()


class NewContentSerializer(serializers.Serializer[Any]):
    """The bytes themselves, or an upload that has brought them."""

    blob = Base64Field(required=False, help_text="At most 1 MiB before base64; more is uploaded first.")
    upload = serializers.UUIDField(
        required=False, help_text="The id of a complete upload, in place of `blob`."
    )
    checksum = ChecksumField(help_text=_SHA256)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("blob" in attrs) == ("upload" in attrs):
            raise serializers.ValidationError({"blob": gettext("Either blob or upload is required.")})
        return attrs


class NewRecordSerializer(NewContentSerializer):
    id = serializers.UUIDField(
        required=False, help_text="An id of the client's own, so that the request can be sent again."
    )
    table = serializers.RegexField(
        r"^[\w.-]+$",
        max_length=100,
        help_text="A name that the server can see: letters, digits, `_`, `.`, `-`.",
    )


class ChangedRecordSerializer(NewContentSerializer):
    table = serializers.RegexField(
        r"^[\w.-]+$",
        max_length=100,
        required=False,
        help_text="With `If-None-Match: *`, which makes the record: its table.",
    )


class CreatedSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    created_at = serializers.DateTimeField()


class RecordSerializer(serializers.ModelSerializer[Record]):
    checksum = ChecksumField(help_text=_SHA256)
    corrupt = serializers.BooleanField(
        help_text="The stored bytes are damaged: replace them from the device."
    )

    class Meta:
        model = Record
        fields = ["id", "table", "checksum", "size", "version", "corrupt", "created_at", "updated_at"]
        read_only_fields = fields


class StoredSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField(default=True)
    checksum = ChecksumField(help_text=_SHA256)
    version = serializers.IntegerField()


class ChangeSerializer(serializers.ModelSerializer[Record]):
    checksum = ChecksumField(help_text=_SHA256)
    deleted = serializers.SerializerMethodField()

    class Meta:
        model = Record
        fields = ["id", "table", "checksum", "version", "deleted"]
        read_only_fields = fields

    def get_deleted(self, record: Record) -> bool:
        return record.deleted_at is not None


class ChangesSerializer(serializers.Serializer[Any]):
    changes = ChangeSerializer(many=True)
    cursor = serializers.CharField(help_text="For `since` of the next request.")
    more = serializers.BooleanField(help_text="There are more by now: ask again at once.")
    complete = serializers.BooleanField(
        help_text="These were the last. Whatever a list names or not, only `deleted` says that a record is deleted."
    )


class ChangesQuerySerializer(serializers.Serializer[Any]):
    since = serializers.CharField(
        required=False, default="", allow_blank=True, max_length=60, help_text="A cursor; empty: all."
    )
    limit = serializers.IntegerField(required=False, default=500, min_value=1, max_value=1000)


class BackupSerializer(serializers.ModelSerializer[Backup]):
    timestamp = serializers.IntegerField(source="timestamp_ms", help_text="When the client made it, in ms.")
    base = serializers.IntegerField(
        source="base_ms",
        allow_null=True,
        help_text="The time of the backup that it builds on, without which it cannot be restored; none: it is whole.",
    )
    checksum = ChecksumField(help_text=_SHA256)
    size_bytes = serializers.IntegerField(source="size")
    state = serializers.SerializerMethodField(help_text="`corrupt`: the stored bytes are damaged.")

    class Meta:
        model = Backup
        fields = [
            "id",
            "version",
            "timestamp",
            "base",
            "checksum",
            "chunk_count",
            "size_bytes",
            "state",
            "created_at",
        ]
        read_only_fields = fields

    @extend_schema_field(serializers.ChoiceField(choices=["ok", "corrupt"]))
    def get_state(self, backup: Backup) -> str:
        return "corrupt" if backup.corrupt else "ok"


class AmountSerializer(serializers.Serializer[Any]):
    used = serializers.IntegerField(help_text="Bytes.")
    reserved = serializers.IntegerField(help_text="Bytes that are kept for uploads under way.")
    limit = serializers.IntegerField(allow_null=True, help_text="The plan's limit; null: none.")


class CountSerializer(serializers.Serializer[Any]):
    used = serializers.IntegerField()
    reserved = serializers.IntegerField()
    limit = serializers.IntegerField(allow_null=True, help_text="The plan's limit; null: none.")


class StorageUsageSerializer(serializers.Serializer[Any]):
    storage = AmountSerializer()
    backup = AmountSerializer()
    vectors = CountSerializer()
    records = serializers.IntegerField()
    backups = serializers.IntegerField()
    corrupt = serializers.IntegerField(help_text="Records, backups and vectors that are damaged.")


@extend_schema_field(
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": vectors.MOST_DIMENSIONS}
)
class NumbersField(serializers.Field[Any, Any, Any, Any]):
    """Numbers as they came. `vectors.parse` looks at them in one pass, because a field for each would take a second for
    all."""

    def to_internal_value(self, data: Any) -> Any:
        return data


def _tags(about: str) -> Any:
    return serializers.ListField(
        child=serializers.CharField(max_length=64),
        required=False,
        default=list,
        max_length=16,
        help_text=about,
    )


class SpaceSerializer(serializers.Serializer[Any]):
    space = serializers.IntegerField(
        required=False,
        default=0,
        min_value=0,
        max_value=32_767,
        help_text="One for each model and rotation: only vectors of one space are compared.",
    )


class NewVectorSerializer(serializers.Serializer[Any]):
    id = serializers.CharField(max_length=200)
    vector = NumbersField()
    blob = Base64Field(
        required=False, default=b"", help_text="Sealed by the client, at most 64 KiB before base64."
    )
    checksum = ChecksumField(help_text="SHA-256 of the blob, in 64 hexadecimal digits.")
    tags = _tags("Words that the server can see, and a search can ask for: hash what it should not know.")

    def validate_blob(self, blob: bytes) -> bytes:
        if len(blob) > vectors.MOST_BLOB_BYTES:
            raise serializers.ValidationError(gettext("At most 64 KiB before base64."))
        return blob


class UpsertSerializer(SpaceSerializer):
    vectors = serializers.ListField(
        child=NewVectorSerializer(), min_length=1, max_length=vectors.MOST_AT_ONCE
    )


class UpsertedSerializer(serializers.Serializer[Any]):
    upserted = serializers.IntegerField()


class VectorSearchSerializer(SpaceSerializer):
    vector = NumbersField()
    top_k = serializers.IntegerField(required=False, default=10, min_value=1, max_value=vectors.MOST_FOUND)
    tags = _tags("Only vectors with all of these.")
    min_score = serializers.FloatField(
        required=False, min_value=-1, max_value=1, help_text="Only vectors as near as this."
    )


class FoundVectorSerializer(serializers.Serializer[Any]):
    id = serializers.CharField()
    score = serializers.FloatField(help_text="Cosine similarity, from -1 to 1.")
    blob = Base64Field()
    checksum = ChecksumField(help_text="SHA-256 of the blob, in 64 hexadecimal digits.")
    tags = serializers.ListField(child=serializers.CharField())
    corrupt = serializers.BooleanField(help_text="The stored blob is damaged, and not shown: store it again.")


class FoundVectorsSerializer(serializers.Serializer[Any]):
    results = FoundVectorSerializer(many=True)


class StoredVectorSerializer(serializers.ModelSerializer[Vector]):
    checksum = ChecksumField(help_text="SHA-256 of the blob, in 64 hexadecimal digits.")

    corrupt = serializers.BooleanField(help_text="The stored blob is damaged: store it again.")

    class Meta:
        model = Vector
        fields = ["id", "checksum", "size", "tags", "corrupt", "updated_at"]
        read_only_fields = fields


class VectorsToDeleteSerializer(SpaceSerializer):
    ids = serializers.ListField(child=serializers.CharField(max_length=200), required=False, max_length=1_000)
    all = serializers.BooleanField(required=False, default=False, help_text="In place of `ids`: the space.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("ids" in attrs) == attrs["all"]:
            raise serializers.ValidationError({"ids": gettext("Either ids or all is required.")})
        return attrs


class DeletedVectorsSerializer(serializers.Serializer[Any]):
    ok = serializers.BooleanField(default=True)
    deleted = serializers.IntegerField(help_text="How many of them there were.")
