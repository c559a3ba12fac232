"""Gmail through Google's own client: its history since the last reading, or a list of what a bounded time brought.

The client builds the requests and we send them. Its own transport blocks a thread for each, reads an answer of any
size, and knows nothing of the other requests to the mailbox.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from functools import cache
from typing import Any, Final

from integrations.mail import message_parts
from integrations.mail.cursor import Cursor, sync_start
from integrations.mail.documents import MailItem, SkippedMessage, fingerprint
from integrations.mail.errors import InvalidResponse, NoSuchFolder, PageLoop, ResourceGone
from integrations.mail.filters import Filters
from integrations.mail.provider_client import ProviderClient, api_base
from integrations.mail.sync import ListedPage, MailboxSync, MessageRef
from integrations.models import Provider

_PAGE_SIZE: Final = 500
# What nobody means by mail. Drafts change under new ids, and chats are another product's.
_UNWANTED: Final = frozenset({"DRAFT", "SPAM", "TRASH", "CHAT"})
_TRASH_LABELS: Final = frozenset({"SPAM", "TRASH"})  # what a mail may come back from
_FIELDS: Final = "id,labelIds,internalDate,payload"
_MAX_PART_DEPTH: Final = 30
_MAX_PARTS: Final = 1_000
# Codes in which a text looks like ASCII, with what gives them away.
_SEVEN_BIT_CHARSETS: Final = {"iso-2022": b"\x1b", "hz": b"~{", "utf-7": b"+"}


@dataclass(frozen=True)
class _Api:
    """The library's resources. It makes one anew, with all its methods, whenever it is asked for it."""

    users: Any
    labels: Any
    history: Any
    messages: Any
    attachments: Any


@cache
def _resources(endpoint: str) -> _Api:
    from googleapiclient.discovery import build  # 0.2 s, which no process pays before its first mailbox

    # The HTTP object is never used; without one, the library looks for credentials of this machine.
    service = build(
        "gmail",
        "v1",
        http=object(),
        static_discovery=True,
        cache_discovery=False,
        client_options={"api_endpoint": endpoint},
    )
    users = service.users()
    messages = users.messages()
    return _Api(users, users.labels(), users.history(), messages, messages.attachments())


class GmailSync(MailboxSync):
    """`labels` are names or ids of Gmail's labels; a message with any of them is wanted."""

    provider = Provider.GMAIL

    @property
    def _api(self) -> _Api:
        return _resources(api_base(self.provider))

    async def _pages(
        self, client: ProviderClient, cursor: Cursor, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        self._labels, skipped = await self._label_ids(client, filters.labels)
        if skipped:
            yield ListedPage(skipped=skipped)
        if position := cursor.state.get("history"):
            try:
                async for page in self._history(client, str(position), cursor.at):
                    yield page
                return
            except ResourceGone:
                pass  # Google keeps a history for some days or weeks
        read_at = cursor.at if position else None
        async for page in self._backfill(client, sync_start(filters, read_at), filters):
            yield page

    async def _label_ids(
        self, client: ProviderClient, wanted: Iterable[str]
    ) -> tuple[list[str], list[SkippedMessage]]:
        """The ids of the labels that were named, and which of them there are not. Raise NoSuchFolder if all."""
        names = list(wanted)
        if not names:
            return [], []
        listed = await client.get_json(self._api.labels.list(userId="me").uri)
        ids: dict[str, str] = {}
        for label in _dicts(listed.get("labels")):
            if isinstance(label.get("id"), str):
                ids[str(label.get("name", "")).casefold()] = label["id"]
                ids[label["id"].casefold()] = label["id"]
        found = [ids[name.casefold()] for name in names if name.casefold() in ids]
        missing = [name for name in names if name.casefold() not in ids]
        if not found:
            raise NoSuchFolder("none of the labels of this agent is in the mailbox")
        reason = "there is no such label in the mailbox"
        return found, [SkippedMessage(name, "no_such_folder", reason) for name in missing]

    async def _history(
        self, client: ProviderClient, position: str, read_at: dt.datetime
    ) -> AsyncGenerator[ListedPage, None]:
        """What was added, got a wanted label, or came back from spam or the bin since a position, which was the last
        reading's at that time. Raise ResourceGone if it has expired."""
        kinds = ["messageAdded", "labelRemoved", *(["labelAdded"] if self._labels else [])]
        ends: str | None = None
        async for answer in self._paged(
            client, self._api.history, startHistoryId=position, historyTypes=kinds
        ):
            # The first answer's: what is added while the others are fetched is for the next reading.
            ends = ends or _digits(answer.get("historyId"))
            refs, last = [], None
            for record in _dicts(answer.get("history")):
                last = _digits(record.get("id")) or last
                for kind in ("messagesAdded", "labelsAdded", "labelsRemoved"):
                    for change in _dicts(record.get(kind)):
                        message = change.get("message")
                        if kind == "labelsRemoved" and not _TRASH_LABELS & _strings(change.get("labelIds")):
                            continue  # it was read, archived …
                        # Where its labels are not said, it is fetched, and they are seen then.
                        labels = message.get("labelIds") if isinstance(message, dict) else None
                        if isinstance(message, dict) and (labels is None or self._wants(labels)):
                            refs += _refs([message])
            is_last = not answer.get("nextPageToken")
            now_at = ends if is_last else last
            state = None if now_at is None else {"history": now_at}
            yield ListedPage(refs, state=state, read_at=None if is_last else read_at)

    async def _backfill(
        self, client: ProviderClient, start: dt.datetime, filters: Filters
    ) -> AsyncGenerator[ListedPage, None]:
        """What came since a time. The position is taken before: what comes meanwhile is in the history after it."""
        position = _digits(
            (await client.get_json(self._api.users.getProfile(userId="me").uri)).get("historyId")
        )
        if position is None:
            raise InvalidResponse("Gmail does not say where its history stands")
        query = _query(start, filters)
        # The labels of one request must all be there, and we want any: a list for each.
        for label in self._labels or [""]:
            only = {"labelIds": [label]} if label else {}
            for _ in range(2):
                pages = 0
                async for answer in self._paged(client, self._api.messages, q=query, **only):
                    yield ListedPage(_refs(_dicts(answer.get("messages"))))
                    pages += 1
                if pages < 2:
                    break
                # What left the list while it was read may have moved others onto a page that was read already. The
                # second time only what is new is fetched, so it is soon over.
        yield ListedPage(state={"history": position})

    async def _paged(
        self, client: ProviderClient, resource: Any, **arguments: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        seen: set[str] = set()
        token: str | None = None
        while True:
            request = resource.list(userId="me", maxResults=_PAGE_SIZE, pageToken=token, **arguments)
            answer = await client.get_json(request.uri)
            yield answer
            token = answer.get("nextPageToken")
            if not token:
                return
            if not isinstance(token, str) or token in seen:
                raise PageLoop("Gmail's list of messages leads back to where it was")
            seen.add(token)

    async def _fetch(self, client: ProviderClient, ref: MessageRef, filters: Filters) -> MailItem | None:
        request = self._api.messages.get(userId="me", id=ref.source_id, format="full", fields=_FIELDS)
        answer = await client.get_json(request.uri)
        sent_at = _moment(answer.get("internalDate"))
        payload = answer.get("payload")
        if not self._wants(answer.get("labelIds")) or not filters.admits_time(sent_at):
            return None
        if not isinstance(payload, dict):
            return SkippedMessage(ref.source_id, "unreadable", "Gmail gave no content for this message")
        await self._complete(client, ref.source_id, payload)
        parts = _MessageBuilder()
        message = parts.message(payload)
        if parts.is_cut:
            return SkippedMessage(ref.source_id, "unreadable", "its parts lie too deep in one another")
        item = await message_parts.read_document(
            message, size=parts.size, source_id=ref.source_id, content_hash=ref.content_hash, sent_at=sent_at
        )
        sender = item.sender if not isinstance(item, SkippedMessage) else str(message.get("From", ""))
        return item if filters.admits_sender(sender) else None

    async def _complete(self, client: ProviderClient, source_id: str, payload: dict[str, Any]) -> None:
        """Fetch the texts that Gmail keeps apart because they are long. What is attached stays where it is."""
        for part in _walk(payload):
            body = part.get("body")
            if (
                isinstance(body, dict)
                and isinstance(body.get("attachmentId"), str)
                and str(part.get("mimeType")) in ("text/plain", "text/html")
                and not part.get("filename")
            ):
                request = self._api.attachments.get(userId="me", messageId=source_id, id=body["attachmentId"])
                body["data"] = (await client.get_json(request.uri)).get("data")

    def _wants(self, labels: object) -> bool:
        has = _strings(labels)
        if has & _UNWANTED - set(self._labels):
            return False
        return not self._labels or bool(has & set(self._labels))


def _query(start: dt.datetime, filters: Filters) -> str:
    """Gmail's search. Only numbers and plain addresses get into it."""
    terms = [f"after:{int(start.timestamp()) - 1}", "-in:drafts", "-in:chats"]
    if filters.end:
        terms.append(f"before:{int(filters.end.timestamp()) + 1}")
    if addresses := filters.addresses():
        terms.append("{" + " ".join(f"from:{address}" for address in addresses) + "}")
    return " ".join(terms)


def _refs(messages: Iterable[dict[str, Any]]) -> list[MessageRef]:
    # A message's content never changes under its id.
    return [
        MessageRef(message["id"], fingerprint("gmail", message["id"]))
        for message in messages
        if isinstance(message.get("id"), str)
    ]


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    return (each for each in value if isinstance(each, dict)) if isinstance(value, list) else iter(())


def _strings(value: object) -> set[str]:
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()


def _digits(value: object) -> str | None:
    text = str(value)
    return text if text.isascii() and text.isdigit() else None


def _moment(milliseconds: object) -> dt.datetime | None:
    try:
        return dt.datetime.fromtimestamp(int(str(milliseconds)) / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None


# ── A message's parts, as Gmail took them apart ─────────────────────────────────────────────────────────


def _walk(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    stack = [(payload, 0)]
    while stack:
        part, depth = stack.pop()
        yield part
        if depth < _MAX_PART_DEPTH:
            stack += [(child, depth + 1) for child in _dicts(part.get("parts"))]


class _MessageBuilder:
    """Puts a message together again, so that it is read as all mails are. `size`: of its texts, in bytes. `is_cut`:
    there was more below than is gone into."""

    def __init__(self) -> None:
        self.size = 0
        self.is_cut = False
        self._made = 0

    def message(self, part: dict[str, Any], depth: int = 0) -> Message:
        self._made += 1
        kind = message_parts.clean_text(part.get("mimeType")) or "text/plain"
        message = Message()
        for header in _dicts(part.get("headers")):
            name = message_parts.clean_text(header.get("name"))
            # The body is decoded already.
            if name and name.lower() != "content-transfer-encoding":
                message[name] = message_parts.clean_text(header.get("value"))
        if message.get_content_type() != kind.lower():
            del message["Content-Type"]
            message["Content-Type"] = kind
        children = list(_dicts(part.get("parts")))
        if children and depth >= _MAX_PART_DEPTH:
            self.is_cut, children = True, []
        if children:
            message.set_payload(
                [self.message(child, depth + 1) for child in children if self._made < _MAX_PARTS]
            )
            return message
        body = part.get("body")
        self._fill(message, body if isinstance(body, dict) else {}, str(part.get("filename") or ""))
        return message

    def _fill(self, message: Message, body: dict[str, Any], filename: str) -> None:
        raw = _decoded(body.get("data"))
        self.size += len(raw)
        if filename and not message.get_filename():
            message.add_header(
                "Content-Disposition", "attachment", filename=message_parts.clean_text(filename)
            )
        if not raw and isinstance(body.get("size"), int) and body["size"]:
            if "Content-Disposition" not in message:
                message["Content-Disposition"] = "attachment"
            message.set_param("size", str(body["size"]), "Content-Disposition")
        charset = str(message.get_param("charset", "")).lower()
        if not _is_encoded(raw, charset) and _is_utf8(raw):
            message.set_param(
                "charset", "utf-8"
            )  # what Gmail makes of a text, whatever its headers go on to say
        message.set_payload(raw.decode("ascii", "surrogateescape"))


def _is_encoded(raw: bytes, charset: str) -> bool:
    return any(charset.startswith(code) and mark in raw for code, mark in _SEVEN_BIT_CHARSETS.items())


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(data: object) -> bytes:
    if not isinstance(data, str):
        return b""
    try:
        return base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
    except (binascii.Error, ValueError):
        return b""
