"""Why a mailbox could not be read. What signing in can meet is in integrations.errors."""

from __future__ import annotations

import math

from adiuva.core.errors import AdiuvaError
from integrations.errors import ProviderUnavailable


class ProviderThrottled(ProviderUnavailable):
    """The provider wants to be left alone for longer than a reading should wait (`retry_after_s`)."""

    code = "provider_throttled"

    def __init__(self, provider: str, seconds: float | None) -> None:
        super().__init__(
            f"{provider} asks us to come back later",
            retry_after_s=None if seconds is None else math.ceil(seconds),
        )


class ProviderUnstable(ProviderUnavailable):
    """The provider answers now and then: with too many failures between, in one reading, to go on."""


class ProviderRefused(AdiuvaError):
    """The provider will not answer this request, now or later. `http_status` and `reason` are the provider's."""

    code, status = "provider_refused", 502

    def __init__(self, provider: str, http_status: int, reason: str = "") -> None:
        said = f" ({reason})" if reason else ""
        super().__init__(f"{provider} refused a request: status {http_status}{said}")
        self.http_status, self.reason = http_status, reason


class ResourceGone(ProviderRefused):
    """What was asked for is gone: a message that was deleted, a position that has expired."""

    code, status = "not_there", 404


class InvalidResponse(AdiuvaError):
    """The provider's answer is not what its documentation says."""

    code, status = "provider_garbled", 502


class ResponseTooLarge(AdiuvaError):
    """An answer is beyond what is read into memory."""

    code, status = "too_large", 502


class PageLoop(AdiuvaError):
    """The provider's pages lead back to one that was read."""

    code, status = "page_loop", 502


class NoSuchFolder(AdiuvaError):
    """None of the labels, folders or channels that the filters name is there."""

    code, status = "no_such_folder", 404
