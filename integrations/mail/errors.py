"""Errors of reading a mailbox. Errors of connecting and signing in are in integrations.errors."""

from __future__ import annotations

import math

from adiuva.core.errors import AdiuvaError, Text
from integrations.errors import ProviderUnavailable


class ProviderThrottled(ProviderUnavailable):
    """The provider asks for a longer pause (`retry_after_s`) than a sync should wait."""

    code = "provider_throttled"

    def __init__(self, provider: str, seconds: float | None) -> None:
        super().__init__(
            Text("{provider} asks us to come back later", provider=provider),
            retry_after_s=None if seconds is None else math.ceil(seconds),
        )


class ProviderUnstable(ProviderUnavailable):
    """The provider answers some requests, but too many have failed in this sync to continue."""


class ProviderRefused(AdiuvaError):
    """The provider refuses this request for good. `http_status` and `reason` are the provider's."""

    code, status = "provider_refused", 502

    def __init__(self, provider: str, http_status: int, reason: str = "") -> None:
        why = f"{http_status}, {reason}" if reason else http_status
        super().__init__(Text("{provider} refused a request: status {status}", provider=provider, status=why))
        self.http_status, self.reason = http_status, reason


class ResourceGone(ProviderRefused):
    """The requested thing no longer exists: a message was deleted, or a history position has expired."""

    code, status = "not_there", 404


class InvalidResponse(AdiuvaError):
    """The provider's answer does not have the documented form."""

    code, status = "provider_garbled", 502


class ResponseTooLarge(AdiuvaError):
    """An answer is larger than the most that is read into memory."""

    code, status = "too_large", 502


class PageLoop(AdiuvaError):
    """The provider's pages lead back to one that was already read."""

    code, status = "page_loop", 502


class NoSuchFolder(AdiuvaError):
    """None of the labels, folders or channels that the filters name exists."""

    code, status = "no_such_folder", 404
