"""The device that a request names, in place of the one that sends it or that was seen last."""

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
    """The row of a user's device. Raises UnknownDevice; a device that is offline is found."""
    found = Device.objects.of(user_id).filter(device_id=device_id).values_list("pk", flat=True).first()
    if found is None:
        raise UnknownDevice
    return found
