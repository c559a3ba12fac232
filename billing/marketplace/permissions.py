"""Permissions of plugins. The client shows them before an installation and enforces them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from adiuva.core.errors import Text

PERMISSIONS: Final[Mapping[str, Text]] = MappingProxyType(
    {
        "tasks.read": Text("Read your tasks"),
        "tasks.write": Text("Change your tasks"),
        "projects.read": Text("Read your projects"),
        "projects.write": Text("Change your projects"),
        "timelines.read": Text("Read your timelines"),
        "timelines.write": Text("Change your timelines"),
        "notes.read": Text("Read your notes"),
        "notes.write": Text("Change your notes"),
        "clients.read": Text("Read your clients"),
        "clients.write": Text("Change your clients"),
        "files.read": Text("Read files that you choose"),
        "network": Text("Reach the addresses on the internet that it names"),
        "notifications": Text("Show notifications"),
        "clipboard.write": Text("Put text on the clipboard"),
        "agents.create": Text("Set up agents with you"),
    }
)


def grown(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """Return the permissions of a new version that its user has not granted yet. Writing does not include reading."""
    return sorted(set(now) - set(before))
