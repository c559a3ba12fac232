"""Mailboxes and channels as a source of documents. `integrations` reads them at the provider."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from adiuva.core import db
from adiuva.core.errors import AdiuvaError, NotFound
from agents import claimed_runs, journal, ledger
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.runs import NoConnection
from agents.services import connection_for
from integrations import tokens
from integrations.gmail import GmailSync
from integrations.mail.filters import Filters
from integrations.mail.mailbox_types import DueFilter, MailItem
from integrations.mail.mailbox_types import MailDocument as Message
from integrations.mail.provider_http import MailboxAccount
from integrations.mail.sync import MailboxSync
from integrations.models import Provider
from integrations.outlook import OutlookSync
from integrations.teams import TeamsSync

_READERS: Final[Mapping[Provider, type[MailboxSync]]] = {
    Provider.GMAIL: GmailSync,
    Provider.OUTLOOK: OutlookSync,
    Provider.TEAMS: TeamsSync,
}
# The most messages read ahead.
_QUEUE_SIZE: Final = 4
_SAVE_CURSOR_EVERY_S: Final = 2.0
_TITLE_CHARS: Final = 200
# The code of a message that may be readable later: the cursor stays before it.
_TRANSIENT_CODE: Final = "provider_away"

# A message, with the cursor after the message before it. The last item has no message.
_Arrived = tuple[MailItem | None, str | None]


class Mailbox:
    """Reads an account for one run, without a device.

    The cursor only moves past messages that are settled, so the next run finds the others again.
    """

    def __init__(self, claimed: claimed_runs.ClaimedRun) -> None:
        assert claimed.account is not None
        self._claimed, self._account = claimed, claimed.account
        self._filters = Filters.parse(claimed.account.filter_config, claimed.zone)
        self._listed_due = 0
        self._told: set[str] = set()  # what could not be read, such as a label; a dry run may read twice
        self._error: Exception | None = None
        self._arrived = 0
        # Unsettled messages: key → number, in the order of arrival.
        self._open: dict[bytes, int] = {}
        # Cursors, each with the number of the last message before it.
        self._marks: deque[tuple[int, str]] = deque()
        self._stored = self._last = claimed.account.cursor
        self._stored_at = time.monotonic()
        self._storing = asyncio.Lock()

    async def batches(self) -> AsyncGenerator[list[SourceDocument], None]:
        """Yield documents as they arrive.

        An error of the provider ends them; `finish` raises it, so that the documents read before are still used.
        """
        arriving: asyncio.Queue[_Arrived] = asyncio.Queue(_QUEUE_SIZE)
        reading = asyncio.create_task(self._read(arriving), name="mailbox")
        try:
            is_over = False
            while not is_over:
                arrived = [await arriving.get()]
                while not arriving.empty():
                    arrived.append(arriving.get_nowait())
                is_over = arrived[-1][0] is None
                if documents := await self._take(arrived):
                    yield documents
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if self._error is not None and not isinstance(self._error, AdiuvaError):
            raise self._error

    async def settled(self, document: SourceDocument) -> None:
        """Note that a document's records are committed, so the cursor may move past it."""
        self._open.pop(document.key, None)
        if time.monotonic() - self._stored_at >= _SAVE_CURSOR_EVERY_S:
            await self._store()

    async def finish(self) -> None:
        """Store the cursor, once all documents were processed.

        Raises the error that ended the reading early, if any: NeedsReauth, ProviderUnavailable or another AdiuvaError.
        """
        await self._store()
        if self._error is not None:
            raise self._error

    async def _read(self, arriving: asyncio.Queue[_Arrived]) -> None:
        checkpoint = None
        try:
            if self._claimed.dry_run:
                await self._read_sample(arriving)
            else:
                checkpoint = (await self._pass(arriving, self._account.cursor, self._due)).checkpoint
        except Exception as error:  # raised again by `batches` or `finish`
            self._error = error
        await arriving.put((None, checkpoint))

    async def _read_sample(self, arriving: asyncio.Queue[_Arrived]) -> None:
        """Read a few messages: new ones, or any others if there are none."""
        claimed, most = self._claimed, self._claimed.max_sources
        read = await self._pass(arriving, None, partial(self._due_in_sample, True), most)
        if read.rejected:
            # Filters that the provider cannot apply, such as a sender's name: others are as likely to pass as these.
            passing = self._listed_due * read.admitted / (read.admitted + read.rejected)
            await db.run(claimed_runs.add_counts, claimed, due=round(passing) - self._listed_due)
        if not read.admitted:
            await self._pass(arriving, None, partial(self._due_in_sample, False), most)

    async def _pass(
        self, arriving: asyncio.Queue[_Arrived], cursor: str | None, due: DueFilter, most: int | None = None
    ) -> MailboxSync:
        """Read once through the account. The sync's checkpoint is where to continue once everything is settled."""
        reader = _reader(self._claimed.user_id, self._account)
        messages = reader.messages(cursor=cursor, filters=self._filters, due=due, most=most)
        async with aclosing(messages) as items:
            async for item in items:
                if isinstance(item, Message) or item.source_id not in self._told:
                    await arriving.put((item, reader.checkpoint))
                if not isinstance(item, Message):
                    self._told.add(item.source_id)
                del item
        return reader

    async def _due(self, listed: Sequence[tuple[str, bytes]]) -> list[bool]:
        claimed = self._claimed
        due = await db.run(
            ledger.needs_reading, claimed, [(claimed.source_key(name), content) for name, content in listed]
        )
        if unchanged := due.count(False):
            await db.run(
                claimed_runs.add_counts, claimed, seen=unchanged, done=unchanged, unchanged=unchanged
            )
        return due

    async def _due_in_sample(self, wanted: bool, listed: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Return which of the messages are due, or with `wanted` false, which are not."""
        claimed = self._claimed
        due = await db.run(
            ledger.needs_reading, claimed, [(claimed.source_key(name), content) for name, content in listed]
        )
        if wanted:
            self._listed_due += sum(due)
            await db.run(claimed_runs.add_counts, claimed, due=sum(due))
        return [is_due is wanted for is_due in due]

    async def _take(self, arrived: Sequence[_Arrived]) -> list[SourceDocument]:
        """Return the documents among the items. Unreadable messages go into the journal, with the reason."""
        documents, entries, before = [], [], self._arrived
        about: list[JournalEntry] = []
        for item, checkpoint in arrived:
            self._arrived += item is not None
            if checkpoint is not None and checkpoint != self._last:
                self._last = checkpoint
                self._marks.append((self._arrived, checkpoint))
            if item is None:
                break
            key = self._claimed.source_key(item.source_id)
            if isinstance(item, Message):
                document = _document(item, key)
                documents.append(document)
                about += journal.entries_about(item.document, document.path)
                self._open[key] = self._arrived
                continue
            if item.code == _TRANSIENT_CODE:
                self._open[key] = self._arrived
            source = f"message {item.source_id}"
            entries.append(
                JournalEntry(EventKind.SOURCE_FAILED, item.code, source=source, message=item.reason)
            )
        if seen := self._arrived - before:
            failed = len(entries)
            await db.run(
                claimed_runs.add_counts,
                self._claimed,
                seen=seen,
                done=failed,
                failed=failed,
                entries=entries + about,
            )
        return documents

    async def _store(self) -> None:
        """Store the last cursor before which everything is settled."""
        self._stored_at = time.monotonic()
        async with self._storing:  # cursors must be stored in order
            unsettled = next(iter(self._open.values()), None)
            found = self._stored
            while self._marks and (unsettled is None or self._marks[0][0] < unsettled):
                found = self._marks.popleft()[1]
            if found is not None and found != self._stored and not self._claimed.dry_run:
                await db.run(claimed_runs.save_cursor, self._claimed, found)
                self._stored = found


async def sample_messages(
    *,
    user_id: UUID,
    provider: Provider,
    filter_config: Mapping[str, Any],
    zone: ZoneInfo,
    connection_id: UUID | None = None,
    most: int = 3,
) -> list[SourceDocument]:
    """Return a few messages that an agent with these filters would read, without run, ledger and cursor.

    Raises Invalid if there is no connection, or several and none is named, and errors of the provider.
    """
    account = await db.run(_account, user_id, provider, filter_config, connection_id)
    reader = _reader(user_id, account)
    documents: list[SourceDocument] = []
    async with aclosing(reader.messages(cursor=None, filters=Filters.parse(filter_config, zone))) as items:
        async for item in items:
            if isinstance(item, Message):
                documents.append(_document(item, b""))
                if len(documents) == most:
                    break
    return documents


def _account(
    user_id: UUID, provider: Provider, filter_config: Mapping[str, Any], connection_id: UUID | None
) -> claimed_runs.MailAccount:
    found = connection_for(user_id, provider, connection_id)
    return claimed_runs.MailAccount(provider, found.pk, found.address, filter_config, None)


def _reader(user_id: UUID, account: claimed_runs.MailAccount) -> MailboxSync:
    async def token(rejected: str | None) -> str:
        try:
            return await tokens.access_token(account.connection, user_id=user_id, rejected=rejected)
        except NotFound:
            raise NoConnection from None  # disconnected since the run was claimed

    return _READERS[account.provider](MailboxAccount(account.connection, account.address, token))


def _document(message: Message, key: bytes) -> SourceDocument:
    title = " ".join(message.title.split())[:_TITLE_CHARS] or "Without a subject"
    about = [" ".join(message.sender.split())[:_TITLE_CHARS]]
    about.append(f"{message.sent_at:%Y-%m-%d %H:%M} UTC" if message.sent_at else "")
    path = f"{title} ({', '.join(filter(None, about))})" if any(about) else title
    read = message.document
    head = read.head
    if not head.date and message.sent_at:
        head = replace(head, date=message.sent_at.isoformat())
    return SourceDocument(title, path, read.text, key, message.content_hash, head, read.kind)
