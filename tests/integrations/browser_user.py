"""A person with a browser, for tests of connections."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.http import HttpResponse
from django.test import Client
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from integrations.models import Connection
from tests.factories import Person, somebody
from tests.fakes.identity import Identity


class Owner:
    """A user signed in over REST (`rest`), and their browser, which is not."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.person: Person = somebody()
        self.rest = APIClient()
        self.rest.credentials(HTTP_AUTHORIZATION=f"Bearer {self.person.access_token}")

    @property
    def id(self) -> Any:
        return self.person.id

    def authorize(self, provider: str = "gmail", **query: str) -> str:
        answer = self.rest.get(f"/api/v1/oauth/{provider}/authorize", query)
        assert answer.status_code == 200, answer.content
        return answer.json()["authorization_url"]

    def agree(self, provider: str = "gmail", **query: str) -> str:
        """Where the provider sends the browser back to: path and query."""
        back = urlsplit(self.identity.consent(self.authorize(provider, **query)))
        return f"{back.path}?{back.query}"

    def connect(self, provider: str = "gmail", account: str = "ada@example.com") -> Connection:
        """One more connected account, through the front door."""
        self.identity.account = account
        page = visit(self.agree(provider))
        assert page.status_code == 200, page.content
        return Connection.objects.of(self.id).get(pk=connection_in(page))


def visit(address: str, browser: Client | None = None) -> HttpResponse:
    """Open an address; unless another browser is given, in one that is signed in as the user of its state."""
    return (browser or _browser_of(address)).get(address)


def _browser_of(address: str) -> Client:
    browser = Client()
    (state, *_) = parse_qs(urlsplit(address).query).get("state", [""])
    parts = state.split(".")
    if (
        len(parts) > 1
        and re.fullmatch("[0-9a-f]{32}", parts[1])
        and (user := User.objects.filter(pk=parts[1]).first())
    ):
        browser.force_login(user)
    return browser


def connection_in(page: HttpResponse) -> str:
    """The connection that the page's link to the app names."""
    link = page.content.decode().partition('<a href="')[2].partition('"')[0].replace("&amp;", "&")
    return parse_qs(urlsplit(link).query)["connection"][0]


def reasons(page: HttpResponse) -> str:
    return " ".join(page.content.decode().split())
