"""Checks of an agent's configuration, for forms and chats. Each returns the value to store, or raises BadPart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from adiuva.accounts.validators import timezones
from adiuva.core.errors import Text
from agents.agent_types import DATA_TYPES
from agents.cron import BadCron, Cron

_ABSOLUTE: Final = re.compile(r"^(/|[A-Za-z]:[\\/]|\\\\[^\\/]+[\\/][^\\/]+)")
_EXTENSION: Final = re.compile(r"^\.?[A-Za-z0-9]{1,15}$")


class BadPart(ValueError):
    """A part of a configuration cannot be used. `problem` says why."""

    def __init__(self, problem: Text) -> None:
        super().__init__(problem)
        self.problem = problem


def folders(paths: Sequence[str]) -> list[str]:
    for path in paths:
        if not _ABSOLUTE.match(path):
            raise BadPart(Text("{path} is not an absolute path.", path=repr(path[:100])))
        if ".." in re.split(r"[\\/]", path):
            raise BadPart(Text('{path} has a ".." in it.', path=repr(path[:100])))
    return list(dict.fromkeys(paths))


def tables(names: Sequence[str]) -> list[str]:
    if unknown := [name for name in names if name not in DATA_TYPES]:
        raise BadPart(
            Text("{given} is not one of {names}.", given=repr(unknown[0][:50]), names=", ".join(DATA_TYPES))
        )
    return list(dict.fromkeys(names))


def extensions(given: Sequence[str]) -> list[str]:
    for extension in given:
        if not _EXTENSION.match(extension):
            raise BadPart(Text("{given} is not a file extension such as .md.", given=repr(extension)))
    return list(dict.fromkeys("." + extension.lstrip(".").lower() for extension in given))


def schedule(cron: str | None) -> str:
    """Return a checked schedule; "" for none."""
    if not cron:
        return ""
    try:
        Cron.parse(cron)
    except BadCron as error:
        raise BadPart(Text("Not a schedule: {problem}.", problem=error.problem)) from None
    return cron


def zone(name: str) -> str:
    """Return a checked time zone; "" for the user's own."""
    if name and name not in timezones():
        raise BadPart(Text("{given} is not an IANA time zone.", given=repr(name)))
    return name
