"""Users and sessions for staff."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from adiuva.accounts import keys, services
from adiuva.accounts.models import Session, User, UserKey
from tests.factories import Person, somebody

USERS, SESSIONS = "admin:accounts_user_changelist", "admin:accounts_session_changelist"


@pytest.fixture
def staff(db: None) -> Client:
    """A browser that is signed in to the admin, through its form."""
    boss = somebody(is_staff=True, is_superuser=True)
    browser = Client()
    answer = browser.post("/admin/login/", {"username": boss.email.upper(), "password": boss.password})
    assert answer.status_code == 302
    return browser


def listed(browser: Client, page: str, **query: str) -> set[Any]:
    answer = browser.get(reverse(page), query)
    assert answer.status_code == 200
    return {row.pk for row in answer.context["cl"].result_list}


def act(browser: Client, page: str, action: str, *ids: object, **more: str) -> str:
    form = {"action": action, "_selected_action": [str(each) for each in ids], **more}
    answer = browser.post(reverse(page), form, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def test_who_is_not_staff_does_not_get_in(db: None) -> None:
    person = somebody()
    browser = Client()
    browser.post("/admin/login/", {"username": person.email, "password": person.password})
    assert browser.get(reverse(USERS)).status_code == 302


def test_users_are_found_by_the_beginning_of_their_address_or_by_id(staff: Client) -> None:
    one, other = somebody(), somebody(tier="pro")
    assert listed(staff, USERS, q=one.email[:20].upper()) == {one.id}
    assert listed(staff, USERS, q=str(other.id)) == {other.id}
    assert listed(staff, USERS, q="nobody-is-called-so") == set()
    assert {one.id, other.id} <= listed(staff, USERS)
    assert listed(staff, USERS, q=str(other.id), tier__exact="pro") == {other.id}
    assert listed(staff, USERS, q=str(other.id), tier__exact="free") == set()


def test_sessions_are_found_by_their_user_or_id(staff: Client) -> None:
    person = somebody()
    session = Session.objects.get(user_id=person.id)
    for term in (person.email, str(person.id), str(session.pk)):
        assert listed(staff, SESSIONS, q=term) == {session.pk}


@pytest.mark.parametrize("page", [USERS, SESSIONS])
def test_a_list_costs_the_same_queries_for_more_rows(staff: Client, page: str) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    counts = []
    for _ in range(2):
        somebody(), somebody()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            listed(staff, page)
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_nothing_secret_is_on_a_users_page(staff: Client) -> None:
    person = somebody()
    keys.cipher_for(person.id)
    page = staff.get(reverse("admin:accounts_user_change", args=[person.id])).content.decode()
    assert person.email in page
    assert "argon2" not in page
    assert not admin.site.is_registered(UserKey)
    assert not re.search("user ?keys?", staff.get("/admin/").content.decode(), re.IGNORECASE)


def test_a_user_can_be_made_and_given_a_password(staff: Client) -> None:
    form = {
        "email": "Grace.Of.The.Admin@Example.com",
        "usable_password": "true",
        "password1": "a compiler in the attic",
        "password2": "a compiler in the attic",
    }
    assert staff.post(reverse("admin:accounts_user_add"), form).status_code == 302
    user = User.objects.get(email="grace.of.the.admin@example.com")
    signed_in = services.login(email=user.email, password=form["password1"])

    page = reverse("admin:auth_user_password_change", args=[user.pk])
    new = {"password1": "nanoseconds of wire", "password2": "nanoseconds of wire", "set-password": "1"}
    assert staff.post(page, {**new, "usable_password": "true"}).status_code == 302
    assert services.login(email=user.email, password=new["password1"])
    with pytest.raises(services.NotAuthenticated):
        services.authenticate(access_token=signed_in.access_token)


def test_saving_a_user_unchecked_as_active_signs_them_out(staff: Client) -> None:
    person = somebody()
    form = {"email": person.email, "tier": "power", "timezone": "Asia/Tokyo", "locale": "ja"}
    answer = staff.post(reverse("admin:accounts_user_change", args=[person.id]), form)
    assert answer.status_code == 302
    user = User.objects.get(pk=person.id)
    assert (user.tier, user.timezone, user.is_active) == ("power", "Asia/Tokyo", False)
    assert Session.objects.get(user_id=person.id).revoked_reason == "inactive"


def test_staff_can_sign_users_out_and_deactivate_them(staff: Client) -> None:
    people = [somebody(), somebody()]
    ids = [person.id for person in people]
    assert "2 sessions ended" in act(staff, USERS, "end_all_sessions", *ids)
    assert not Session.objects.live().filter(user_id__in=ids).exists()
    assert "2 accounts deactivated" in act(staff, USERS, "deactivate", *ids)
    with pytest.raises(services.InvalidCredentials):
        services.login(email=people[0].email, password=people[0].password)


def test_staff_can_end_single_sessions(staff: Client) -> None:
    session = Session.objects.get(user_id=somebody().id)
    assert "1 sessions ended" in act(staff, SESSIONS, "end_sessions", session.pk)
    session.refresh_from_db()
    assert session.revoked_reason == "staff"


def deleted_by_page(browser: Client, person: Person) -> None:
    browser.post(reverse("admin:accounts_user_delete", args=[person.id]), {"post": "yes"})


def deleted_by_action(browser: Client, person: Person) -> None:
    act(browser, USERS, "delete_selected", person.id, post="yes")


@pytest.mark.parametrize("delete", [deleted_by_page, deleted_by_action])
def test_deleting_a_user_shreds_the_key(staff: Client, delete: Any) -> None:
    person = somebody()
    keys.cipher_for(person.id)
    delete(staff, person)
    assert not User.objects.filter(pk=person.id).exists()
    with pytest.raises(keys.NoSuchUser):
        keys.cipher_for(person.id)


def test_every_list_of_the_admin_opens(staff: Client) -> None:
    for model in apps.get_models():
        if admin.site.is_registered(model):
            page = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
            assert staff.get(reverse(page), {"q": "x"}).status_code == 200, page
