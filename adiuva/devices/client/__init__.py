"""A headless device: the way a server or NAS takes part in Adiuva, and what tests and the demo use.

It needs nothing of Django. `manage.py device` is its command.
"""

from adiuva.devices.client.device import CAPABILITIES, IN_MEMORY, Device, NotConnected
from adiuva.devices.client.errors import (
    BadAddress,
    BadWorkspace,
    DeviceError,
    ServerRefused,
    SignInRefused,
    Superseded,
)
from adiuva.devices.client.events import (
    Applied,
    Connected,
    Disconnected,
    Event,
    FrameReceived,
    RunEnded,
    RunStarted,
)
from adiuva.devices.client.store import Store

__all__ = [
    "CAPABILITIES",
    "IN_MEMORY",
    "Applied",
    "BadAddress",
    "BadWorkspace",
    "Connected",
    "Device",
    "DeviceError",
    "Disconnected",
    "Event",
    "FrameReceived",
    "NotConnected",
    "RunEnded",
    "RunStarted",
    "ServerRefused",
    "SignInRefused",
    "Store",
    "Superseded",
]
