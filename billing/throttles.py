"""The throttle of every REST endpoint that has none of its own: as many requests as the user's plan allows."""

from __future__ import annotations

import math
from typing import Any

from django.conf import settings
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from adiuva.accounts.models import User
from billing import request_limits


class PerTier(BaseThrottle):
    """Counts requests of users by their plan, and reports the rest in headers (the IETF's RateLimit headers).

    The tier is on the user that authentication has read, so it costs no query.
    """

    _wait: float | None = None

    def allow_request(self, request: Request, view: Any) -> bool:
        user = request.user
        if not settings.PLANS or not isinstance(user, User):
            return True
        limit, verdict = request_limits.take(user.pk, user.tier)
        view.headers |= {
            "RateLimit-Limit": str(limit.burst or limit.allowed),
            "RateLimit-Remaining": str(verdict.remaining),
            "RateLimit-Reset": str(math.ceil(verdict.whole_in_s)),
        }
        self._wait = verdict.wait_s or None
        return self._wait is None

    def wait(self) -> float | None:
        return self._wait
