"""A template's schedule in words. The app that owns schedules provides them; it stands above this one."""

from __future__ import annotations

from collections.abc import Callable

_describers: list[Callable[[str], str]] = []


def describe_with(describe: Callable[[str], str]) -> None:
    """Register the function that describes a cron expression in the active language. The app that owns schedules calls
    this when it is ready.
    """
    _describers[:] = [describe]


def describe(cron: str) -> str:
    return _describers[0](cron) if _describers else cron
