"""Backoff before a device reconnects."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from adiuva.devices.protocol import Close

STABLE_AFTER_S: Final = 60.0
_FIRST_DELAY_S: Final = 1.0
_MAX_DELAY_S: Final = 30.0
_RESTART_WITHIN_S: Final = 2.0
_TOO_MANY_S: Final = 60.0


@dataclass(frozen=True)
class ConnectionEnd:
    """End of a connection: in words, with the close code if any, and after how long."""

    reason: str
    code: int | None = None
    lasted_s: float = 0.0
    retry_after_s: float | None = None


class Backoff:
    """Exponential backoff with full jitter: delays are random up to a bound, so devices do not reconnect in step."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._failures = 0

    def after(self, ended: ConnectionEnd) -> float:
        """Return the delay before the next connection, in seconds."""
        if ended.lasted_s >= STABLE_AFTER_S:
            self._failures = 0
        if ended.code == Close.RESTARTING:
            return self._chance() * _RESTART_WITHIN_S
        if ended.code == Close.TOO_MANY:
            return _TOO_MANY_S * (1 + self._chance())
        bound = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return (ended.retry_after_s or 0.0) + self._chance() * bound
