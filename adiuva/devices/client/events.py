"""Events that a device reports to its `on_event`. Only FrameReceived holds content."""

from __future__ import annotations

from dataclasses import dataclass

from adiuva.devices.client.file_access import Problem
from adiuva.devices.protocol import Sent


@dataclass(frozen=True, slots=True)
class Connected:
    protocol: int
    session_id: str | None


@dataclass(frozen=True, slots=True)
class Disconnected:
    """End of a connection. `retry_in` is None when the device was told to stop."""

    reason: str
    code: int | None
    retry_in: float | None


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """Frame that is not a tool call: progress, chat, errors."""

    frame: Sent


@dataclass(frozen=True, slots=True)
class Applied:
    """Tool calls that were applied together: how many were writes, and how many writes were refused."""

    ids: tuple[str, ...]
    writes: int
    refused: int


@dataclass(frozen=True, slots=True)
class RunStarted:
    run_id: str
    agent_id: str
    folders: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """End of a run. `completed` is False for a run that was cancelled or lost its connection."""

    run_id: str
    completed: bool
    found: int
    sent: int
    problems: tuple[Problem, ...]


Event = Connected | Disconnected | FrameReceived | Applied | RunStarted | RunEnded
