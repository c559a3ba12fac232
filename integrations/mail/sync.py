"""The common part of every provider's sync: pages of references in, documents out, the checkpoint behind them."""

from __future__ import annotations

import asyncio
import datetime as dt
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Final

from django.utils import timezone

from integrations.errors import ProviderUnavailable
from integrations.mail.cursor import Cursor, cursor_owner
from integrations.mail.errors import (
    InvalidResponse,
    ProviderRefused,
    ProviderThrottled,
    ProviderUnstable,
    ResourceGone,
    ResponseTooLarge,
)
from integrations.mail.filters import Filters
from integrations.mail.mailbox_types import DueFilter, MailItem, SkippedMessage
from integrations.mail.provider_http import MailboxAccount, ProviderClient, Timeouts
from integrations.models import Provider

_PREFETCHED_MESSAGES: Final = 4


@dataclass(frozen=True, slots=True)
class MessageRef:
    """A listed message. `handle`: the data with which the provider's class fetches it."""

    source_id: str
    content_hash: bytes
    handle: Any = None


@dataclass(frozen=True, slots=True)
class ListedPage:
    """One page of a listing.

    `state`: the cursor's state once this page is processed; None leaves it unchanged. `read_at`: up to when the mailbox
    is then known completely, if not up to the beginning of this sync.
    """

    refs: list[MessageRef] = field(default_factory=list)
    skipped: list[SkippedMessage] = field(default_factory=list)
    state: dict[str, Any] | None = None
    read_at: dt.datetime | None = None


class MailboxSync(ABC):
    """One sync of one mailbox; implements mailbox_types.Mailbox. An instance is used once.

    `admitted`, `rejected`: how many of the fetched messages the filters admitted; how many they did not, or were gone.
    """

    provider: ClassVar[Provider]

    def __init__(self, account: MailboxAccount, *, timeouts: Timeouts | None = None) -> None:
        self._account, self._timeouts = account, timeouts or Timeouts()
        self._cursor: Cursor | None = None
        self._stored: str | None = None
        self._has_advanced = False
        self.admitted = self.rejected = 0

    @property
    def checkpoint(self) -> str | None:
        return self._cursor.dump() if self._cursor is not None and self._has_advanced else self._stored

    async def messages(
        self, *, cursor: str | None, filters: Filters, due: DueFilter | None = None, most: int | None = None
    ) -> AsyncGenerator[MailItem, None]:
        self._now = now = timezone.now()
        self._stored = cursor
        # The spelling of the address may change with each consent.
        owner = cursor_owner(self.provider.value, self._account.mailbox.casefold(), filters)
        self._cursor = before = Cursor.load(cursor, owner, now)
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
                if self.admitted == most:
                    continue
                async with aclosing(self._fetch_in_order(client, refs, filters)) as items:
                    async for item in items:
                        yield item
                        if self.admitted == most:
                            break
                if page.state is not None and most is None:
                    # The caller wants more, so it has processed, or holds, the last item of this page.
                    self._cursor, self._has_advanced = Cursor(owner, page.read_at or now, page.state), True

    async def _fetch_in_order(
        self, client: ProviderClient, refs: list[MessageRef], filters: Filters
    ) -> AsyncGenerator[MailItem, None]:
        """Yield the messages in the order of their references; a few are fetched ahead."""
        ahead: deque[asyncio.Task[MailItem | None]] = deque()
        waiting = iter(refs)
        try:
            while True:
                for ref in islice(waiting, _PREFETCHED_MESSAGES - len(ahead)):
                    ahead.append(asyncio.create_task(self._fetch_or_skip(client, ref, filters), name="fetch"))
                if not ahead:
                    return
                if (item := await ahead.popleft()) is None:
                    self.rejected += 1
                    continue
                self.admitted += 1
                yield item
                del item  # free its memory while the next one is awaited
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _fetch_or_skip(
        self, client: ProviderClient, ref: MessageRef, filters: Filters
    ) -> MailItem | None:
        """Return a message; None if it is gone or not admitted. A fault of this message alone does not end the sync."""
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
        except ProviderUnavailable as error:
            # Other requests succeeded while this one kept failing, so the fault is in this message.
            if client.answered == answered:
                raise
            return SkippedMessage(ref.source_id, error.code, error.message)

    @abstractmethod
    def _pages(
        self, client: ProviderClient, cursor: Cursor, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        """Yield the messages since the cursor. Its state is empty at the first sync, and may have expired long ago."""

    @abstractmethod
    async def _fetch(self, client: ProviderClient, ref: MessageRef, filters: Filters) -> MailItem | None:
        """Fetch a listed message; None if the filters do not admit it."""
