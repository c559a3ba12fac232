"""A team with single sign-on, and what its people do in browsers and apps."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from django.test import Client
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from billing import tiers
from billing.sso.models import Identity, IdentityProvider, SsoEvent
from billing.teams.models import Team
from tests.factories import confirmed
from tests.fakes.dns import NameServer
from tests.fakes.oidc import CLIENT, SECRET, Oidc

VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
SSO = "/api/v1/billing/team/sso"


class TeamOf:
    def __init__(self, idp: Oidc, name_server: NameServer, *, seats: int = 3, proven: bool = True) -> None:
        self.idp, self.name_server = idp, name_server
        self.owner = confirmed()
        tiers.give(user_id=self.owner.id, tier="team", until=None, reason="a test", by=self.owner.id)
        self.team = Team.objects.create(owner_id=self.owner.id, seats_given=seats)
        self.domain = f"{uuid.uuid4().hex[:12]}.example"
        self.rest = APIClient()
        self.rest.credentials(HTTP_AUTHORIZATION=f"Bearer {self.owner.access_token}")
        answer = self.set()
        assert answer.status_code == 200, answer.data
        if proven:
            self.prove()

    def set(self, **values: Any) -> Any:
        body = {
            "issuer": self.idp.url,
            "client_id": CLIENT,
            "secret": SECRET,
            "password": self.owner.password,
            **values,
        }
        return self.rest.put(SSO, body, format="json")

    def add(self, name: str = "") -> Any:
        return self.rest.post(f"{SSO}/domains", {"name": name or self.domain}, format="json")

    def prove(self) -> None:
        added = self.add().data
        self.name_server.records[added["record_name"]] = ["v=spf1 -all", added["record_value"]]
        answer = self.rest.post(f"{SSO}/domains/{added['id']}")
        assert answer.status_code == 200 and answer.data["proven_at"], answer.data

    def require(self, is_required: bool = True) -> Any:
        body = {"is_required": is_required, "password": self.owner.password}
        return self.rest.patch(SSO, body, format="json")

    @property
    def provider(self) -> IdentityProvider:
        return IdentityProvider.objects.get(team=self.team)

    def address(self, name: str = "") -> str:
        return f"{name or uuid.uuid4().hex[:8]}@{self.domain}"

    def is_person(self, address: str, subject: str = "", **claims: Any) -> None:
        """Who sits at the provider's page."""
        self.idp.person = {"sub": subject or address, "email": address, "email_verified": True, **claims}

    def come_back(self, address: str, browser: Client | None = None, **answer: str) -> tuple[Client, Any]:
        """A sign-in in a browser as far as our page that the provider leads back to."""
        browser = browser or Client()
        left = browser.post("/account/sso", {"email": address})
        assert left.status_code == 200, left.content.decode()
        back = self.idp.sign_in(link_in(left, "/authorize"))
        parts = urlsplit(back)
        query = {**dict(parse_qsl(parts.query)), **answer}
        return browser, browser.get(parts.path, query)

    def sign_in(self, address: str) -> Client:
        """A whole sign-in of a new person, or of one who is linked."""
        self.is_person(address)
        browser, answer = self.come_back(address)
        assert answer.status_code == 302, answer.content.decode()
        return browser

    def app_code(self, address: str) -> str:
        """An app's sign-in as far as the link back to it."""
        self.is_person(address)
        body = {"email": address, "challenge": CHALLENGE}
        begun = APIClient().post("/api/v1/auth/sso/begin", body, format="json")
        assert begun.status_code == 200, begun.data
        parts = urlsplit(self.idp.sign_in(begun.data["authorization_url"]))
        page = Client().get(parts.path, dict(parse_qsl(parts.query)))
        assert page.status_code == 200, page.content.decode()
        found = re.search(r"adiuva://sso\?code=([\w-]+)", page.content.decode())
        assert found, page.content.decode()
        return found[1]

    def finish(self, code: str, verifier: str = VERIFIER) -> Any:
        return APIClient().post(
            "/api/v1/auth/sso/finish", {"code": code, "verifier": verifier}, format="json"
        )

    def app_sign_in(self, address: str) -> Any:
        answer = self.finish(self.app_code(address))
        assert answer.status_code == 200, answer.data
        return answer.data

    def events(self) -> list[str]:
        return list(SsoEvent.objects.filter(team=self.team).order_by("id").values_list("kind", flat=True))


def link_in(page: Any, part: str) -> str:
    (found,) = {each for each in re.findall(r'href="([^"]+)"', page.content.decode()) if part in each}
    return str(found).replace("&amp;", "&")


def who(browser: Client) -> str:
    """The address of who is signed in in a browser; empty if nobody."""
    answer = browser.get("/account/")
    found = re.search(r"<strong>([^<]+@[^<]+)</strong>", answer.content.decode())
    return found[1] if found else ""


def refresh(tokens: Any) -> Any:
    return APIClient().post("/api/v1/auth/refresh", {"refresh_token": tokens["refresh_token"]}, format="json")


def account(address: str) -> User:
    return User.objects.get(email=address)


def identities(address: str) -> int:
    return Identity.objects.filter(user__email=address).count()
