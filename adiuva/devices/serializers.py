"""REST serializer of a user's devices."""

from __future__ import annotations

from rest_framework import serializers

from adiuva.devices.models import Device


class DeviceSerializer(serializers.ModelSerializer[Device]):
    name = serializers.CharField(read_only=True)
    grants = serializers.ListField(
        child=serializers.CharField(),
        allow_null=True,
        read_only=True,
        help_text="The folders that agents may read on it, as it said when it connected; null if it did not say.",
    )
    online = serializers.BooleanField(source="is_online", help_text="Whether it is connected now.")
    last_seen = serializers.DateTimeField(source="seen_at", read_only=True)

    class Meta:
        model = Device
        fields = [
            "id",
            "device_id",
            "name",
            "platform",
            "app_version",
            "timezone",
            "protocol",
            "capabilities",
            "grants",
            "online",
            "last_seen",
            "created_at",
        ]
        read_only_fields = fields
