"""Reading a mailbox as a run does: with a ledger of what is settled, and a cursor that is stored behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from integrations.gmail import GmailSync
from integrations.mail.filters import Filters
from integrations.mail.mailbox_types import MailDocument, MailItem, SkippedMessage
from integrations.mail.provider_http import MailboxAccount, Timeouts
from integrations.mail.sync import MailboxSync
from integrations.outlook import OutlookSync
from integrations.teams import TeamsSync
from tests.fakes.google import Google
from tests.fakes.graph import Graph
from tests.fakes.mailboxes import Box

SWIFT = Timeouts(response_s=5.0, first_backoff_s=0.01)


def use(settings: Any, *, google: Google | None = None, graph: Graph | None = None) -> None:
    """Have the product take these for the providers."""
    if google is not None:
        settings.GOOGLE = {**settings.GOOGLE, "api": google.url}
    if graph is not None:
        settings.MICROSOFT = {**settings.MICROSOFT, "api": graph.api}


def account(box: Box) -> MailboxAccount:
    return MailboxAccount(uuid4(), box.name, box.token)


def gmail(box: Box, timeouts: Timeouts = SWIFT) -> MailboxSync:
    return GmailSync(account(box), timeouts=timeouts)


def outlook(box: Box, timeouts: Timeouts = SWIFT) -> MailboxSync:
    return OutlookSync(account(box), timeouts=timeouts)


def teams(box: Box, timeouts: Timeouts = SWIFT) -> MailboxSync:
    return TeamsSync(account(box), timeouts=timeouts)


@dataclass
class Run:
    """What an agent keeps between its runs. `settled` counts each message that a run took."""

    cursor: str | None = None
    known: dict[str, bytes] = field(default_factory=dict)
    settled: Counter[str] = field(default_factory=Counter)

    async def due(self, listed: Sequence[tuple[str, bytes]]) -> list[bool]:
        return [self.known.get(source_id) != content_hash for source_id, content_hash in listed]

    async def read(self, reading: MailboxSync, *, most: int | None = None, **config: Any) -> list[MailItem]:
        """Read and settle; `most`: die when so many are settled, with one more in hand."""
        items: list[MailItem] = []
        try:
            async with aclosing(
                reading.messages(cursor=self.cursor, filters=Filters.parse(config), due=self.due)
            ) as found:
                async for item in found:
                    if most is not None and len(items) == most:
                        return items
                    self.settled[item.source_id] += 1
                    if isinstance(item, MailDocument):
                        self.known[item.source_id] = item.content_hash
                    items.append(item)
        finally:
            self.cursor = reading.checkpoint
        return items


def titles(items: Sequence[MailItem]) -> list[str]:
    return [item.title for item in items if isinstance(item, MailDocument)]


def skipped(items: Sequence[MailItem]) -> list[tuple[str, str]]:
    return [(item.source_id, item.code) for item in items if isinstance(item, SkippedMessage)]
