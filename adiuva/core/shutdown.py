"""Shutdown hooks, which a web process runs before it exits.

An app registers its hooks in `AppConfig.ready`; the server process runs them once when it is told to stop, while its
sockets are still open. So the server knows no app, and an app knows no server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum

from adiuva.core.logging import log_failure


class Phase(IntEnum):
    """Phase of a hook. Work ends first, while clients can still be reached; then connections close."""

    FINISH_WORK = 1
    CLOSE_CONNECTIONS = 2


_hooks: list[tuple[Phase, Callable[[], Awaitable[None]]]] = []


def on_shutdown(phase: Phase, hook: Callable[[], Awaitable[None]]) -> None:
    """Register `hook` for its phase. Hooks of one phase run in the order of their registration."""
    _hooks.append((phase, hook))


async def run_hooks() -> None:
    """Run all hooks on the running event loop. A hook that fails is logged; the others still run."""
    for _, hook in sorted(_hooks, key=lambda entry: entry[0]):
        try:
            await hook()
        except Exception as error:
            log_failure("shutdown.hook_failed", error)
