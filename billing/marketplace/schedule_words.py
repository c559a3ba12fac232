"""A template's schedule in words. The app that knows schedules says how; this one stands below it."""

from __future__ import annotations

from collections.abc import Callable

_describers: list[Callable[[str], str]] = []


def describe_with(describe: Callable[[str], str]) -> None:
    """Say how a cron expression reads, in the language that is spoken. The app that owns schedules calls this when it
    is ready."""
    _describers[:] = [describe]


def describe(cron: str) -> str:
    return _describers[0](cron) if _describers else cron
