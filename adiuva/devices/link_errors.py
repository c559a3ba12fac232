"""Outcomes of calls to a device that are no result."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError, Unavailable


class DeviceOffline(Unavailable):
    """The device is not connected: nothing was sent, so nothing happened."""

    code = "device_offline"

    def __init__(self) -> None:
        super().__init__("the device is not connected")


class OutcomeUnknown(AdiuvaError):
    """A write was sent and no answer came: it may have happened."""

    code, status = "outcome_unknown", 504

    def __init__(self) -> None:
        super().__init__("the device did not answer in time; it may have happened all the same")


class AnswerUnreadable(OutcomeUnknown):
    """A write was answered, but the answer is malformed or too large for a frame: it may have happened."""

    def __init__(self) -> None:
        AdiuvaError.__init__(self, "the device's answer cannot be read; it may have happened all the same")


class DeviceUnreachable(DeviceOffline):
    """The channel layer or the database is unavailable. Nothing was sent."""

    code = "device_unreachable"

    def __init__(self) -> None:
        Unavailable.__init__(self, "the server cannot reach the device for now")


class DeviceRefused(AdiuvaError):
    """The device answered a call with an error of its own."""

    code, status = "device_refused", 422
