"""What can go wrong with a connection, each with its code. None of them holds a token, a code or an address."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from adiuva.core.errors import AdiuvaError, Conflict, Invalid, Unavailable


class NeedsReauth(Conflict):
    """The user has to connect again: the provider no longer takes what we hold."""

    code = "needs_reauth"

    def __init__(self, message: str, *, connection_id: UUID) -> None:
        super().__init__(message, connection=str(connection_id))


class ProviderUnavailable(Unavailable):
    """The provider did not answer, or not in a way that can be used. `retry_after_s` where it named a time."""

    code = "provider_away"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.extra["retry_after_s"] = retry_after_s
        self.retry_after_s = retry_after_s


class ProviderNotConfigured(Unavailable):
    """This server has no registration at the provider, or one that the provider refuses."""

    code = "provider_not_configured"


class ForbiddenHost(AdiuvaError):
    """Something pointed us to a host that is not one of the provider's configured ones. Nothing was sent."""

    code, status = "forbidden_host", 502

    def __init__(self) -> None:
        super().__init__("the provider pointed to another host, which is not asked")


class GrantRefused(AdiuvaError):
    """The provider does not take a code or a refresh token (any more). `reason`: the provider's word for it."""

    code = "grant_refused"

    def __init__(self, reason: str) -> None:
        super().__init__("the provider does not accept the permission")
        self.reason = reason


class ConsentFailed(AdiuvaError):
    """Connecting did not work. The message is for the page that the user sees."""

    code = "consent_failed"


# What clients of the first backend post with a cloud agent. Tokens no longer come from clients.
OLD_TOKEN_FIELD: Final = "oauth_token_encrypted"  # noqa: S105


def old_token_error() -> Invalid:
    """What such a client is told: where tokens are now, and what to send instead."""
    message = (
        "Tokens are no longer sent by clients: connect the account with GET /api/v1/oauth/{provider}/authorize, then "
        "send its id (from GET /api/v1/connections) as `connection`."
    )
    return Invalid(
        f"{OLD_TOKEN_FIELD} is no longer taken: send `connection`",
        fields={OLD_TOKEN_FIELD: [message], "connection": ["The id of a connection is needed here."]},
    )
