"""Connections over REST and for staff: whose they are, how they are, and how they end."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connections as databases
from django.db import transaction
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from adiuva.accounts import services
from adiuva.accounts.models import User
from integrations import connections, oauth_clients, signals, tokens
from integrations.errors import NeedsReauth, old_token_error
from integrations.models import Connection, Provider
from tests.factories import somebody
from tests.fakes.identity import Fail, Identity, Lost
from tests.fakes.provider import WAIT_S
from tests.integrations.browser_user import Owner, visit


def test_a_user_sees_their_own_connections_alone(owner: Owner, identity: Identity) -> None:
    mine, other = owner.connect(), Owner(identity)
    theirs = other.connect("outlook")
    assert [row["id"] for row in owner.rest.get("/api/v1/connections").json()] == [str(mine.pk)]
    for method in (owner.rest.get, owner.rest.delete):
        assert method(f"/api/v1/connections/{theirs.pk}").status_code == 404
    for body in ({"connection": str(theirs.pk)}, {"connection": str(uuid4())}, {}):
        assert owner.rest.post("/api/v1/oauth/outlook/refresh", body).status_code == 404
    again = owner.rest.get("/api/v1/oauth/outlook/authorize", {"connection": str(theirs.pk)})
    assert again.status_code == 404
    assert Client().get("/api/v1/connections").status_code == 401
    assert Connection.objects.filter(pk=theirs.pk).exists()


def test_the_same_account_is_one_connection_and_others_are_more(owner: Owner) -> None:
    first = owner.connect(account="Ada@example.com")
    old = first.unseal(Connection.access_token)
    again = owner.connect(account="ada@EXAMPLE.com")
    assert again.pk == first.pk and again.unseal(Connection.access_token) != old
    owner.connect(account="grace@example.com")
    owner.connect("outlook", account="ada@example.com")
    listed = owner.rest.get("/api/v1/connections").json()
    assert sorted((row["provider"], row["account"]) for row in listed) == [
        ("gmail", "ada@EXAMPLE.com"),
        ("gmail", "grace@example.com"),
        ("outlook", "ada@example.com"),
    ]


def test_equal_accounts_of_two_users_do_not_show_as_equal(owner: Owner, identity: Identity) -> None:
    one, other = owner.connect(), Owner(identity).connect()
    assert bytes(one.account_hash) != bytes(other.account_hash)


def test_consents_to_one_account_that_race_make_one_connection(owner: Owner, identity: Identity) -> None:
    backs = [owner.agree() for _ in range(6)]

    def come_back(address: str) -> int:
        try:
            return visit(address).status_code
        finally:
            databases.close_all()

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(come_back, backs)) == [200] * 6
    row = Connection.objects.of(owner.id).get()
    assert identity.accepts(row.unseal(Connection.access_token))


def test_connecting_again_heals_what_needed_it(owner: Owner, identity: Identity) -> None:
    heard: list[dict[str, Any]] = []

    def hear(sender: Any, signal: Any, **sent: Any) -> None:
        heard.append(sent)

    row = owner.connect()
    identity.revoke("ada@example.com")
    assert owner.rest.post("/api/v1/oauth/gmail/refresh").status_code == 409
    signals.reconnected.connect(hear, weak=False, dispatch_uid="test")
    try:
        hint = owner.authorize(connection=str(row.pk))
        assert "login_hint=ada%40example.com" in hint
        assert visit(owner.agree(connection=str(row.pk))).status_code == 200
        assert visit(owner.agree()).status_code == 200  # once more, when all is well: no news
    finally:
        signals.reconnected.disconnect(dispatch_uid="test")
    assert heard == [{"connection_id": row.pk, "user_id": owner.id}]
    shown = owner.rest.get(f"/api/v1/connections/{row.pk}").json()
    assert (shown["health"], shown["reason"], shown["message"]) == ("ok", "", "")
    assert identity.accepts(asyncio.run(tokens.access_token(row.pk, user_id=owner.id)))
    assert Connection.objects.get(pk=row.pk).told_at is None


@pytest.mark.parametrize("provider", Provider.values)
def test_a_refresh_by_hand_says_how_the_connection_is(
    owner: Owner, identity: Identity, provider: str
) -> None:
    row = owner.connect(provider)
    old = row.unseal(Connection.access_token)
    answer = owner.rest.post(f"/api/v1/oauth/{provider}/refresh")
    assert answer.status_code == 200
    assert answer.json()["id"] == str(row.pk) and answer.json()["refreshed_at"]
    assert Connection.objects.get(pk=row.pk).unseal(Connection.access_token) != old

    other = owner.connect(provider, account="grace@example.com")
    unclear = owner.rest.post(f"/api/v1/oauth/{provider}/refresh")
    assert (unclear.status_code, list(unclear.json()["fields"])) == (400, ["connection"])
    one = owner.rest.post(f"/api/v1/oauth/{provider}/refresh", {"connection": str(other.pk)})
    assert one.json()["account"] == "grace@example.com"
    elsewhere = "gmail" if provider != "gmail" else "teams"
    assert (
        owner.rest.post(f"/api/v1/oauth/{elsewhere}/refresh", {"connection": str(row.pk)}).status_code == 404
    )

    asked = len(identity.refreshes)
    for _ in range(5):  # and not again at once, however often it is asked for
        assert (
            owner.rest.post(f"/api/v1/oauth/{provider}/refresh", {"connection": str(row.pk)}).status_code
            == 200
        )
    assert len(identity.refreshes) == asked
    Connection.objects.filter(pk=row.pk).update(refreshed_at=Now() - timedelta(minutes=1))
    identity.script(Fail(503, retry_after=9))
    away = owner.rest.post(f"/api/v1/oauth/{provider}/refresh", {"connection": str(row.pk)})
    assert (away.status_code, away.json()["code"], away["Retry-After"]) == (503, "provider_away", "9")


def test_disconnecting_takes_the_permission_back_at_google(owner: Owner, identity: Identity) -> None:
    row = owner.connect()
    answer = owner.rest.delete(f"/api/v1/connections/{row.pk}")
    assert answer.status_code == 200
    assert answer.json() == {"ok": True, "revoked": True, "message": "Gmail took the permission back."}
    assert not identity.grants("ada@example.com")
    assert not Connection.objects.of(owner.id).exists()
    assert owner.rest.delete(f"/api/v1/connections/{row.pk}").status_code == 404


def test_a_permission_that_was_taken_back_already_is_no_failure(owner: Owner, identity: Identity) -> None:
    row = owner.connect()
    identity.revoke("ada@example.com")
    assert owner.rest.delete(f"/api/v1/connections/{row.pk}").json()["revoked"] is True


def test_the_tokens_go_whatever_the_provider_says_and_the_answer_tells(
    owner: Owner, identity: Identity
) -> None:
    for step in (Fail(503), Fail(400), Lost()):
        row = owner.connect()
        identity.revoke_step = step
        answer = owner.rest.delete(f"/api/v1/connections/{row.pk}").json()
        assert (answer["ok"], answer["revoked"]) == (True, False)
        assert "myaccount.google.com" in answer["message"]
        assert not Connection.objects.of(owner.id).exists()
    asked = len(identity.requests)
    for provider in ("outlook", "teams"):
        row = owner.connect(provider)
        answer = owner.rest.delete(f"/api/v1/connections/{row.pk}").json()
        assert answer["revoked"] is False and "myapplications.microsoft.com" in answer["message"]
    assert not any("revoke" in request.path for request in identity.requests[asked:])


def test_a_row_that_does_not_open_is_listed_mended_and_removed(owner: Owner, identity: Identity) -> None:
    one, other = owner.connect(), owner.connect(account="grace@example.com")
    broken = bytes(other.account)  # another row's
    Connection.objects.filter(pk=one.pk).update(account=broken, access_token=broken, refresh_token=broken)
    shown = {row["id"]: row["account"] for row in owner.rest.get("/api/v1/connections").json()}
    assert shown == {str(one.pk): "", str(other.pk): "grace@example.com"}
    assert "login_hint" not in owner.authorize(connection=str(one.pk))
    assert owner.connect().pk == one.pk and Connection.objects.get(pk=one.pk).address == "ada@example.com"
    Connection.objects.filter(pk=one.pk).update(account=broken, access_token=broken, refresh_token=broken)
    answer = owner.rest.delete(f"/api/v1/connections/{one.pk}").json()
    assert (answer["ok"], answer["revoked"]) == (True, False)
    assert not Connection.objects.filter(pk=one.pk).exists()


def test_with_an_account_of_ours_googles_permissions_are_taken_back(owner: Owner, identity: Identity) -> None:
    def others_are_over() -> None:
        for thread in threading.enumerate():
            if thread.name == "revoke tokens":
                thread.join(WAIT_S)

    for account in ("ada@example.com", "grace@example.com"):
        owner.connect(account=account)
    owner.connect("outlook")
    Owner(identity).connect(account="bea@example.com")
    me = User.objects.get(pk=owner.id)
    with pytest.raises(RuntimeError), transaction.atomic():
        services.delete_account(user=me)
        raise RuntimeError("it was not to be")
    others_are_over()
    assert identity.grants("ada@example.com")

    asked = len(identity.requests)
    assert owner.rest.delete("/api/v1/auth/me", {"password": owner.person.password}).status_code == 200
    others_are_over()
    assert not Connection.objects.filter(user_id=owner.id).exists()
    assert [identity.grants(f"{name}@example.com") for name in ("ada", "grace", "bea")] == [
        False,
        False,
        True,
    ]
    assert [request.path for request in identity.requests[asked:]] == ["/google/revoke"] * 2


def test_a_connection_that_was_removed_is_refreshed_no_more(owner: Owner, identity: Identity) -> None:
    row = owner.connect()
    connections.disconnect(user_id=owner.id, connection_id=row.pk)
    with pytest.raises(connections.NotFound):
        asyncio.run(tokens.access_token(row.pk, user_id=owner.id))


def test_clients_of_the_first_backend_are_told_which_field_to_send() -> None:
    told = old_token_error()
    assert told.status == 400 and told.fields is not None
    assert set(told.fields) == {"oauth_token_encrypted", "connection"}


def test_the_sweep_forgets_old_consents(owner: Owner) -> None:
    from django.utils import timezone

    from integrations.models import Consent

    old, new = owner.authorize(), owner.authorize()
    assert old != new
    first = Consent.objects.filter(user_id=owner.id).earliest("expires_at")
    Consent.objects.filter(pk=first.pk).update(expires_at=timezone.now() - timedelta(hours=2))
    connections.sweep()
    assert Consent.objects.filter(user_id=owner.id).count() == 1


def test_a_grant_shows_no_secret() -> None:
    grant = oauth_clients.Grant("the-access", "the-refresh", 60, ("a",), "ada@example.com")
    assert not re.search("the-|ada@", repr(grant))


# ── Staff ───────────────────────────────────────────────────────────────────────────────────────────────


def test_staff_see_health_and_a_link_for_the_user_and_nothing_sealed(
    owner: Owner, identity: Identity
) -> None:
    row = owner.connect(account="secret.mailbox@example.com")
    boss, browser = somebody(is_staff=True, is_superuser=True), Client()
    browser.post("/admin/login/", {"username": boss.email, "password": boss.password})
    pages = reverse("admin:integrations_connection_changelist")
    one = reverse("admin:integrations_connection_change", args=[row.pk])
    assert "not needed" in browser.get(one).content.decode()

    identity.revoke("secret.mailbox@example.com")
    with pytest.raises(NeedsReauth):
        tokens.refresh_now(row.pk, user_id=owner.id)
    shown = browser.get(one).content.decode() + browser.get(pages, {"q": str(row.pk)}).content.decode()
    assert f"adiuva://oauth/gmail/connect?connection={row.pk}" in shown
    assert "needs_reauth" in shown and owner.person.email in shown
    hidden = ["secret.mailbox", row.unseal(Connection.access_token), row.unseal(Connection.refresh_token)]
    assert [word for word in hidden if word in shown] == []
    assert [field for field in ("access_token", "refresh_token", "account_hash") if field in shown] == []
    counted = browser.get(pages, {"q": owner.person.email, "provider__exact": "gmail"})
    assert [each.pk for each in counted.context["cl"].result_list] == [row.pk]
    assert browser.post(one, {"health": "ok"}).status_code == 403
