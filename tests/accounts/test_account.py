"""The account that is signed in: its values, its password, its sessions, its end."""

from __future__ import annotations

import getpass
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
import time_machine
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone
from rest_framework.test import APIClient

from adiuva.accounts import keys, services, session_check
from adiuva.accounts.models import RevokedReason, Session, User, UserKey
from adiuva.accounts.tasks import prune
from adiuva.core import errors
from tests.factories import Person, seal_text, somebody

AUTH = "/api/v1/auth"


def client_of(person: Person, access_token: str | None = None) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {access_token or person.access_token}")
    return client


@pytest.fixture
def person(db: None) -> Person:
    return somebody()


@pytest.fixture
def me(person: Person) -> APIClient:
    return client_of(person)


# ── Values ──────────────────────────────────────────────────────────────────────────────────────────────


def test_me_is_the_account(me: APIClient, person: Person) -> None:
    answer = me.get(f"{AUTH}/me")
    found = answer.json()
    assert {"agents", "providers"} <= found.pop("limits").keys() & found.pop("usage").keys()
    assert found == {
        "id": str(person.id),
        "email": person.email,
        "email_verified": False,
        "new_email": "",
        "tier": "free",
        "timezone": "UTC",
        "locale": "en",
        "is_staff": False,
        "created_at": answer.json()["created_at"],
    }


def test_only_time_zone_and_locale_can_be_changed(me: APIClient, person: Person) -> None:
    wanted = {
        "timezone": "Europe/Rome",
        "locale": "pt-BR",
        "tier": "team",
        "is_staff": True,
        "email": "x@y.zz",
    }
    answer = me.patch(f"{AUTH}/me", wanted)
    assert answer.status_code == 200
    user = User.objects.get(pk=person.id)
    assert (user.timezone, user.locale) == ("Europe/Rome", "pt-BR")
    assert (user.tier, user.is_staff, user.email) == ("free", False, person.email)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timezone", "Europe/Atlantis"),
        ("timezone", "../../etc/passwd"),
        ("timezone", "Europe"),
        ("timezone", "right/Europe/Rome"),
        ("timezone", ""),
        ("timezone", None),
        ("timezone", 7),
        ("locale", "english please"),
        ("locale", "e"),
        ("locale", "en-" + "x" * 40),
    ],
)
def test_a_time_zone_or_locale_that_is_none_is_refused(me: APIClient, field: str, value: object) -> None:
    answer = me.patch(f"{AUTH}/me", {field: value})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, [field])


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer x", "bearer a.b.c", "Basic eDp5"])
def test_without_a_valid_token_the_api_answers_401(db: None, header: str) -> None:
    answer = APIClient().get(f"{AUTH}/me", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
    assert answer["WWW-Authenticate"] == "Bearer"


def test_a_request_is_authenticated_in_one_query(
    me: APIClient, django_assert_num_queries: pytest.FixtureRequest
) -> None:
    with django_assert_num_queries(1):  # type: ignore[operator]
        me.get("/api/v1/agents/catalog")


def test_the_session_of_a_request_is_what_the_orm_reads(person: Person) -> None:
    found = services.authenticate(access_token=person.access_token)
    expected = Session.objects.select_related("user").get(user_id=person.id)
    for read, stored in ((found, expected), (found.user, expected.user)):
        for field in stored._meta.concrete_fields:
            assert getattr(read, field.attname) == getattr(stored, field.attname), field.name
            assert type(getattr(read, field.attname)) is type(getattr(stored, field.attname)), field.name
    assert not found._state.adding and found.user.pk == person.id


@pytest.mark.parametrize(
    ("rows", "change"),
    [
        (Session, {"expires_at": timezone.now()}),
        (Session, {"revoked_at": timezone.now(), "revoked_reason": RevokedReason.STAFF}),
        (User, {"is_active": False}),
    ],
)
def test_a_session_that_is_over_authenticates_nobody(
    me: APIClient, person: Person, rows: type[Session] | type[User], change: dict[str, object]
) -> None:
    key = "user_id" if rows is Session else "pk"
    Session.objects.update(created_at=timezone.now() - timedelta(days=1))
    ticket, _ = services.issue_ticket(session=Session.objects.get(user_id=person.id))
    assert me.get(f"{AUTH}/me").status_code == 200
    assert rows._default_manager.filter(**{key: person.id}).update(**change) == 1
    assert me.get(f"{AUTH}/me").status_code == 401
    with pytest.raises(errors.NotAuthenticated):
        services.redeem_ticket(ticket)


def test_the_last_use_of_a_session_is_written_once_a_minute(me: APIClient, person: Person) -> None:
    start = Session.objects.get(user_id=person.id).last_used_at
    for later, written in [(59, 0), (61, 61), (90, 61), (122, 122)]:
        with time_machine.travel(start + timedelta(seconds=later), tick=False):
            me.get(f"{AUTH}/me")
        last = Session.objects.get(user_id=person.id).last_used_at
        assert last == start + timedelta(seconds=written)


# ── Sessions ────────────────────────────────────────────────────────────────────────────────────────────


def test_sessions_are_listed_with_the_current_one_marked(me: APIClient, person: Person) -> None:
    services.login(email=person.email, password=person.password, user_agent="Firefox\x1b[31m" + "x" * 500)
    somebody()
    answer = me.get(f"{AUTH}/sessions")
    assert answer["X-Total-Count"] == "2"
    other, current = sorted(answer.json(), key=lambda session: session["current"])
    assert (current["current"], other["current"]) == (True, False)
    assert other["user_agent"].startswith("Firefox[31mxxx")
    assert len(other["user_agent"]) == 200


def test_a_signed_out_session_opens_nothing(me: APIClient, person: Person) -> None:
    (session,) = Session.objects.filter(user_id=person.id)
    assert services.authenticate(access_token=person.access_token).pk == session.pk
    assert me.post(f"{AUTH}/logout").json() == {"ok": True}
    assert me.get(f"{AUTH}/me").status_code == 401
    assert set(session_check.live_sessions({session.pk})) == set()
    with pytest.raises(errors.NotAuthenticated):
        services.authenticate(access_token=person.access_token)
    session.refresh_from_db()
    assert session.revoked_reason == RevokedReason.LOGOUT


def test_one_of_my_sessions_can_be_signed_out_and_nobody_elses(me: APIClient, person: Person) -> None:
    there = services.login(email=person.email, password=person.password)
    session_id = services.authenticate(access_token=there.access_token).pk
    stranger = Session.objects.get(user_id=somebody().id)
    for wrong in (stranger.pk, uuid4(), "not-an-id"):
        answer = me.delete(f"{AUTH}/sessions/{wrong}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert me.delete(f"{AUTH}/sessions/{session_id}").status_code == 200
    assert me.delete(f"{AUTH}/sessions/{session_id}").status_code == 404
    assert client_of(person, there.access_token).get(f"{AUTH}/me").status_code == 401
    assert me.get(f"{AUTH}/me").status_code == 200
    assert set(session_check.live_sessions({stranger.pk, session_id})) == {stranger.pk}


def test_all_other_sessions_can_be_signed_out(me: APIClient, person: Person) -> None:
    for _ in range(3):
        services.login(email=person.email, password=person.password)
    assert me.delete(f"{AUTH}/sessions").json() == {"ok": True, "ended": 3}
    assert len(me.get(f"{AUTH}/sessions").json()) == 1


def test_live_sessions_are_found_in_one_query(
    db: None, django_assert_num_queries: pytest.FixtureRequest
) -> None:
    ids = {Session.objects.get(user_id=somebody().id).pk for _ in range(5)}
    with django_assert_num_queries(1):  # type: ignore[operator]
        assert set(session_check.live_sessions(ids | {uuid4()})) == ids


def test_sessions_of_a_deactivated_user_are_not_live(person: Person) -> None:
    (session,) = Session.objects.filter(user_id=person.id)
    assert services.deactivate(users=User.objects.filter(pk=person.id)) == 1
    assert set(session_check.live_sessions({session.pk})) == set()
    User.objects.filter(pk=person.id).update(is_active=True)
    assert set(session_check.live_sessions({session.pk})) == set()  # it does not come back to life


def test_sessions_are_forgotten_a_month_after_their_end(person: Person) -> None:
    now = timezone.now()
    rows = {
        name: Session.objects.create(user_id=person.id, created_at=now - timedelta(days=99), **fields)
        for name, fields in {
            "live": {"expires_at": now + timedelta(days=1)},
            "expired": {"expires_at": now - timedelta(days=29)},
            "expired long ago": {"expires_at": now - timedelta(days=31)},
            "revoked": {"expires_at": now + timedelta(1), "revoked_at": now, "revoked_reason": "logout"},
            "revoked long ago": {
                "expires_at": now + timedelta(days=1),
                "revoked_at": now - timedelta(days=31),
                "revoked_reason": "logout",
            },
        }.items()
    }
    prune()
    left = set(Session.objects.values_list("pk", flat=True))
    assert [name for name, row in rows.items() if row.pk in left] == ["live", "expired", "revoked"]


# ── Tickets ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ticket_opens_a_socket_once(me: APIClient, person: Person) -> None:
    answer = me.post(f"{AUTH}/ws-ticket")
    assert answer.status_code == 200
    assert sorted(answer.json()) == ["expires_at", "ticket"]
    ticket = answer.json()["ticket"]
    (session,) = Session.objects.filter(user_id=person.id)
    assert services.redeem_ticket(ticket) == session
    for used in (ticket, "", "no ticket", "\ud800", "x" * 10_000):
        with pytest.raises(errors.NotAuthenticated):
            services.redeem_ticket(used)


def test_a_ticket_of_an_ended_session_opens_nothing(me: APIClient) -> None:
    ticket = me.post(f"{AUTH}/ws-ticket").json()["ticket"]
    me.post(f"{AUTH}/logout")
    with pytest.raises(errors.NotAuthenticated):
        services.redeem_ticket(ticket)


def test_of_many_who_redeem_a_ticket_at_once_one_gets_in(committed_db: str) -> None:
    session = services.authenticate(access_token=somebody().access_token)
    ticket, _ = services.issue_ticket(session=session)

    def redeem(_: int) -> bool:
        try:
            return bool(services.redeem_ticket(ticket))
        except errors.NotAuthenticated:
            return False
        finally:
            connections.close_all()

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(redeem, range(16))) == 1


# ── Password and end ────────────────────────────────────────────────────────────────────────────────────


def test_a_new_password_signs_all_other_devices_out(me: APIClient, person: Person) -> None:
    elsewhere = services.login(email=person.email, password=person.password)
    new = "another quiet afternoon"
    answer = me.post(f"{AUTH}/password", {"current_password": person.password, "new_password": new})
    assert answer.json() == {"ok": True}
    assert me.get(f"{AUTH}/me").status_code == 200
    assert client_of(person, elsewhere.access_token).get(f"{AUTH}/me").status_code == 401
    with pytest.raises(services.InvalidCredentials):
        services.login(email=person.email, password=person.password)
    assert services.login(email=person.email, password=new)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"current_password": "wrong one", "new_password": "another quiet afternoon"}, "current_password"),
        ({"current_password": "correct horse battery", "new_password": "12345678"}, "new_password"),
        ({"current_password": "correct horse battery"}, "new_password"),
    ],
)
def test_a_password_is_not_changed_without_the_current_and_a_good_new_one(
    me: APIClient, person: Person, body: dict[str, str], field: str
) -> None:
    answer = me.post(f"{AUTH}/password", body)
    assert (answer.status_code, list(answer.json()["fields"])) == (400, [field])
    assert services.login(email=person.email, password=person.password)


def typing(monkeypatch: pytest.MonkeyPatch, *passwords: str) -> None:
    left = iter(passwords)

    def type_next(prompt: str) -> str:
        User.objects.update(tier="pro")  # what else happens to accounts meanwhile
        return next(left)

    monkeypatch.setattr(getpass, "getpass", type_next)


def test_the_command_sets_a_password_that_is_good_and_signs_out_everywhere(
    me: APIClient, person: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = "another quiet afternoon"
    typing(monkeypatch, "12345678", "12345678", new, "another quiet evening", new, new)
    call_command("changepassword", person.email.upper())
    said = capsys.readouterr()
    assert "too common" in said.err and "two different passwords" in said.err
    assert "all of its sessions are signed out" in said.out
    assert me.get(f"{AUTH}/me").status_code == 401
    assert services.login(email=person.email, password=new)
    assert User.objects.get(pk=person.id).tier == "pro"


def test_the_command_changes_nothing_without_a_good_password_and_an_account(
    me: APIClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    typing(monkeypatch, *["12345678"] * 6)
    with pytest.raises(CommandError, match="nothing was changed"):
        call_command("changepassword", person.email)
    with pytest.raises(CommandError, match="no account with the address nobody@example"):
        call_command("changepassword", "nobody@example.com")
    assert me.get(f"{AUTH}/me").status_code == 200


def test_a_deleted_account_leaves_no_row_and_no_key(me: APIClient, person: Person) -> None:
    sealed = seal_text(keys.cipher_for(person.id), "a secret")
    assert me.delete(f"{AUTH}/me", {"password": person.password}).json() == {"ok": True}
    assert me.get(f"{AUTH}/me").status_code == 401
    assert not User.objects.filter(pk=person.id).exists()
    assert not Session.objects.filter(user_id=person.id).exists()
    assert not UserKey.objects.filter(pk=person.id).exists()
    with pytest.raises(keys.NoSuchUser):
        keys.cipher_for(person.id)
    assert b"a secret" not in sealed
    # The address is free again, for an account with another key.
    assert services.register(email=person.email, password=person.password)


def test_an_access_token_never_outlives_its_session(person: Person) -> None:
    session = Session.objects.get(user_id=person.id)
    session.expires_at = timezone.now() + timedelta(seconds=30)
    made = services.tokens.issue(session)
    assert made.expires_at <= session.expires_at.timestamp()
    assert timedelta(seconds=30) < settings.ACCESS_TOKEN_LIFE
