"""Headless device: a server or NAS runs it to take part in Adiuva, and tests and the demo use it.

It imports nothing of Django. `manage.py device` runs it.
"""

from adiuva.devices.client.config import CAPABILITIES, IN_MEMORY, DeviceConfig
from adiuva.devices.client.console import Console
from adiuva.devices.client.device import Device, NotConnected
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
    "Console",
    "Device",
    "DeviceConfig",
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
