"""Refresh tokens rotate; one that comes back ends its session."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import jwt
from django.conf import settings
from django.test import override_settings
from django.utils import timezone
from rest_framework.response import Response
from rest_framework.test import APIClient

from adiuva.accounts import services, session_check, tokens
from adiuva.accounts.models import RevokedReason, Session
from tests.factories import Person, somebody

REFRESH, ME = "/api/v1/auth/refresh", "/api/v1/auth/me"


def refresh(rest: APIClient, token: str) -> Response:
    return rest.post(REFRESH, {"refresh_token": token})


def session_of(person: Person) -> Session:
    return Session.objects.get(user_id=person.id)


def works(rest: APIClient, access_token: str) -> bool:
    return bool(rest.get(ME, headers={"Authorization": f"Bearer {access_token}"}).status_code == 200)


def test_each_refresh_gives_new_tokens_and_more_time(rest: APIClient) -> None:
    person = somebody()
    Session.objects.filter(user_id=person.id).update(expires_at=timezone.now() + timedelta(days=1))
    first = refresh(rest, person.refresh_token)
    assert first.status_code == 200
    assert sorted(first.json()) == ["access_token", "expires_at", "refresh_token"]
    assert first["Cache-Control"] == "no-store"
    assert first.json()["refresh_token"] != person.refresh_token
    assert works(rest, first.json()["access_token"])
    assert session_of(person).expires_at > timezone.now() + settings.SESSION_LIFE - timedelta(minutes=1)
    assert refresh(rest, first.json()["refresh_token"]).status_code == 200


def test_a_lost_answer_can_be_asked_for_again(rest: APIClient) -> None:
    person = somebody()
    first = refresh(rest, person.refresh_token).json()
    again = refresh(rest, person.refresh_token).json()
    assert again["refresh_token"] == first["refresh_token"]
    assert session_of(person).generation == 2


def test_racing_refreshes_all_get_the_same_refresh_token(committed_db: str, web: str) -> None:
    person = somebody()
    body = {"refresh_token": person.refresh_token}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: httpx.post(f"{web}{REFRESH}", json=body), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    (newest,) = {answer.json()["refresh_token"] for answer in answers}
    assert session_of(person).generation == 2
    assert httpx.post(f"{web}{REFRESH}", json={"refresh_token": newest}).status_code == 200


def test_an_old_token_that_comes_back_ends_the_session_for_all(rest: APIClient) -> None:
    person = somebody()
    second = refresh(rest, person.refresh_token).json()
    third = refresh(rest, second["refresh_token"]).json()

    reused = refresh(rest, person.refresh_token)
    assert (reused.status_code, reused.json()["code"]) == (401, "refresh_reused")
    assert session_of(person).revoked_reason == RevokedReason.REUSE
    assert set(session_check.live_sessions([session_of(person).pk])) == set()
    for access in (person.access_token, second["access_token"], third["access_token"]):
        assert not works(rest, access)
    after = refresh(rest, third["refresh_token"])
    assert (after.status_code, after.json()["code"]) == (401, "not_authenticated")


def test_after_the_grace_even_the_last_token_but_one_ends_the_session(rest: APIClient) -> None:
    person = somebody()
    newest = refresh(rest, person.refresh_token).json()
    long_ago = timezone.now() - settings.REFRESH_GRACE - timedelta(seconds=1)
    Session.objects.filter(user_id=person.id).update(rotated_at=long_ago)
    assert refresh(rest, person.refresh_token).json()["code"] == "refresh_reused"
    assert not works(rest, newest["access_token"])


def test_other_sessions_of_the_user_outlive_a_reuse(rest: APIClient) -> None:
    person = somebody()
    elsewhere = services.login(email=person.email, password=person.password)
    second = refresh(rest, person.refresh_token).json()
    refresh(rest, second["refresh_token"])
    refresh(rest, person.refresh_token)
    assert not works(rest, person.access_token)
    assert works(rest, elsewhere.access_token)


def signed(claims: dict[str, object], secret: str | None = None, kind: tokens.Kind = "refresh") -> str:
    return jwt.encode(claims, tokens._key(secret or settings.SECRET_KEY, kind), algorithm="HS256")


def unsigned(claims: dict[str, object]) -> str:
    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}."


def test_forged_tokens_are_refused_and_change_nothing(rest: APIClient) -> None:
    person = somebody()
    refresh(rest, refresh(rest, person.refresh_token).json()["refresh_token"])
    old = jwt.decode(person.refresh_token, options={"verify_signature": False})
    deep = base64.urlsafe_b64encode(b"[" * 700).decode().rstrip("=")
    forged = [
        signed(old, "another secret"),
        signed(old, kind="access"),
        signed({**old, "typ": "access"}),
        signed({**old, "gen": 99}),
        signed({**old, "sub": str(somebody().id)}),
        signed({**old, "exp": 1}),
        signed({name: value for name, value in old.items() if name != "exp"}),
        unsigned(old),
        person.access_token,
        person.refresh_token[:-2],
        "",
        "a.b.c",
        "ünïcode.ünïcode.ünïcode",
        f"{deep}.{deep}.{deep}",
        "x" * 100_000,
    ]
    for token in forged:
        answer = refresh(rest, token)
        assert answer.status_code in (400, 401), token
        assert answer.json()["code"] in ("invalid", "not_authenticated"), token
    assert session_of(person).revoked_at is None


def test_a_refresh_token_does_not_open_the_api(rest: APIClient) -> None:
    assert not works(rest, somebody().refresh_token)


def test_tokens_of_the_secret_before_still_work_and_no_other(rest: APIClient) -> None:
    person = somebody()
    old = settings.SECRET_KEY
    with override_settings(SECRET_KEY="n" * 40, SECRET_KEY_FALLBACKS=[old]):
        assert works(rest, person.access_token)
        assert refresh(rest, person.refresh_token).status_code == 200
    with override_settings(SECRET_KEY="n" * 40, SECRET_KEY_FALLBACKS=[]):
        assert not works(rest, person.access_token)


def test_a_session_that_is_over_is_not_refreshed(rest: APIClient) -> None:
    expired, inactive = somebody(), somebody(is_active=False)
    now = timezone.now()
    Session.objects.filter(user_id=expired.id).update(created_at=now - timedelta(days=1), expires_at=now)
    for person in (expired, inactive):
        answer = refresh(rest, person.refresh_token)
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
        assert not works(rest, person.access_token)
