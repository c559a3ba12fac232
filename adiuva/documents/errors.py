"""Reasons for which a document cannot be read."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError


class Unreadable(AdiuvaError):
    """A file or message cannot be read. The error's message is the reason, in a few words, for the run's journal."""

    code = "unreadable"
