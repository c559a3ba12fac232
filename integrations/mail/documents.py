"""What a mailbox yields, and what it is asked for."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adiuva.documents.mail import Attachment
from integrations.mail.filters import Filters

TokenSource = Callable[[str | None], Awaitable[str]]
"""Gives an access token. Called with the one that was rejected, a new one."""

DueFilter = Callable[[Sequence[tuple[str, bytes]]], Awaitable[Sequence[bool]]]
"""Of (source id, content hash), which are new or changed. The others are not even fetched."""


@dataclass(frozen=True, slots=True)
class MailDocument:
    """A message. `text` is what is read by the model: headers, what its author wrote, then what is quoted in it.

    `source_id` is the provider's, and stays the same for ever. `content_hash` changes when the message is edited,
    and is known before the message is fetched.
    """

    source_id: str
    content_hash: bytes
    title: str
    text: str
    sent_at: dt.datetime | None
    sender: str
    recipients: str
    attachments: tuple[Attachment, ...] = ()
    defects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SkippedMessage:
    """A message, or a whole folder, that could not be read. The reason is for the user."""

    source_id: str
    code: str
    reason: str


MailItem = MailDocument | SkippedMessage


class Mailbox(Protocol):
    """All that a run knows of a provider."""

    @property
    def checkpoint(self) -> str | None:
        """The cursor that may be stored once all that was yielded so far is settled; None if there is none yet."""

    def messages(
        self, *, cursor: str | None, filters: Filters, due: DueFilter | None = None
    ) -> AsyncIterator[MailItem]:
        """Yield what arrived since the cursor, or within a bounded time if there is none; each message once.

        What arrives during this sync is found by the next one, from the checkpoint. Raises NeedsReauth,
        ProviderThrottled, ProviderUnavailable or another AdiuvaError; the checkpoint stays at the last safe position.
        """


def fingerprint(*parts: str) -> bytes:
    """The content hash of what never changes under its id."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
