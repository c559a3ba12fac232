"""Microsoft Graph on loopback: mail folders, messages and Teams channels, with delta links.

with Graph() as graph:
    settings.MICROSOFT["api"] = graph.api
    box = graph.mailbox("ann")
    box.add("Hello", "<p>Text</p>", kind="html", folder="id-inbox")
    Outlook(Account(…, box.token)).messages(…)
    box.post("Sales", "General", "A message", reply_to=…)
    Teams(Account(…, box.token)).messages(…)
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from tests.fakes.mailboxes import Box, NotHere, Server

KNOWN = ("inbox", "archive", "sentitems", "drafts", "deleteditems", "junkemail", "outbox")


def stamp(moment: dt.datetime | None = None) -> str:
    return (moment or dt.datetime.now(dt.UTC)).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


@dataclass
class GraphBox(Box):
    folders: dict[str, tuple[str, str]] = field(default_factory=dict)  # id → name, id of the one above
    messages: dict[str, dict[str, Any]] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)  # of mails that are attached
    posts: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    changes: dict[str, list[str]] = field(default_factory=dict)  # by folder or channel, ids in order
    age: int = 1  # delta links of an older age have expired
    filters: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folders = {f"id-{name}": (name.capitalize(), "") for name in KNOWN}

    def folder(self, name: str, below: str = "") -> str:
        self.folders[f"id-{name}"] = (name, below)
        return f"id-{name}"

    def add(
        self,
        subject: Any = "Hello",
        content: str = "text",
        *,
        folder: str = "id-inbox",
        kind: str = "text",
        sender: str = "bea@example.com",
        name: str = "Bea",
        at: dt.datetime | None = None,
        attachments: list[dict[str, Any]] | None = None,
        **fields: Any,
    ) -> str:
        key = f"AA/{len(self.messages) + 1:05}="
        person = {"emailAddress": {"name": name, "address": sender}}
        self.messages[key] = {
            "id": key,
            "folder": folder,
            "subject": subject,
            "from": person,
            "toRecipients": [{"emailAddress": {"name": "Ann", "address": "ann@example.com"}}],
            "receivedDateTime": stamp(at),
            "body": {"contentType": kind, "content": content},
            "hasAttachments": bool(attachments),
            "isDraft": False,
            "attachments": attachments or [],
            **fields,
        }
        self.changes.setdefault(folder, []).append(key)
        return key

    def move(self, key: str, folder: str) -> None:
        self.messages[key]["folder"] = folder
        self.changes.setdefault(folder, []).append(key)

    def delete(self, key: str) -> None:
        """Delete a message. Lists still name it."""
        self.messages[key]["gone"] = True

    def forget(self) -> None:
        """Invalidate all delta links, as Graph does with old ones."""
        self.age += 1

    def post(
        self, team: str, channel: str, content: str, *, reply_to: str = "", who: str = "Bea", **fields: Any
    ) -> str:
        posts = self.posts.setdefault((team, channel), [])
        key = f"16{len(posts) + 1:08}"
        posts.append(
            {
                "id": key,
                "replyToId": reply_to or None,
                "messageType": "message",
                "createdDateTime": stamp(),
                "from": {"user": {"id": f"u-{who}", "displayName": who}},
                "body": {"contentType": "html", "content": content},
                **fields,
            }
        )
        if not reply_to:
            self.changes.setdefault(f"{team}/{channel}", []).append(key)
        return key


class Graph(Server):
    @property
    def api(self) -> str:
        return f"{self.url}/v1.0"

    def mailbox(self, name: str) -> GraphBox:
        box = self.boxes[name] = GraphBox(name)
        return box

    def error(self, status: int, reason: str) -> dict[str, Any]:
        return {"error": {"code": reason or "generalException", "message": "a secret of the mail"}}

    def answer(self, box: GraphBox, http: web.Request) -> Any:
        path = [unquote(part) for part in http.rel_url.raw_path.split("/")[2:]]
        match path:
            case ["me", "mailFolders"]:
                return self._folders(box, http, "")
            case ["me", "mailFolders", name]:
                key = f"id-{name}" if name in KNOWN else name
                if key not in box.folders:
                    raise NotHere(404, "ErrorItemNotFound")
                return {"id": key}
            case ["me", "mailFolders", key, "childFolders"]:
                return self._folders(box, http, key)
            case ["me", "mailFolders", key, "messages"]:
                return self._messages(box, http, key)
            case ["me", "mailFolders", key, "messages", "delta"]:
                if key not in box.folders:
                    raise NotHere(404, "ErrorItemNotFound")
                rows = {each["id"]: _listed(each) for each in box.messages.values() if each["folder"] == key}
                return self._delta(box, http, key, rows, "receivedDateTime")
            case ["me", "messages", key]:
                message = box.messages.get(key)
                if message is None or message.get("gone"):
                    raise NotHere(404, "ErrorItemNotFound")
                return message
            case ["me", "messages", key, "$value"] | ["me", "messages", _, "attachments", key, "$value"]:
                if key not in box.raw:
                    raise NotHere(404, "ErrorItemNotFound")
                return box.raw[key]
            case ["me", "joinedTeams"]:
                teams = dict.fromkeys(team for team, _ in box.posts)
                return {"value": [{"id": f"t-{team}", "displayName": team} for team in teams]}
            case ["teams", team, "channels"]:
                channels = [channel for of, channel in box.posts if f"t-{of}" == team]
                return {"value": [{"id": f"19:{name}@thread", "displayName": name} for name in channels]}
            case ["teams", team, "channels", channel, "messages", *rest]:
                key = (team.removeprefix("t-"), channel.removeprefix("19:").removesuffix("@thread"))
                return self._channel(box, http, key, rest)
        raise NotHere

    def _folders(self, box: GraphBox, http: web.Request, above: str) -> dict[str, Any]:
        rows = [
            {
                "id": key,
                "displayName": name,
                "childFolderCount": sum(up == key for _, up in box.folders.values()),
            }
            for key, (name, up) in box.folders.items()
            if up == above
        ]
        return self._page(box, http, rows)

    def _messages(self, box: GraphBox, http: web.Request, folder: str) -> dict[str, Any]:
        query = http.query.get("$filter", "")
        box.filters.append(query)
        senders = re.findall(r"address eq '([^']*)'", query)
        rows = [
            _listed(each)
            for each in sorted(box.messages.values(), key=lambda each: each["receivedDateTime"], reverse=True)
            if each["folder"] == folder
            and _admits(query, each["receivedDateTime"])
            and (not senders or each["from"]["emailAddress"]["address"] in senders)
        ]
        return self._page(box, http, rows)

    def _channel(self, box: GraphBox, http: web.Request, key: tuple[str, str], rest: list[str]) -> Any:
        posts = box.posts.get(key)
        if posts is None:
            raise NotHere(403, "Forbidden")
        threads = [each for each in posts if not each["replyToId"]]
        replies_to: dict[str, list[dict[str, Any]]] = {}
        for each in posts:
            replies_to.setdefault(each["replyToId"], []).append(each)
        match rest:
            case ["delta"]:
                rows = {each["id"]: each for each in threads}
                return self._delta(box, http, "/".join(key), rows, "createdDateTime")
            case [thread, "replies"]:
                return self._page(box, http, replies_to.get(thread, []))
        rows = []
        for thread in reversed(threads):
            replies = replies_to.get(thread["id"], [])
            row = {**thread, "replies": replies[:3]}
            if len(replies) > 3:
                more = f"{http.url.origin()}{http.rel_url.raw_path}/{thread['id']}/replies?$skiptoken=3"
                row["replies@odata.nextLink"] = more
            rows.append(row)
        return self._page(box, http, rows)

    def _page(self, box: GraphBox, http: web.Request, rows: list[dict[str, Any]]) -> dict[str, Any]:
        token = http.query.get("$skiptoken", "")
        start, end = box.span(token, int(http.query.get("$top", 50)))
        answer: dict[str, Any] = {"value": rows[start:end]}
        if end < len(rows):
            link = http.url.update_query({"$skiptoken": box.following(token, end)})
            answer["@odata.nextLink"] = str(link)
        return answer

    def _delta(
        self, box: GraphBox, http: web.Request, key: str, rows: dict[str, dict[str, Any]], time_field: str
    ) -> dict[str, Any]:
        changes = box.changes.get(key, [])
        start, size, query = 0, box.page or 200, http.query.get("$filter", "")
        token = http.query.get("$deltatoken") or http.query.get("$skiptoken")
        if token:
            age, _, place = token.partition(".")
            if int(age) != box.age:
                raise NotHere(410, "SyncStateNotFound")
            start = int(place)
        else:
            box.filters.append(query)
        end = min(start + size, len(changes))
        found = [rows[each] for each in dict.fromkeys(changes[start:end]) if each in rows]
        found = [row for row in found if _admits(query, row[time_field])]
        here = http.url.with_query({"$filter": query} if query else {})
        more = end < len(changes)
        name = "$skiptoken" if more else "$deltatoken"
        link = str(here.update_query({name: f"{box.age}.{end}"}))
        return {"value": found, "@odata.nextLink" if more else "@odata.deltaLink": link}


def _listed(message: dict[str, Any]) -> dict[str, Any]:
    return {key: message[key] for key in ("id", "receivedDateTime", "from", "isDraft")}


def _admits(query: str, moment: str) -> bool:
    """Evaluate a filter. Only comparisons of a time are supported."""
    for sign, bound in re.findall(r"DateTime (ge|gt|le) (\S+?Z)", query):
        if (moment[:19] < bound[:19]) if sign in ("ge", "gt") else (moment[:19] > bound[:19]):
            return False
    return True
