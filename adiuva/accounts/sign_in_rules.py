"""Rules that apps above accounts register: who may sign in how, and whose sessions may be refreshed.

An app registers its rules when it is ready. A rule refuses by raising an AdiuvaError, which is shown to the user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal
from uuid import UUID

Way = Literal["password", "passkey", "sso"]

_sign_ins: Final[list[Callable[[UUID, Way], None]]] = []
_renewals: Final[list[Callable[[UUID, UUID], None]]] = []


def check_sign_ins_with(rule: Callable[[UUID, Way], None]) -> None:
    """Register `rule(user_id, way)`, which is called before a session is opened for a recognised user."""
    _sign_ins.append(rule)


def check_renewals_with(rule: Callable[[UUID, UUID], None]) -> None:
    """Register `rule(user_id, session_id)`, called before a session is refreshed, outside any transaction: it may
    block."""
    _renewals.append(rule)


def require_allowed(user_id: UUID, way: Way) -> None:
    """Raise the error of a rule that refuses this sign-in."""
    for rule in _sign_ins:
        rule(user_id, way)


def require_going_on(user_id: UUID, session_id: UUID) -> None:
    """Raise the error of a rule that refuses to refresh this session."""
    for rule in _renewals:
        rule(user_id, session_id)
