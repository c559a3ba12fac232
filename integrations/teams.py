"""Teams sync through Microsoft Graph: a delta link per channel, and the replies to its threads.

A delta link returns new and edited messages of a channel, but promises nothing about replies. So each sync also lists
the channel's latest threads with their replies, and reads a thread that the delta link returns to its end.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, Final

from adiuva.core.errors import Text
from adiuva.documents import Attachment, Document, Head, Unreadable
from adiuva.documents.cleaning import clean
from adiuva.documents.document import one_line
from adiuva.documents.mail import attachments_to_text
from integrations.graph import (
    MAX_PAGES,
    DeltaLinkExpired,
    DeltaLinks,
    DeltaQuery,
    dicts,
    graph_url,
    odata_time,
    pages,
    parse_time,
    rows,
)
from integrations.mail import message_documents
from integrations.mail.cursor import Cursor, sync_start
from integrations.mail.errors import NoSuchFolder, ProviderRefused
from integrations.mail.filters import Filters
from integrations.mail.mailbox_types import MailDocument, MailItem, SkippedMessage, fingerprint
from integrations.mail.provider_http import ProviderClient
from integrations.mail.sync import ListedPage, MailboxSync, MessageRef
from integrations.models import Provider

_PAGE_SIZE: Final = "50"
# Each sync reads the replies to threads on this many pages of the latest threads.
_REPLY_PAGES: Final = 4
# A reply is shown with the start of its thread, cut to this.
_MAX_CONTEXT_CHARS: Final = 300
_HEADERS: Final = {"Prefer": "odata.maxpagesize=50"}


@dataclass(frozen=True)
class _Channel:
    team: str
    id: str
    # Team/Channel
    name: str

    @property
    def key(self) -> str:
        return f"{self.team}/{self.id}"

    def at(self, *path: str, **options: str) -> str:
        return graph_url("teams", self.team, "channels", self.id, "messages", *path, **options)


class TeamsSync(MailboxSync):
    """Teams' sync. Filters' `labels` are channels by name, as Team/Channel, or id; or teams, for all channels."""

    provider = Provider.TEAMS

    async def _pages(
        self, client: ProviderClient, cursor: Cursor, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        channels, skipped = await self._channels(client, filters.labels)
        if skipped:
            yield ListedPage(skipped=skipped)
        links = DeltaLinks(cursor, self._now, {channel.key for channel in channels})
        for channel in channels:
            try:
                async for page in self._channel(client, channel, links, filters):
                    yield page
            except ProviderRefused as refused:
                if refused.http_status not in (403, 404):
                    raise
                # A channel that the user may no longer see must not stop the others.
                reason = Text("this channel cannot be read by the connected account")
                yield ListedPage(skipped=[SkippedMessage(channel.key, refused.code, reason)])

    async def _channels(
        self, client: ProviderClient, wanted: tuple[str, ...]
    ) -> tuple[list[_Channel], list[SkippedMessage]]:
        found: list[_Channel] = []
        missing = {name.casefold(): name for name in wanted}
        async for team in rows(client, graph_url("me", "joinedTeams", select="id,displayName")):
            if not isinstance(team_id := team.get("id"), str):
                continue
            team_name = str(team.get("displayName", ""))
            async for row in rows(client, graph_url("teams", team_id, "channels", select="id,displayName")):
                if not isinstance(channel_id := row.get("id"), str):
                    continue
                name = str(row.get("displayName", ""))
                channel = _Channel(team_id, channel_id, f"{team_name}/{name}")
                names = {each.casefold() for each in (name, channel.name, channel_id, team_name, team_id)}
                if not wanted or names & {label.casefold() for label in wanted}:
                    found.append(channel)
                    for each in names:
                        missing.pop(each, None)
        if wanted and not found:
            raise NoSuchFolder("none of the channels of this agent can be seen by the connected account")
        reason = Text("there is no such channel, or the connected account cannot see it")
        return found, [SkippedMessage(name, "no_such_folder", reason) for name in missing.values()]

    async def _channel(
        self, client: ProviderClient, channel: _Channel, links: DeltaLinks, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        """Yield the new messages of a channel. Its link is stored when all of them were listed."""
        threads: dict[str, dict[str, Any]] = {}  # from the delta link, not yet read to their end
        known = links.get(channel.key)
        start = sync_start(filters, known[1] if known else None)
        if known:
            delta = DeltaQuery(client, known[0], _HEADERS)
            try:
                async for found in delta.pages():
                    threads.update((row["id"], row) for row in found if _is_thread(row))
                    yield ListedPage(_refs(channel, found, filters))
            except DeltaLinkExpired:
                known = None
        if not known:
            recent = f"lastModifiedDateTime gt {odata_time(self._now - dt.timedelta(hours=1))}"
            delta = DeltaQuery(client, channel.at("delta", filter=recent), _HEADERS)
            async for found in delta.pages():
                yield ListedPage(_refs(channel, found, filters))
        listed = replace(filters, start=start)
        url = channel.at(top=_PAGE_SIZE, expand="replies")
        async for answer in pages(client, url, most=_REPLY_PAGES if known else MAX_PAGES):
            refs = []
            for thread in dicts(answer.get("value")):
                if not isinstance(thread.get("id"), str):
                    continue
                threads.pop(thread["id"], None)
                refs += _refs(channel, [thread, *dicts(thread.get("replies"))], listed, thread)
                if isinstance(more := thread.get("replies@odata.nextLink"), str):
                    async for replies in pages(client, more):
                        yield ListedPage(_refs(channel, dicts(replies.get("value")), listed, thread))
            yield ListedPage(refs)
        for thread_id, thread in threads.items():
            async for answer in pages(client, channel.at(thread_id, "replies", top=_PAGE_SIZE)):
                yield ListedPage(_refs(channel, dicts(answer.get("value")), listed, thread))
        yield ListedPage(state=links.move(channel.key, delta.end))

    async def _fetch(self, client: ProviderClient, ref: MessageRef, filters: Filters) -> MailItem | None:
        """Convert the listed row: the listing holds the whole message."""
        channel, row, thread = ref.handle
        sender, sent_at = _sender(row), parse_time(row.get("createdDateTime"))
        subject = message_documents.clean_text(row.get("subject"))
        headers = {
            "Date": sent_at.isoformat() if sent_at else "",
            "From": sender,
            "Channel": message_documents.clean_text(channel.name),
            "Subject": subject,
        }
        if thread is not None and thread is not row:
            try:
                begun = message_documents.clean_text(thread.get("subject")) or await _text(thread)
            except Unreadable:
                begun = ""
            beginning = " ".join(begun.split())
            headers["In reply to"] = beginning[:_MAX_CONTEXT_CHARS]
        attachments = tuple(
            Attachment(
                message_documents.clean_text(each.get("name"))[:100],
                message_documents.clean_text(each.get("contentType"))[:100],
            )
            for each in dicts(row.get("attachments"))
            if each.get("name")
        )
        try:
            body = await _text(row)
        except Unreadable as unreadable:
            return SkippedMessage(ref.source_id, unreadable.code, unreadable.message)
        if not body.strip() and not subject and not attachments:
            return None  # for example a sticker or an ended call
        lines = "\n".join(f"{name}: {' '.join(value.split())}" for name, value in headers.items() if value)
        parts = [lines, body.strip("\n"), attachments_to_text(attachments)]
        head = Head(
            title=one_line(subject or headers.get("In reply to", "") or channel.name),
            date=sent_at.isoformat() if sent_at else "",
            sender=one_line(sender),
            recipients=one_line(channel.name),
        )
        text = clean("\n\n".join(filter(None, parts)) + "\n")
        return MailDocument(
            ref.source_id, ref.content_hash, Document(text, "text/html", head, attachments), sent_at
        )


def _is_thread(row: dict[str, Any]) -> bool:
    return isinstance(row.get("id"), str) and not row.get("replyToId") and not row.get("deletedDateTime")


def _refs(
    channel: _Channel, listed: list[dict[str, Any]], filters: Filters, thread: dict[str, Any] | None = None
) -> list[MessageRef]:
    refs = []
    for row in listed:
        if not isinstance(row.get("id"), str) or "@removed" in row or row.get("deletedDateTime"):
            continue
        if row.get("messageType", "message") != "message":
            continue  # a system message: somebody joined, renamed the channel …
        if filters.admits_sender(_sender(row)) and filters.admits_time(
            parse_time(row.get("createdDateTime"))
        ):
            source_id = f"{channel.key}/{row['id']}"
            version = fingerprint("teams", source_id, str(row.get("lastEditedDateTime") or ""))
            refs.append(MessageRef(source_id, version, (channel, row, thread)))
    return refs


def _sender(row: dict[str, Any]) -> str:
    found = row.get("from")
    for kind in ("user", "application"):
        who = found.get(kind) if isinstance(found, dict) else None
        if isinstance(who, dict):
            return message_documents.clean_text(who.get("displayName")) or message_documents.clean_text(
                who.get("id")
            )
    return ""


async def _text(row: dict[str, Any]) -> str:
    """Return a message's text. Raises Unreadable."""
    body = row.get("body")
    found = body if isinstance(body, dict) else {}
    content = message_documents.clean_text(found.get("content"))
    if not content or str(found.get("contentType", "")).lower() != "html":
        return content
    return await message_documents.html_to_text(content)
