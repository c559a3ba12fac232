"""Gmail sync: the mailbox's history since the last sync, or a list of the messages of a bounded time.

Google's client library builds the requests, and our client sends them. The library's own transport would block a
thread per request, read answers of any size, and ignore the limit per mailbox.
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

from adiuva.documents.mail import is_read
from integrations.mail import message_documents
from integrations.mail.cursor import Cursor, sync_start
from integrations.mail.errors import InvalidResponse, NoSuchFolder, PageLoop, ResourceGone
from integrations.mail.filters import Filters
from integrations.mail.mailbox_types import MailItem, SkippedMessage, fingerprint
from integrations.mail.provider_http import ProviderClient, api_base
from integrations.mail.sync import ListedPage, MailboxSync, MessageRef
from integrations.models import Provider

_PAGE_SIZE: Final = 500
# Labels that are not read unless named. Drafts get a new id with each change; chats belong to another product.
_UNWANTED: Final = frozenset({"DRAFT", "SPAM", "TRASH", "CHAT"})
# A mail that loses one of these labels was restored, and counts as new. Gmail lists it only if asked to.
_TRASH_LABELS: Final = frozenset({"SPAM", "TRASH"})
# The names in a search of those that Gmail lists without being asked.
_LISTED_LABELS: Final = {"DRAFT": "drafts", "CHAT": "chats"}
_FIELDS: Final = "id,labelIds,internalDate,payload"
# The largest attachment that is read, and the most attachments of a message that are fetched.
_MAX_ATTACHED_BYTES: Final = 1024 * 1024
_MAX_ATTACHED: Final = 10
_MAX_PART_DEPTH: Final = 30
_MAX_PARTS: Final = 1_000
# Charsets whose text looks like ASCII, with a byte that reveals each.
_SEVEN_BIT_CHARSETS: Final = {"iso-2022": b"\x1b", "hz": b"~{", "utf-7": b"+"}


@dataclass(frozen=True)
class _Api:
    """The library's resources, kept because it builds a new one with all its methods on every call."""

    users: Any
    labels: Any
    history: Any
    messages: Any
    attachments: Any


@cache
def _resources(endpoint: str) -> _Api:
    from googleapiclient.discovery import build  # takes 0.2 s, so only when first needed

    # The HTTP object is never used; without it, the library looks for this machine's credentials.
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
    """Gmail's sync. Filters' `labels` are names or ids of Gmail labels; a message with any of them is admitted."""

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
                pass  # the position has expired: Google keeps the history for days or weeks
        read_at = cursor.at if position else None
        async for page in self._backfill(client, sync_start(filters, read_at), filters):
            yield page

    async def _label_ids(
        self, client: ProviderClient, wanted: Iterable[str]
    ) -> tuple[list[str], list[SkippedMessage]]:
        """Return the ids of the named labels, and those that do not exist. Raises NoSuchFolder if none exists."""
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
            raise NoSuchFolder("none of the labels of this agent exists in the mailbox")
        reason = "there is no such label in the mailbox"
        return found, [SkippedMessage(name, "no_such_folder", reason) for name in missing]

    async def _history(
        self, client: ProviderClient, position: str, read_at: dt.datetime
    ) -> AsyncGenerator[ListedPage, None]:
        """Yield messages that were added, labelled or restored from spam or trash since a history position.

        `read_at`: when the sync that stored the position began. Raises ResourceGone if the position has expired.
        """
        kinds = ["messageAdded", "labelRemoved", *(["labelAdded"] if self._labels else [])]
        ends: str | None = None
        async for answer in self._paged(
            client, self._api.history, startHistoryId=position, historyTypes=kinds
        ):
            # Keep the position of the first answer: the next sync finds messages that arrive meanwhile.
            ends = ends or _digits(answer.get("historyId"))
            refs, last = [], None
            for record in _dicts(answer.get("history")):
                last = _digits(record.get("id")) or last
                for kind in ("messagesAdded", "labelsAdded", "labelsRemoved"):
                    for change in _dicts(record.get(kind)):
                        message = change.get("message")
                        if kind == "labelsRemoved" and not _TRASH_LABELS & _strings(change.get("labelIds")):
                            continue  # it was marked as read, archived …
                        # A message without its labels is fetched, and they are checked then.
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
        """Yield messages since a time. The position is taken first: later messages are in the history after it."""
        position = _digits(
            (await client.get_json(self._api.users.getProfile(userId="me").uri)).get("historyId")
        )
        if position is None:
            raise InvalidResponse("Gmail does not say where its history stands")
        query = self._query(start, filters)
        # A request with several labels lists messages that have all of them; we want any, so one list per label.
        for label in self._labels or [""]:
            only = {"labelIds": [label], "includeSpamTrash": label in _TRASH_LABELS} if label else {}
            for _ in range(2):
                pages = 0
                async for answer in self._paged(client, self._api.messages, q=query, **only):
                    yield ListedPage(_refs(_dicts(answer.get("messages"))))
                    pages += 1
                if pages < 2:
                    break
                # A message that left the list meanwhile may have moved others onto a page that was already read, so the
                # list is read twice. The second time only new messages are fetched.
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
                raise PageLoop("Gmail's list of messages leads back to an earlier page")
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
        parts = MessageBuilder()
        message = parts.message(payload)
        if parts.is_cut:
            return SkippedMessage(ref.source_id, "unreadable", "its parts are nested too deeply")
        item = await message_documents.read_document(
            message, source_id=ref.source_id, content_hash=ref.content_hash, sent_at=sent_at
        )
        sender = item.sender if not isinstance(item, SkippedMessage) else str(message.get("From", ""))
        return item if filters.admits_sender(sender) else None

    async def _complete(self, client: ProviderClient, source_id: str, payload: dict[str, Any]) -> None:
        """Fetch the parts that Gmail delivers separately: long texts, and attachments to be read."""
        attached = 0
        for part in _walk(payload):
            body = part.get("body")
            if not isinstance(body, dict) or not isinstance(body.get("attachmentId"), str):
                continue
            is_attached = not _is_text(part)
            if not is_attached or (attached < _MAX_ATTACHED and _is_read(part, body)):
                attached += is_attached
                request = self._api.attachments.get(userId="me", messageId=source_id, id=body["attachmentId"])
                body["data"] = (await client.get_json(request.uri)).get("data")

    def _wants(self, labels: object) -> bool:
        has = _strings(labels)
        if has & _UNWANTED - set(self._labels):
            return False
        return not self._labels or bool(has & set(self._labels))

    def _query(self, start: dt.datetime, filters: Filters) -> str:
        """Return a Gmail search. It contains only numbers and plain addresses."""
        terms = [f"after:{int(start.timestamp()) - 1}"]
        terms += [f"-in:{name}" for label, name in _LISTED_LABELS.items() if label not in self._labels]
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


# ── From Gmail's parts to a message ─────────────────────────────────────────────────────────


def _is_text(part: dict[str, Any]) -> bool:
    return str(part.get("mimeType")).lower() in ("text/plain", "text/html") and not part.get("filename")


def _is_read(part: dict[str, Any], body: dict[str, Any]) -> bool:
    size = body.get("size")
    named = message_documents.clean_text(part.get("filename"))
    return is_read(str(part.get("mimeType")), named) and isinstance(size, int) and size <= _MAX_ATTACHED_BYTES


def _walk(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    stack = [(payload, 0)]
    while stack:
        part, depth = stack.pop()
        yield part
        if depth < _MAX_PART_DEPTH:
            stack += [(child, depth + 1) for child in _dicts(part.get("parts"))]


class MessageBuilder:
    """Rebuilds a mail from Gmail's JSON parts, so that it is read like every other mail.

    `is_cut`: whether parts below the deepest level were left out.
    """

    def __init__(self) -> None:
        self.is_cut = False
        self._made = 0

    def message(self, part: dict[str, Any], depth: int = 0) -> Message:
        self._made += 1
        kind = message_documents.clean_text(part.get("mimeType")) or "text/plain"
        message = Message()
        for header in _dicts(part.get("headers")):
            name = message_documents.clean_text(header.get("name"))
            # Gmail has already decoded the body.
            if name and name.lower() != "content-transfer-encoding":
                message[name] = message_documents.clean_text(header.get("value"))
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
        if filename and not message.get_filename():
            message.add_header(
                "Content-Disposition", "attachment", filename=message_documents.clean_text(filename)
            )
        if not raw and isinstance(body.get("size"), int) and body["size"]:
            if "Content-Disposition" not in message:
                message["Content-Disposition"] = "attachment"
            message.set_param("size", str(body["size"]), "Content-Disposition")
        charset = str(message.get_param("charset", "")).lower()
        if not _is_encoded(raw, charset) and _is_utf8(raw):
            # Gmail converts texts to UTF-8 but keeps their headers.
            message.set_param("charset", "utf-8")
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
