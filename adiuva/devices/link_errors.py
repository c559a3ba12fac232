"""Outcomes of calls to a device that are not results."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError, Unavailable


class DeviceOffline(Unavailable):
    """Error for a device that is not connected: nothing was sent, so nothing happened."""

    code = "device_offline"

    def __init__(self) -> None:
        super().__init__("the device is not connected")


class OutcomeUnknown(AdiuvaError):
    """Error for a write that was sent and got no answer: it may have happened."""

    code, status = "outcome_unknown", 504

    def __init__(self) -> None:
        super().__init__("the device did not answer in time; it may have happened all the same")


class AnswerUnreadable(OutcomeUnknown):
    """Error for a write with an answer that is malformed or too large for a frame: it may have happened."""

    def __init__(self) -> None:
        AdiuvaError.__init__(self, "the device's answer cannot be read; it may have happened all the same")


class DeviceUnreachable(DeviceOffline):
    """Error for an unavailable channel layer or database. Nothing was sent."""

    code = "device_unreachable"

    def __init__(self) -> None:
        Unavailable.__init__(self, "the server cannot reach the device for now")


class DeviceCannotSave(Unavailable):
    """Error of a device that could store nothing, such as on a full disk: nothing happened."""

    code = "device_cannot_save"

    def __init__(self) -> None:
        super().__init__("the device could not save it; its disk may be full")


class DeviceRefused(AdiuvaError):
    """Error of the device's own, in answer to a call."""

    code, status = "device_refused", 422
