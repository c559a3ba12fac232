"""REST serializer of a data export's state."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from adiuva.export import services
from adiuva.export.models import Export


class ExportSerializer(serializers.ModelSerializer[Export]):
    state = serializers.SerializerMethodField()
    code = serializers.CharField(help_text="Why it failed.")
    size = serializers.IntegerField(help_text="Bytes of the archive; 0 until it is ready.")
    expires_at = serializers.DateTimeField(allow_null=True, help_text="When the archive is deleted.")

    class Meta:
        model = Export
        fields = ["id", "state", "code", "size", "created_at", "ended_at", "expires_at"]
        read_only_fields = fields

    @extend_schema_field(serializers.ChoiceField(choices=Export.State.choices))
    def get_state(self, export: Export) -> str:
        return Export.State.EXPIRED if services.is_expired(export) else export.state
