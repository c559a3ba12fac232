"""Errors of the headless device."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError


class DeviceError(AdiuvaError):
    """An error that ends the device. Its message is a sentence for the owner."""

    code = "device_error"


class BadAddress(DeviceError):
    """Error for a server's address that must not get credentials."""

    code = "bad_address"


class BadWorkspace(DeviceError):
    """Error for a workspace folder, or a file given to fill it, that cannot be used."""

    code = "bad_workspace"


class BadUse(DeviceError):
    """Error for a command that was called with impossible options, or without those that it needs."""

    code = "bad_use"


class SignInRefused(DeviceError):
    """Error for a refused e-mail and password, or for a session that ended without a password to renew it."""

    code, status = "sign_in_refused", 401


class Superseded(DeviceError):
    """Error for a device that connected elsewhere; the newer connection wins."""

    code, status = "superseded", 409


class ServerRefused(DeviceError):
    """Error for a client that the server does not accept, now or later."""

    code, status = "server_refused", 403


class CallRefused(AdiuvaError):
    """Error for a tool call that cannot be applied. Its message is the `error` of the result."""

    code = "call_refused"
