"""Gmail on loopback: profile, labels, messages, history, with the rules that matter to a reader of it.

with Google() as google:
    settings.GOOGLE["api"] = google.url
    box = google.mailbox("ann")
    box.add(b"Subject: Hello…")
    Gmail(Account(…, box.token)).messages(…)
"""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from typing import Any

from aiohttp import web

from tests.fakes.mailboxes import Box, NotHere, Server

_LONG = 200_000  # bytes of a text that Gmail keeps apart


@dataclass
class Stored:
    id: str
    raw: bytes
    labels: list[str]
    milliseconds: int


@dataclass
class GmailBox(Box):
    labels: dict[str, str] = field(default_factory=lambda: {"INBOX": "INBOX", "SENT": "SENT"})  # id → name
    messages: dict[str, Stored] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    history_id: int = 1000
    forgotten: int = 0  # the history up to here is gone
    queries: list[str] = field(default_factory=list)

    def add(self, raw: bytes, *labels: str, at: float | None = None) -> str:
        number = len(self.messages) + 1
        message = Stored(f"m{number:06x}", raw, list(labels or ["INBOX"]), int((at or time.time()) * 1000))
        self.messages[message.id] = message
        self._record("messagesAdded", message)
        return message.id

    def label(self, message_id: str, label: str) -> None:
        self.messages[message_id].labels.append(label)
        self._record("labelsAdded", self.messages[message_id])

    def delete(self, message_id: str) -> None:
        """Delete a message. Lists made before still name it."""
        self.messages[message_id].raw = b""

    def forget(self) -> None:
        """Drop the history, as Google does with old history."""
        self.forgotten = self.history_id

    def _record(self, kind: str, message: Stored) -> None:
        self.history_id += 3
        named = {"id": message.id, "threadId": message.id, "labelIds": list(message.labels)}
        self.history.append({"id": str(self.history_id), kind: [{"message": named}]})


class Google(Server):
    def mailbox(self, name: str) -> GmailBox:
        box = self.boxes[name] = GmailBox(name)
        return box

    def error(self, status: int, reason: str) -> dict[str, Any]:
        return {"error": {"code": status, "message": "a secret of the mail", "errors": [{"reason": reason}]}}

    def answer(self, box: GmailBox, http: web.Request) -> Any:
        path = http.path.removeprefix("/gmail/v1/users/me/")
        match path.split("/"):
            case ["profile"]:
                return {"emailAddress": f"{box.name}@example.com", "historyId": str(box.history_id)}
            case ["labels"]:
                return {"labels": [{"id": key, "name": name} for key, name in box.labels.items()]}
            case ["messages"]:
                return self._list(box, http)
            case ["history"]:
                return self._history(box, http)
            case ["messages", message_id]:
                return self._message(box, message_id)
            case ["messages", message_id, "attachments", place]:
                number = place.removeprefix("attachment-")
                part = list(message_from_bytes(box.messages[message_id].raw).walk())[int(number)]
                raw = part.get_payload(decode=True)
                return {
                    "data": _base64(
                        _text_of(part) if number == place else raw if isinstance(raw, bytes) else b""
                    )
                }
        raise NotHere

    def _list(self, box: GmailBox, http: web.Request) -> dict[str, Any]:
        query, labels = http.query.get("q", ""), http.query.getall("labelIds", [])
        box.queries.append(query)
        after = re.search(r"after:(\d+)", query)
        before = re.search(r"before:(\d+)", query)
        senders = re.findall(r"from:(\S+?)[ }]", query)
        left_out = {name.upper() for name in re.findall(r"-in:(\w+)s\b", query)}
        if http.query.get("includeSpamTrash") != "true":
            left_out |= {"SPAM", "TRASH"}
        found = [
            message
            for message in reversed(box.messages.values())
            if (not after or message.milliseconds > int(after[1]) * 1000)
            and (not before or message.milliseconds < int(before[1]) * 1000)
            and set(labels) <= set(message.labels)
            and not left_out & set(message.labels)
            and (not senders or any(sender.encode() in message.raw for sender in senders))
        ]
        rows = [{"id": message.id, "threadId": message.id} for message in found]
        return _page(box, http, "messages", rows)

    def _history(self, box: GmailBox, http: web.Request) -> dict[str, Any]:
        start = int(http.query["startHistoryId"])
        if start < box.forgotten:
            raise NotHere
        kinds = {
            "messageAdded": "messagesAdded",
            "labelAdded": "labelsAdded",
            "labelRemoved": "labelsRemoved",
        }
        wanted = {kinds[kind] for kind in http.query.getall("historyTypes", [])}
        rows = [row for row in box.history if int(row["id"]) > start and wanted & row.keys()]
        return {**_page(box, http, "history", rows), "historyId": str(box.history_id)}

    def _message(self, box: GmailBox, message_id: str) -> dict[str, Any]:
        message = box.messages.get(message_id)
        if message is None or not message.raw:
            raise NotHere
        parts = iter(range(1_000_000))
        return {
            "id": message.id,
            "labelIds": message.labels,
            "internalDate": str(message.milliseconds),
            "payload": payload_of(message_from_bytes(message.raw), parts),
        }


def _page(box: GmailBox, http: web.Request, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    token = http.query.get("pageToken", "")
    start, end = box.span(token, int(http.query.get("maxResults", 100)))
    answer: dict[str, Any] = {name: rows[start:end]} if rows[start:end] else {}
    return {**answer, "nextPageToken": box.following(token, end)} if end < len(rows) else answer


def payload_of(part: Message, places: Any) -> dict[str, Any]:
    """A mail in parts, as Gmail returns it: texts decoded and in UTF-8, attachments left out."""
    place, kind, name = next(places), part.get_content_type(), part.get_filename() or ""
    headers = [{"name": key, "value": str(value)} for key, value in part.items()]
    made: dict[str, Any] = {"partId": str(place), "mimeType": kind, "filename": name, "headers": headers}
    children = part.get_payload()
    if part.is_multipart() and isinstance(children, list):
        return {**made, "body": {"size": 0}, "parts": [payload_of(child, places) for child in children]}
    if kind.startswith("multipart/"):
        made["mimeType"] = "text/plain"  # as it is, where a multipart has no parts
    elif name or not kind.startswith("text/"):
        raw = part.get_payload(decode=True) or b""
        return {**made, "body": {"size": len(raw), "attachmentId": f"attachment-{place}"}}
    text = _text_of(part)
    if len(text) > _LONG:
        return {**made, "body": {"size": len(text), "attachmentId": str(place)}}
    return {**made, "body": {"size": len(text), "data": _base64(text)}}


def _text_of(part: Message) -> bytes:
    raw = part.get_payload(decode=True)
    raw = raw if isinstance(raw, bytes) else b""
    try:
        return raw.decode(part.get_content_charset() or "utf-8").encode()
    except (LookupError, ValueError):
        return raw


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()
