"""Types of the mailbox interface: documents, skipped messages, and the Mailbox protocol."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adiuva.documents import Document
from integrations.mail.filters import Filters

TokenSource = Callable[[str | None], Awaitable[str]]
"""Returns an access token. The argument is a token that the provider has rejected: then a new one is returned."""

DueFilter = Callable[[Sequence[tuple[str, bytes]]], Awaitable[Sequence[bool]]]
"""Returns, for each (source id, content hash), whether the message is new or changed. The others are not fetched."""


@dataclass(frozen=True, slots=True)
class MailDocument:
    """A message. The text of its `document` begins with headers and the author's own words; quotations come last.

    `source_id` is the provider's id, which never changes. `content_hash` changes when the message is edited, and is
    known before the message is fetched. `sent_at`: when the provider received it.
    """

    source_id: str
    content_hash: bytes
    document: Document
    sent_at: dt.datetime | None

    @property
    def text(self) -> str:
        return self.document.text

    @property
    def title(self) -> str:
        return self.document.head.title

    @property
    def sender(self) -> str:
        return self.document.head.sender


@dataclass(frozen=True, slots=True)
class SkippedMessage:
    """A message, or a whole folder, that could not be read. The reason is shown to the user."""

    source_id: str
    code: str
    reason: str


MailItem = MailDocument | SkippedMessage


class Mailbox(Protocol):
    """A provider's mailbox, as an agent's run sees it."""

    @property
    def checkpoint(self) -> str | None:
        """The cursor to store once everything that was yielded so far is processed; None if there is none yet."""

    def messages(
        self, *, cursor: str | None, filters: Filters, due: DueFilter | None = None, most: int | None = None
    ) -> AsyncIterator[MailItem]:
        """Yield messages since the cursor, or within a bounded time if there is none; each once.

        `most`: fetch no further ones once so many were yielded. They are still listed, and the checkpoint stays.

        The next sync, from the checkpoint, finds messages that arrive during this one. Raises NeedsReauth,
        ProviderThrottled, ProviderUnavailable or another AdiuvaError; the checkpoint stays at the last safe position.
        """


def fingerprint(*parts: str) -> bytes:
    """Return the content hash of a message, from the parts that identify its version."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
