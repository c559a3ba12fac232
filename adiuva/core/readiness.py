"""Readiness checks of apps: each app registers its own in `AppConfig.ready`, and `/health/ready` runs them all.

So the health check knows no app. A check returns facts for operators, and raises the errors that it meets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Facts = Mapping[str, float]

_checks: dict[str, Callable[[], Facts]] = {}


def register(name: str, check: Callable[[], Facts]) -> None:
    """Register `check` as `name`. Its facts stand beside `ok`; an error means that it is not ok."""
    _checks[name] = check


def registered() -> dict[str, Callable[[], Facts]]:
    return dict(_checks)
