from __future__ import annotations

from rest_framework import serializers

from adiuva.devices.models import Device


class DeviceSerializer(serializers.ModelSerializer[Device]):
    name = serializers.CharField(read_only=True)
    online = serializers.BooleanField(source="is_online", help_text="Whether it is connected now.")

    class Meta:
        model = Device
        fields = [
            "id",
            "device_id",
            "name",
            "platform",
            "app_version",
            "protocol",
            "capabilities",
            "online",
            "last_seen",
            "created_at",
        ]
        read_only_fields = fields
