"""Errors of the headless device."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError


class DeviceError(AdiuvaError):
    """An error that ends the device. Its message is a sentence for the owner."""

    code = "device_error"


class BadAddress(DeviceError):
    """The server's address is not one to send credentials to."""

    code = "bad_address"


class BadWorkspace(DeviceError):
    """The workspace folder, or a file given to fill it, cannot be used."""

    code = "bad_workspace"


class BadUse(DeviceError):
    """The command was called with what it cannot do, or lacks what it needs."""

    code = "bad_use"


class SignInRefused(DeviceError):
    """The server refused the e-mail and password, or the session ended and there is no password."""

    code, status = "sign_in_refused", 401


class Superseded(DeviceError):
    """The same device connected elsewhere; the newer connection wins."""

    code, status = "superseded", 409


class ServerRefused(DeviceError):
    """The server does not accept this client, now or later."""

    code, status = "server_refused", 403


class CallRefused(AdiuvaError):
    """A tool call that cannot be applied. Its message is the `error` of the result."""

    code = "call_refused"
