"""What Outlook and Teams have in common in Microsoft Graph: pages, delta links, times."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

from integrations.errors import ForbiddenHost
from integrations.mail.cursor import Cursor
from integrations.mail.errors import InvalidResponse, PageLoop, ProviderRefused
from integrations.mail.provider_client import ProviderClient

MAX_PAGES: Final = 20_000
# What Graph says, with 400 as well as 410, when a delta link leads nowhere any more.
_EXPIRED_CODES: Final = frozenset(
    {"resyncrequired", "syncstatenotfound", "syncstateinvalid", "badrequest.invaliddeltatoken"}
)


class DeltaLinkExpired(InvalidResponse):
    """A delta link is of no use any more: all of a bounded time has to be read again."""


class DeltaLinks:
    """Where the next reading of each folder or channel goes on, and when the one began that found that."""

    def __init__(self, cursor: Cursor, now: dt.datetime, keys: Collection[str]) -> None:
        stored = cursor.state.get("links")
        self._links = {key: dict(link) for key, link in (stored or {}).items() if key in keys}
        self._now = now

    def get(self, key: str) -> tuple[str, dt.datetime] | None:
        found = self._links.get(key)
        return (found["link"], dt.datetime.fromisoformat(found["at"])) if found else None

    def move(self, key: str, link: str) -> dict[str, Any]:
        """The state in which this one is read. The others' stand as they were: what they have to tell is not."""
        self._links[key] = {"link": link, "at": self._now.isoformat()}
        return {"links": {key: dict(link) for key, link in self._links.items()}}


@dataclass
class DeltaQuery:
    """What changed since a delta link, or from an address on that begins one."""

    client: ProviderClient
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    _link: str | None = field(default=None, init=False)

    @property
    def end(self) -> str:
        """Where the next reading goes on, once all pages were read."""
        assert self._link is not None
        return self._link

    async def pages(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The rows of each page. Raise Expired, or as ProviderClient.get_json does."""
        try:
            self.client.checked_url(self.url)
        except ForbiddenHost:  # kept before this server was told of another API
            raise DeltaLinkExpired(
                f"the last reading of {self.client.provider} was at another address"
            ) from None
        try:
            async for answer in pages(self.client, self.url, self.headers):
                yield dicts(answer.get("value"))
                if isinstance(link := answer.get("@odata.deltaLink"), str):
                    self.client.checked_url(link)
                    self._link = link
        except ProviderRefused as refused:
            if refused.http_status == 410 or refused.reason.lower() in _EXPIRED_CODES:
                raise DeltaLinkExpired(
                    f"{self.client.provider} does not know how far the last reading got"
                ) from None
            raise
        if self._link is None:
            raise InvalidResponse(f"{self.client.provider} does not say where the next reading is to go on")


async def pages(
    client: ProviderClient, url: str, headers: Mapping[str, str] | None = None, *, most: int = MAX_PAGES
) -> AsyncGenerator[dict[str, Any], None]:
    """The pages from an address on. Raise PageLoop if they lead back, ForbiddenHost if they lead away."""
    seen: set[str] = set()
    while url:
        seen.add(url)
        answer = await client.get_json(url, headers)
        yield answer
        following = answer.get("@odata.nextLink") or ""
        if not isinstance(following, str) or following in seen or len(seen) >= MAX_PAGES:
            raise PageLoop(f"the pages of {client.provider} lead back to where they were")
        if len(seen) >= most:
            return
        url = following


async def rows(
    client: ProviderClient, url: str, headers: Mapping[str, str] | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """All that the pages from an address on list."""
    async for answer in pages(client, url, headers):
        for row in dicts(answer.get("value")):
            yield row


def graph_url(*path: str, **options: str) -> str:
    """An address below the API's, whatever is in the ids and values. An option `top` is Graph's `$top`."""
    query = urlencode({f"${name}": value for name, value in options.items() if value}, quote_via=quote)
    return "/".join(quote(part, safe="") for part in path) + (f"?{query}" if query else "")


def odata_literal(text: str) -> str:
    """A text within an OData filter."""
    return "'" + text.replace("'", "''") + "'"


def odata_time(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(value: object) -> dt.datetime | None:
    """A time of Graph's, which may be in tenths of microseconds."""
    if not isinstance(value, str):
        return None
    whole, dot, fraction = value.removesuffix("Z").partition(".")
    try:
        found = dt.datetime.fromisoformat(whole + (dot + fraction[:6].ljust(6, "0") if dot else ""))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
