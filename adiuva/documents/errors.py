"""Reasons why a document cannot be read."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError


class Unreadable(AdiuvaError):
    """Error for a file or message that cannot be read. Its message is a short reason, for the run's journal."""

    code = "unreadable"
