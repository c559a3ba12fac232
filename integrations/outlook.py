"""Outlook sync through Microsoft Graph: a delta link per folder, or a list of the messages of a bounded time.

A delta link is taken before the list is read, so that messages that arrive meanwhile are in the changes after it. Ids
are requested in the form that survives a move to another folder.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import suppress
from email.message import Message
from typing import Any, Final

from adiuva.core.errors import Text
from adiuva.documents.mail import is_read, is_signed
from integrations.graph import (
    MAX_PAGES,
    DeltaLinkExpired,
    DeltaLinks,
    DeltaQuery,
    dicts,
    graph_url,
    odata_literal,
    odata_time,
    parse_time,
    rows,
)
from integrations.mail import message_documents
from integrations.mail.cursor import Cursor, sync_start
from integrations.mail.errors import NoSuchFolder, PageLoop, ProviderRefused, ResourceGone, ResponseTooLarge
from integrations.mail.filters import Filters
from integrations.mail.mailbox_types import MailItem, SkippedMessage, fingerprint
from integrations.mail.provider_http import ProviderClient
from integrations.mail.sync import ListedPage, MailboxSync, MessageRef
from integrations.models import Provider

_HEADERS: Final = {"Prefer": 'IdType="ImmutableId", odata.maxpagesize=200'}
_LISTED: Final = "id,receivedDateTime,from,isDraft"
_READ: Final = (
    "id,internetMessageId,subject,from,toRecipients,ccRecipients,receivedDateTime,body,hasAttachments,isDraft"
)
_ATTACHED: Final = "attachments($select=id,name,contentType,size)"
_FOLDER: Final = "id,displayName,childFolderCount"
# Graph's well-known folder names, which are the same in every language.
_UNWANTED: Final = ("drafts", "deleteditems", "junkemail", "outbox")
_KNOWN: Final = frozenset({"inbox", "archive", "sentitems", *_UNWANTED})
_MAX_FOLDERS: Final = 1_000
# Exchange refuses queries that it finds too complex; with more senders, they are checked only here.
_MAX_SENDERS_IN_QUERY: Final = 10
# The most attachments of a message that are read. Others, larger and further ones are only listed by name.
_MAX_ATTACHED: Final = 10
_MAX_ATTACHED_BYTES: Final = 1024 * 1024
_MAX_NESTED_BYTES: Final = 5 * 1024 * 1024


class OutlookSync(MailboxSync):
    """Outlook's sync. Filters' `labels` are folders: by name, path (Inbox/Clients), well-known name (inbox) or id."""

    provider = Provider.OUTLOOK

    async def _pages(
        self, client: ProviderClient, cursor: Cursor, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        folders, skipped = await self._folders(client, filters.labels)
        if skipped:
            yield ListedPage(skipped=skipped)
        links = DeltaLinks(cursor, self._now, folders)
        to_list: dict[str, dt.datetime] = {}  # folder → start of the list
        for folder in folders:
            known = links.get(folder)
            if known is not None:
                try:
                    async for page in self._changes(client, folder, known[0], links, filters):
                        yield page
                    continue
                except DeltaLinkExpired:
                    pass
                except ResourceGone:
                    continue  # it was deleted, or moved below a folder that is not read
            to_list[folder] = sync_start(filters, known[1] if known else None)
        async for page in self._list_folders(client, to_list, links, filters):
            yield page

    async def _changes(
        self, client: ProviderClient, folder: str, url: str, links: DeltaLinks, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        """Yield the changes in a folder since its delta link. Raises DeltaLinkExpired or ResourceGone."""
        delta = DeltaQuery(client, url, _HEADERS)
        async for found in delta.pages():
            yield ListedPage(_refs(found, filters))
        yield ListedPage(state=links.move(folder, delta.end))

    async def _list_folders(
        self, client: ProviderClient, folders: dict[str, dt.datetime], links: DeltaLinks, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        """List the folders' messages of a bounded time. Their links are stored when all of them were listed."""
        # Starts an hour ago, since a new mail is not listed at once.
        recent = f"receivedDateTime ge {odata_time(self._now - dt.timedelta(hours=1))}"
        ends: dict[str, str] = {}
        for folder in folders:
            url = graph_url("me", "mailFolders", folder, "messages", "delta", select=_LISTED, filter=recent)
            delta = DeltaQuery(client, url, _HEADERS)
            try:
                async for found in delta.pages():
                    yield ListedPage(_refs(found, filters))
            except ResourceGone:
                continue
            ends[folder] = delta.end
        # Several folders are listed twice: a mail that is moved meanwhile from a folder not yet listed to one already
        # listed would be missed. The second time only such mails are fetched.
        for folder in [*ends] * min(2, len(ends)):
            try:
                async for found in _pages_newest_first(client, folder, folders[folder], filters):
                    yield ListedPage(_refs(found, filters))
            except ResourceGone:
                ends.pop(folder, None)
        state = None
        for folder, link in ends.items():
            state = links.move(folder, link)
        yield ListedPage(state=state)

    async def _folders(
        self, client: ProviderClient, wanted: tuple[str, ...]
    ) -> tuple[list[str], list[SkippedMessage]]:
        """Return the ids of the folders to read, and the names that do not exist. Raises NoSuchFolder without any."""
        known: dict[str, str] = {}
        for name in _UNWANTED if not wanted else sorted(_KNOWN & {name.casefold() for name in wanted}):
            try:
                known[name] = str(
                    (await client.get_json(graph_url("me", "mailFolders", name, select="id"))).get("id")
                )
            except ResourceGone:
                continue  # not every mailbox has all of them
        listed = await self._tree(client, skip=set() if wanted else set(known.values()))
        if not wanted:
            return list(listed), []
        found, missing = [], []
        for name in wanted:
            plain = name.casefold()
            of_name = [folder for folder, path in listed.items() if plain in (path, path.rpartition("/")[2])]
            if plain in known:
                of_name = [known[plain]]
            elif name in listed:
                of_name = [name]
            found += of_name
            if not of_name:
                missing.append(
                    SkippedMessage(name, "no_such_folder", Text("there is no such folder in the mailbox"))
                )
        if not found:
            raise NoSuchFolder("none of the folders of this agent exists in the mailbox")
        return list(dict.fromkeys(found)), missing

    async def _tree(self, client: ProviderClient, skip: set[str]) -> dict[str, str]:
        """Return all folders, id → path in lower case, except those in `skip` and everything below them."""
        found: dict[str, str] = {}
        pending = [(graph_url("me", "mailFolders", select=_FOLDER, top="100"), "")]
        while pending:
            url, above = pending.pop()
            async for row in rows(client, url):
                folder = row.get("id")
                if not isinstance(folder, str) or folder in skip or folder in found:
                    continue
                if len(found) >= _MAX_FOLDERS:
                    return found
                found[folder] = path = above + str(row.get("displayName", "")).casefold()
                if row.get("childFolderCount"):
                    below = graph_url("me", "mailFolders", folder, "childFolders", select=_FOLDER, top="100")
                    pending.append((below, f"{path}/"))
        return found

    async def _fetch(self, client: ProviderClient, ref: MessageRef, filters: Filters) -> MailItem | None:
        url = graph_url("me", "messages", ref.source_id, select=_READ, expand=_ATTACHED)
        answer = await client.get_json(url, _HEADERS)
        sent_at = parse_time(answer.get("receivedDateTime"))
        if answer.get("isDraft") is True or not filters.admits_time(sent_at):
            return None
        message = _message(answer)
        if not filters.admits_sender(str(message.get("From", ""))):
            return None
        attachments = dicts(answer.get("attachments"))
        if _is_read_whole(answer, attachments) and (raw := await self._whole(client, ref.source_id)):
            return await message_documents.read_raw(
                raw, source_id=ref.source_id, content_hash=ref.content_hash, sent_at=sent_at
            )
        message.attach(message_documents.text_part(*_body(answer.get("body"))))
        left = _MAX_ATTACHED
        for attachment in attachments:
            part = _listed(attachment)
            if left and _is_read(part, attachment):
                left -= 1
                await self._fill(client, ref.source_id, attachment["id"], part)
            message.attach(part)
        return await message_documents.read_document(
            message, source_id=ref.source_id, content_hash=ref.content_hash, sent_at=sent_at
        )

    async def _whole(self, client: ProviderClient, source_id: str) -> bytes:
        """Return the mail in its original form; empty if Graph does not give it."""
        try:
            return await client.get_bytes(graph_url("me", "messages", source_id, "$value"), _HEADERS)
        except (ResourceGone, ProviderRefused, ResponseTooLarge):
            return b""

    async def _fill(self, client: ProviderClient, source_id: str, attachment_id: str, part: Message) -> None:
        """Give an attachment its content. If Graph does not give it, it is listed by name."""
        url = graph_url("me", "messages", source_id, "attachments", attachment_id, "$value")
        with suppress(ResourceGone, ProviderRefused, ResponseTooLarge):
            part.set_payload((await client.get_bytes(url, _HEADERS)).decode("ascii", "surrogateescape"))


async def _pages_newest_first(
    client: ProviderClient, folder: str, start: dt.datetime, filters: Filters
) -> AsyncGenerator[list[dict[str, Any]], None]:
    """Yield pages of a folder's mails since a time, newest first.

    Each page starts at the time at which the previous one ended. Graph's own next links count positions: each mail that
    leaves the folder meanwhile would make them skip another one.
    """
    oldest: dt.datetime | None = None
    url, seen = _backfill_url(folder, start, filters.end, filters), set[str]()
    while url:
        if url in seen or len(seen) >= MAX_PAGES:
            raise PageLoop(Text("the pages of {provider} lead back to an earlier page", provider="Outlook"))
        seen.add(url)
        answer = await client.get_json(url, _HEADERS)
        found = dicts(answer.get("value"))
        yield found
        following = answer.get("@odata.nextLink") or ""
        if not isinstance(following, str):
            raise PageLoop(Text("the pages of {provider} lead back to an earlier page", provider="Outlook"))
        url = following
        last = parse_time(found[-1].get("receivedDateTime")) if url and found else None
        # Otherwise one second has more mails than a page holds: follow Graph's link.
        if last is not None and (oldest is None or last < oldest):
            oldest = last.replace(microsecond=0)
            url = _backfill_url(folder, start, oldest + dt.timedelta(seconds=1), filters)


def _backfill_url(folder: str, start: dt.datetime, end: dt.datetime | None, filters: Filters) -> str:
    terms = [f"receivedDateTime ge {odata_time(start)}"]
    if end:
        terms.append(f"receivedDateTime le {odata_time(end)}")
    addresses = filters.addresses()
    if 0 < len(addresses) <= _MAX_SENDERS_IN_QUERY:
        senders = (f"from/emailAddress/address eq {odata_literal(address)}" for address in addresses)
        terms.append(f"({' or '.join(senders)})")
    return graph_url(
        "me", "mailFolders", folder, "messages",
        select=_LISTED, filter=" and ".join(terms), orderby="receivedDateTime desc", top="200",
    )  # fmt: skip


def _refs(listed: list[dict[str, Any]], filters: Filters) -> list[MessageRef]:
    """Return the messages of a page, except those that the page already shows not to be admitted."""
    refs = []
    for row in listed:
        source_id = row.get("id")
        if not isinstance(source_id, str) or "@removed" in row or row.get("isDraft") is True:
            continue
        sender = _mailbox_address(row["from"]) if isinstance(row.get("from"), dict) else None
        if sender is not None and not filters.admits_sender(sender):
            continue
        if filters.admits_time(parse_time(row.get("receivedDateTime"))):
            # A mail's content never changes under its id; only flags such as "read" do.
            refs.append(MessageRef(source_id, fingerprint("outlook", source_id)))
    return refs


def _mailbox_address(recipient: dict[str, Any]) -> str:
    found = recipient.get("emailAddress")
    found = found if isinstance(found, dict) else {}
    name, mailbox = (
        message_documents.clean_text(found.get("name")),
        message_documents.clean_text(found.get("address")),
    )
    if not name or name == mailbox:
        return mailbox
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}" <{mailbox}>' if any(sign in name for sign in ',;<>"@()') else f"{name} <{mailbox}>"


def _is_read_whole(answer: dict[str, Any], attachments: list[dict[str, Any]]) -> bool:
    """Return whether it is an invitation or signed: then Graph's body does not hold its content."""
    return "eventMessage" in str(answer.get("@odata.type", "")) or any(
        is_signed(str(each.get("contentType")), str(each.get("name"))) for each in attachments
    )


def _listed(attachment: dict[str, Any]) -> Message:
    """Return an attachment as a part without content."""
    is_item = _is_item(attachment)
    kind = "message/rfc822" if is_item else message_documents.clean_text(attachment.get("contentType"))
    name = message_documents.clean_text(attachment.get("name"))
    return message_documents.attachment_part(name, kind, attachment.get("size"))


def _is_read(part: Message, attachment: dict[str, Any]) -> bool:
    """Return whether an attachment is fetched: mails, texts and calendars that are not too large."""
    size, most = attachment.get("size"), _MAX_NESTED_BYTES if _is_item(attachment) else _MAX_ATTACHED_BYTES
    name = message_documents.clean_text(attachment.get("name"))
    return (
        isinstance(attachment.get("id"), str)
        and isinstance(size, int)
        and size <= most
        and is_read(part.get_content_type(), name)
    )


def _is_item(attachment: dict[str, Any]) -> bool:
    return str(attachment.get("@odata.type", "")).endswith("itemAttachment")


def _message(answer: dict[str, Any]) -> Message:
    """Return the message with its headers."""
    message = Message()
    message["Content-Type"] = "multipart/mixed"
    if received := parse_time(answer.get("receivedDateTime")):
        message["Date"] = received.isoformat()
    if isinstance(answer.get("from"), dict):
        message["From"] = _mailbox_address(answer["from"])
    for header, field in (("To", "toRecipients"), ("Cc", "ccRecipients")):
        if people := ", ".join(filter(None, map(_mailbox_address, dicts(answer.get(field))))):
            message[header] = people
    message["Subject"] = message_documents.clean_text(answer.get("subject"))
    message["Message-ID"] = message_documents.clean_text(answer.get("internetMessageId"))
    return message


def _body(body: object) -> tuple[bytes, str]:
    found = body if isinstance(body, dict) else {}
    kind = "text/html" if str(found.get("contentType", "")).lower() == "html" else "text/plain"
    return message_documents.clean_text(found.get("content")).encode(), kind
