"""Errors of connections, each with its code. None of them holds a token, an OAuth code or an address."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from adiuva.core.errors import AdiuvaError, Conflict, Invalid, Text, Unavailable


class NeedsReauth(Conflict):
    """The user has to connect the account again: the provider no longer accepts our tokens."""

    code = "needs_reauth"

    def __init__(self, message: str, *, connection_id: UUID) -> None:
        super().__init__(message, connection=str(connection_id))


class ProviderUnavailable(Unavailable):
    """The provider did not answer, or not usably. `retry_after_s`: the wait that the provider named, if any."""

    code = "provider_away"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.extra["retry_after_s"] = retry_after_s
        self.retry_after_s = retry_after_s


class ProviderNotConfigured(Unavailable):
    """This server is not registered at the provider, or the provider refuses its registration."""

    code = "provider_not_configured"


class ForbiddenHost(AdiuvaError):
    """A URL leads to a host that is not configured for the provider. Nothing was sent to it."""

    code, status = "forbidden_host", 502

    def __init__(self) -> None:
        super().__init__("the provider pointed to another host; no request was sent to it")


class GrantRefused(AdiuvaError):
    """The provider does not accept a code or a refresh token. `reason`: a models.Reason."""

    code = "grant_refused"

    def __init__(self, reason: str) -> None:
        super().__init__("the provider does not accept the permission")
        self.reason = reason


class ConsentFailed(AdiuvaError):
    """Connecting an account failed. The message is shown on the page that the user sees."""

    code = "consent_failed"


# Clients of the first backend sent a token with a cloud agent. Tokens no longer come from clients.
OLD_TOKEN_FIELD: Final = "oauth_token_encrypted"  # noqa: S105


def old_token_error() -> Invalid:
    """Return the error for a client that sends a token: says how to connect an account instead."""
    message = (
        "Tokens are no longer sent by clients: connect the account with GET /api/v1/oauth/{provider}/authorize, then "
        "send its id (from GET /api/v1/connections) as `connection`."
    )
    return Invalid(
        Text("{field} is no longer taken: send `connection`", field=OLD_TOKEN_FIELD),
        fields={OLD_TOKEN_FIELD: [message], "connection": ["The id of a connection is needed here."]},
    )
