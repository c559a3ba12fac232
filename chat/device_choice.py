"""The device that a request names, instead of the sending device or the one that was seen last."""

from __future__ import annotations

import uuid

from adiuva.core.errors import Invalid
from adiuva.devices.models import Device


class UnknownDevice(Invalid):
    code = "unknown_device"

    def __init__(self) -> None:
        super().__init__(
            "none of your devices has this device_id: GET /api/v1/devices lists them",
            fields={"device_id": ["None of your devices has it."]},
        )


def find_device(user_id: uuid.UUID, device_id: str) -> uuid.UUID:
    """Return the row id of a user's device, even if it is offline. Raises UnknownDevice."""
    found = Device.objects.of(user_id).filter(device_id=device_id).values_list("pk", flat=True).first()
    if found is None:
        raise UnknownDevice
    return found
