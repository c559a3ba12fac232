"""What programs' requests pass by, and what they do not."""

from __future__ import annotations

import pytest
from django.contrib.sessions.models import Session as Cookie
from django.test import Client

from adiuva.accounts.models import User
from tests.factories import somebody

pytestmark = pytest.mark.django_db


def test_a_token_is_looked_at_and_no_cookie() -> None:
    """A browser's session beside it is neither used nor ended."""
    ada, bo = somebody(), somebody()
    client = Client()
    client.force_login(User.objects.get(pk=ada.id))
    count = Cookie.objects.count()
    asked = {"Authorization": f"Bearer {bo.access_token}"}
    assert client.get("/api/v1/auth/me", headers=asked).json()["id"] == str(bo.id)
    for token in ("x", "", bo.access_token + "x"):
        answer = client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated"), token
    assert client.get("/api/v1/auth/me").json()["id"] == str(ada.id)
    assert Cookie.objects.count() == count


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize(
    "path", ["/api/v1/", "/api/v1/auth/me", "/api/v1/agents/runs", "/api/v1/x", "/api/x"]
)
def test_pages_and_errors_of_the_api_need_no_session(path: str, accept: str) -> None:
    for token, status in ((somebody().access_token, 200), ("x", 401)):
        answer = Client().get(path, headers={"Authorization": f"Bearer {token}", "Accept": accept})
        assert answer.status_code == 404 if path.endswith("x") else answer.status_code in {200, status}


@pytest.mark.parametrize(("path", "status"), [("callback", 400), ("finish", 302)])
def test_pages_below_the_api_are_for_browsers_alone(path: str, status: int) -> None:
    """A token signs nobody in there."""
    headers = {"Authorization": f"Bearer {somebody().access_token}"}
    assert Client().get(f"/api/v1/oauth/gmail/{path}", headers=headers).status_code == status


def test_elsewhere_a_token_changes_nothing() -> None:
    client = Client()
    client.force_login(User.objects.get(pk=somebody().id))
    answer = client.get("/account/usage", headers={"Authorization": "Bearer x"})
    assert answer.status_code == 200
