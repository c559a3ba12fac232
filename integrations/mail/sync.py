"""The order of a reading, the same for all providers: pages of references in, documents out, the checkpoint behind."""

from __future__ import annotations

import asyncio
import datetime as dt
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from django.utils import timezone

from integrations.errors import ProviderUnavailable
from integrations.mail.cursor import Cursor, cursor_owner
from integrations.mail.documents import DueFilter, MailItem, SkippedMessage
from integrations.mail.errors import (
    InvalidResponse,
    ProviderRefused,
    ProviderThrottled,
    ProviderUnstable,
    ResourceGone,
    ResponseTooLarge,
)
from integrations.mail.filters import Filters
from integrations.mail.provider_client import MailboxAccount, ProviderClient, Timeouts
from integrations.models import Provider

_PREFETCHED_MESSAGES: Final = 4  # messages that are fetched before they are asked for


@dataclass(frozen=True, slots=True)
class MessageRef:
    """A message that was listed. `handle`: what the provider's reader needs to fetch it."""

    source_id: str
    content_hash: bytes
    handle: Any = None


@dataclass(frozen=True, slots=True)
class ListedPage:
    """What a listing brought. `state`: what the cursor may say once this page is settled; None: as before. `read_at`:
    up to when all is known then, where that is not the beginning of this reading."""

    refs: list[MessageRef] = field(default_factory=list)
    skipped: list[SkippedMessage] = field(default_factory=list)
    state: dict[str, Any] | None = None
    read_at: dt.datetime | None = None


class MailboxSync(ABC):
    """One reading of one mailbox; see documents.Mailbox. A reader is used once."""

    provider: ClassVar[Provider]

    def __init__(self, account: MailboxAccount, *, timeouts: Timeouts | None = None) -> None:
        self._account, self._timeouts = account, timeouts or Timeouts()
        self._cursor: Cursor | None = None
        self._stored: str | None = None
        self._moved = False

    @property
    def checkpoint(self) -> str | None:
        return self._cursor.dump() if self._cursor is not None and self._moved else self._stored

    async def messages(
        self, *, cursor: str | None, filters: Filters, due: DueFilter | None = None
    ) -> AsyncGenerator[MailItem, None]:
        self._now = now = timezone.now()
        self._stored = cursor
        # An address comes in the spelling in which it was granted last.
        of = cursor_owner(self.provider.value, self._account.mailbox.casefold(), filters)
        self._cursor = before = Cursor.load(cursor, of, now)
        seen: set[str] = set()
        async with (
            ProviderClient.open(self.provider, self._account, self._timeouts) as client,
            aclosing(self._pages(client, before, filters)) as pages,
        ):
            async for page in pages:
                refs = list({ref.source_id: ref for ref in page.refs if ref.source_id not in seen}.values())
                seen.update(ref.source_id for ref in refs)
                if due is not None and refs:
                    wanted = await due([(ref.source_id, ref.content_hash) for ref in refs])
                    refs = [ref for ref, is_due in zip(refs, wanted, strict=True) if is_due]
                for skipped in page.skipped:
                    yield skipped
                async with aclosing(self._fetched(client, refs, filters)) as items:
                    async for item in items:
                        yield item
                if page.state is not None:
                    # Whoever asked for the next one has settled, or holds, the last one.
                    self._cursor, self._moved = Cursor(before.of, page.read_at or now, page.state), True

    async def _fetched(
        self, client: ProviderClient, refs: list[MessageRef], filters: Filters
    ) -> AsyncGenerator[MailItem, None]:
        """The messages in their order, a few fetched ahead."""
        ahead: deque[asyncio.Task[MailItem | None]] = deque()
        try:
            for ref in refs:
                ahead.append(asyncio.create_task(self._one(client, ref, filters), name="fetch"))
                if len(ahead) >= _PREFETCHED_MESSAGES and (item := await ahead.popleft()) is not None:
                    yield item
                    del item  # nobody holds it here while the next one is awaited
            while ahead:
                if (item := await ahead.popleft()) is not None:
                    yield item
                    del item
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _one(self, client: ProviderClient, ref: MessageRef, filters: Filters) -> MailItem | None:
        """A message; None if it is gone, or not wanted. What is wrong with it alone does not end the reading."""
        answered = client.answered
        try:
            return await self._fetch(client, ref, filters)
        except ResourceGone:
            return None
        except (ResponseTooLarge, InvalidResponse) as error:
            return SkippedMessage(ref.source_id, error.code, error.message)
        except ProviderRefused as refused:
            if refused.http_status in (401, 403):
                raise
            return SkippedMessage(ref.source_id, refused.code, refused.message)
        except (ProviderThrottled, ProviderUnstable):
            raise
        except ProviderUnavailable as away:
            # If others were answered while this one failed again and again, it is this message.
            if client.answered == answered:
                raise
            return SkippedMessage(ref.source_id, away.code, away.message)

    @abstractmethod
    def _pages(
        self, client: ProviderClient, cursor: Cursor, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        """What there is since the cursor. An empty state: nothing is known yet. It may have been expired for long."""

    @abstractmethod
    async def _fetch(self, client: ProviderClient, ref: MessageRef, filters: Filters) -> MailItem | None:
        """A listed message; None if the filters do not admit it."""
