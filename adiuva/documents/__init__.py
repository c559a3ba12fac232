"""What strangers wrote, as text: for a device's folders and for mailboxes alike. It needs nothing of Django."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError


class Unreadable(AdiuvaError):
    """A file or message that cannot be read. The message is the reason, in a few words, for the run's journal."""

    code = "unreadable"
