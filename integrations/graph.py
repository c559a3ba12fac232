"""The parts of Microsoft Graph that Outlook and Teams share: pages, delta links, times."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

from adiuva.core.errors import Text
from integrations.errors import ForbiddenHost
from integrations.mail.cursor import Cursor
from integrations.mail.errors import InvalidResponse, PageLoop, ProviderRefused
from integrations.mail.provider_http import ProviderClient

MAX_PAGES: Final = 20_000
# Graph's codes, with status 400 or 410, for an expired delta link.
_EXPIRED_CODES: Final = frozenset(
    {"resyncrequired", "syncstatenotfound", "syncstateinvalid", "badrequest.invaliddeltatoken"}
)


class DeltaLinkExpired(InvalidResponse):
    """A delta link is no longer valid: a bounded time must be listed again."""


class DeltaLinks:
    """The delta link of each folder or channel, and when the sync that got the link began."""

    def __init__(self, cursor: Cursor, now: dt.datetime, keys: Collection[str]) -> None:
        stored = cursor.state.get("links")
        self._links = {key: dict(link) for key, link in (stored or {}).items() if key in keys}
        self._now = now

    def get(self, key: str) -> tuple[str, dt.datetime] | None:
        found = self._links.get(key)
        return (found["link"], dt.datetime.fromisoformat(found["at"])) if found else None

    def move(self, key: str, link: str) -> dict[str, Any]:
        """Store a new link for one folder; return the cursor state. The other folders keep their links."""
        self._links[key] = {"link": link, "at": self._now.isoformat()}
        return {"links": {key: dict(link) for key, link in self._links.items()}}


@dataclass
class DeltaQuery:
    """A delta query: the changes since a delta link, or, from a URL without one, the present rows."""

    client: ProviderClient
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    _link: str | None = field(default=None, init=False)

    @property
    def end(self) -> str:
        """The delta link for the next sync. Only valid after all pages were read."""
        assert self._link is not None
        return self._link

    async def pages(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield the rows of each page. Raises DeltaLinkExpired, or what ProviderClient.get_json raises."""
        try:
            self.client.checked_url(self.url)
        except ForbiddenHost:  # it was stored before another API base was configured
            raise DeltaLinkExpired(
                Text("the last sync of {provider} used another address", provider=self.client.provider)
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
                    Text(
                        "{provider} no longer knows the position of the last sync",
                        provider=self.client.provider,
                    )
                ) from None
            raise
        if self._link is None:
            raise InvalidResponse(
                Text("{provider} does not say where the next sync continues", provider=self.client.provider)
            )


async def pages(
    client: ProviderClient, url: str, headers: Mapping[str, str] | None = None, *, most: int = MAX_PAGES
) -> AsyncGenerator[dict[str, Any], None]:
    """Follow the pages from a URL. Raises PageLoop if they lead back, ForbiddenHost if they lead to another host."""
    seen: set[str] = set()
    while url:
        seen.add(url)
        answer = await client.get_json(url, headers)
        yield answer
        following = answer.get("@odata.nextLink") or ""
        if not isinstance(following, str) or following in seen or len(seen) >= MAX_PAGES:
            raise PageLoop(
                Text("the pages of {provider} lead back to an earlier page", provider=client.provider)
            )
        if len(seen) >= most:
            return
        url = following


async def rows(
    client: ProviderClient, url: str, headers: Mapping[str, str] | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield all rows of the pages from a URL."""
    async for answer in pages(client, url, headers):
        for row in dicts(answer.get("value")):
            yield row


def graph_url(*path: str, **options: str) -> str:
    """Return a URL relative to the API's base; ids and values are escaped. An option `top` becomes Graph's `$top`."""
    query = urlencode({f"${name}": value for name, value in options.items() if value}, quote_via=quote)
    return "/".join(quote(part, safe="") for part in path) + (f"?{query}" if query else "")


def odata_literal(text: str) -> str:
    """Return a string literal for an OData filter."""
    return "'" + text.replace("'", "''") + "'"


def odata_time(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(value: object) -> dt.datetime | None:
    """Parse a time of Graph, which may have seven digits of a second."""
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
