"""Messages of Teams channels through Microsoft Graph: a delta link for each channel, and the replies beside it.

A delta link tells of new and edited messages of a channel, and makes no promise about replies. So the channel's latest
threads are listed with their replies in each reading, and a thread that the delta link names is read to its end.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, Final

from adiuva.documents.html import html_to_text
from adiuva.documents.mail import Attachment, attachments_to_text
from integrations.graph import MOST_PAGES, Delta, Expired, Links, address, answers, dicts, moment, rows, stamp
from integrations.mail import message_parts
from integrations.mail.cursor import Cursor, since
from integrations.mail.documents import Document, Item, Skipped, fingerprint
from integrations.mail.errors import NoSuchFolder, ProviderRefused
from integrations.mail.filters import Filters
from integrations.mail.provider_client import Wire
from integrations.mail.sync import Page, Reading, Ref
from integrations.models import Provider

_PAGE: Final = "50"
_LATEST: Final = 4  # pages of threads whose replies are read each time
_MOST_CONTEXT: Final = 300  # characters of a thread's beginning, shown with a reply
_HEADERS: Final = {"Prefer": "odata.maxpagesize=50"}


@dataclass(frozen=True)
class _Channel:
    team: str
    id: str
    name: str  # Team/Channel

    @property
    def key(self) -> str:
        return f"{self.team}/{self.id}"

    def at(self, *path: str, **options: str) -> str:
        return address("teams", self.team, "channels", self.id, "messages", *path, **options)


class Teams(Reading):
    """`labels` are channels: by name, as Team/Channel, or by id; or a team, for all of its channels."""

    provider = Provider.TEAMS

    async def _pages(self, wire: Wire, cursor: Cursor, filters: Filters) -> AsyncGenerator[Page, None]:
        channels, skipped = await self._channels(wire, filters.labels)
        if skipped:
            yield Page(skipped=skipped)
        links = Links(cursor, self._now, {channel.key for channel in channels})
        for channel in channels:
            try:
                async for page in self._channel(wire, channel, links, filters):
                    yield page
            except ProviderRefused as refused:
                if refused.http_status not in (403, 404):
                    raise
                # One that the user may no longer see does not keep the others from being read.
                reason = "this channel cannot be read by the connected account"
                yield Page(skipped=[Skipped(channel.key, refused.code, reason)])

    async def _channels(self, wire: Wire, wanted: tuple[str, ...]) -> tuple[list[_Channel], list[Skipped]]:
        found: list[_Channel] = []
        missing = {name.casefold(): name for name in wanted}
        async for team in rows(wire, address("me", "joinedTeams", select="id,displayName")):
            if not isinstance(team_id := team.get("id"), str):
                continue
            team_name = str(team.get("displayName", ""))
            async for row in rows(wire, address("teams", team_id, "channels", select="id,displayName")):
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
        reason = "there is no such channel, or the connected account cannot see it"
        return found, [Skipped(name, "no_such_folder", reason) for name in missing.values()]

    async def _channel(
        self, wire: Wire, channel: _Channel, links: Links, filters: Filters
    ) -> AsyncGenerator[Page, None]:
        """What is new in a channel. Its link moves when all of it was listed."""
        threads: dict[str, dict[str, Any]] = {}  # that the delta link named
        known = links.get(channel.key)
        start = since(filters, known[1] if known else None)
        if known:
            delta = Delta(wire, known[0], _HEADERS)
            try:
                async for found in delta.pages():
                    threads.update((row["id"], row) for row in found if _is_thread(row))
                    yield Page(_refs(channel, found, filters))
            except Expired:
                known = None
        if not known:
            recent = f"lastModifiedDateTime gt {stamp(self._now - dt.timedelta(hours=1))}"
            delta = Delta(wire, channel.at("delta", filter=recent), _HEADERS)
            async for found in delta.pages():
                yield Page(_refs(channel, found, filters))
        listed = replace(filters, start=start)
        url = channel.at(top=_PAGE, expand="replies")
        async for answer in answers(wire, url, most=_LATEST if known else MOST_PAGES):
            refs = []
            for thread in dicts(answer.get("value")):
                if not isinstance(thread.get("id"), str):
                    continue
                threads.pop(thread["id"], None)
                refs += _refs(channel, [thread, *dicts(thread.get("replies"))], listed, thread)
                if isinstance(more := thread.get("replies@odata.nextLink"), str):
                    async for replies in answers(wire, more):
                        yield Page(_refs(channel, dicts(replies.get("value")), listed, thread))
            yield Page(refs)
        for thread_id, thread in threads.items():
            async for answer in answers(wire, channel.at(thread_id, "replies", top=_PAGE)):
                yield Page(_refs(channel, dicts(answer.get("value")), listed, thread))
        yield Page(state=links.move(channel.key, delta.end))

    async def _fetch(self, wire: Wire, ref: Ref, filters: Filters) -> Item | None:
        """The listing has it all."""
        channel, row, thread = ref.handle
        sender, sent_at = _sender(row), moment(row.get("createdDateTime"))
        subject = message_parts.clean(row.get("subject"))
        headers = {
            "Date": sent_at.isoformat() if sent_at else "",
            "From": sender,
            "Channel": message_parts.clean(channel.name),
            "Subject": subject,
        }
        if thread is not None and thread is not row:
            beginning = " ".join((message_parts.clean(thread.get("subject")) or _text(thread)).split())
            headers["In reply to"] = beginning[:_MOST_CONTEXT]
        attachments = tuple(
            Attachment(
                message_parts.clean(each.get("name"))[:100],
                message_parts.clean(each.get("contentType"))[:100],
            )
            for each in dicts(row.get("attachments"))
            if each.get("name")
        )
        body = _text(row)
        if not body.strip() and not subject and not attachments:
            return None  # a sticker, a call that ended
        lines = "\n".join(f"{name}: {' '.join(value.split())}" for name, value in headers.items() if value)
        parts = [lines, body.strip("\n"), attachments_to_text(attachments)]
        return Document(
            source_id=ref.source_id,
            content_hash=ref.content_hash,
            title=subject or headers.get("In reply to", "") or channel.name,
            text="\n\n".join(filter(None, parts)) + "\n",
            sent_at=sent_at,
            sender=sender,
            recipients=channel.name,
            attachments=attachments,
        )


def _is_thread(row: dict[str, Any]) -> bool:
    return isinstance(row.get("id"), str) and not row.get("replyToId") and not row.get("deletedDateTime")


def _refs(
    channel: _Channel, listed: list[dict[str, Any]], filters: Filters, thread: dict[str, Any] | None = None
) -> list[Ref]:
    refs = []
    for row in listed:
        if not isinstance(row.get("id"), str) or "@removed" in row or row.get("deletedDateTime"):
            continue
        if row.get("messageType", "message") != "message":
            continue  # who joined, who renamed what
        if filters.admits_sender(_sender(row)) and filters.admits_time(moment(row.get("createdDateTime"))):
            source_id = f"{channel.key}/{row['id']}"
            version = fingerprint("teams", source_id, str(row.get("lastEditedDateTime") or ""))
            refs.append(Ref(source_id, version, (channel, row, thread)))
    return refs


def _sender(row: dict[str, Any]) -> str:
    found = row.get("from")
    for kind in ("user", "application"):
        who = found.get(kind) if isinstance(found, dict) else None
        if isinstance(who, dict):
            return message_parts.clean(who.get("displayName")) or message_parts.clean(who.get("id"))
    return ""


def _text(row: dict[str, Any]) -> str:
    body = row.get("body")
    found = body if isinstance(body, dict) else {}
    content = message_parts.clean(found.get("content"))
    return (
        html_to_text(content, quotes=True) if str(found.get("contentType", "")).lower() == "html" else content
    )
