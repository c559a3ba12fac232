"""Users and sessions for staff."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from adiuva.accounts import keys, services
from adiuva.accounts.models import Mail, RevokedReason, Session, StaffAction, User, UserKey
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


def test_a_user_can_be_made_and_gets_a_link_to_set_a_password(staff: Client, settings: Any) -> None:
    settings.MAIL_ENABLED = True
    assert staff.post(reverse("admin:accounts_user_add"), {"email": "Grace.H@Example.com"}).status_code == 302
    user = User.objects.get(email="grace.h@example.com")
    assert not user.has_usable_password()
    assert Mail.objects.get(user=user).kind == Mail.Kind.RESET
    assert "1 links sent" in act(staff, USERS, "send_password_reset", user.pk)
    kinds = StaffAction.objects.filter(user=user).values_list("kind", flat=True)
    assert list(kinds) == ["reset_sent", "changed", "reset_sent"]


def helper() -> Client:
    """A browser of somebody who may change users, and nothing else."""
    user = User.objects.get(pk=somebody(is_staff=True).id)
    names = ["view_user", "change_user", "add_user", "delete_user", "view_session", "change_session"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    browser = Client()
    browser.force_login(user)
    return browser


def test_who_may_change_users_sets_no_password_nor_address_and_grants_no_right(db: None) -> None:
    browser, person = helper(), somebody()
    before = User.objects.get(pk=person.id)
    form = {"email": "mine@example.com", "tier": "pro", "timezone": "UTC", "locale": "en", "is_active": "on",
            "is_staff": "on", "is_superuser": "on", "password": "x", "groups": "1",
            "user_permissions": str(Permission.objects.first().pk)}  # fmt: skip
    assert browser.post(reverse("admin:accounts_user_change", args=[person.id]), form).status_code == 302
    after = User.objects.get(pk=person.id)
    assert (after.tier, after.email, after.password) == (before.tier, before.email, before.password)
    assert (after.is_staff, after.is_superuser, after.user_permissions.count()) == (False, False, 0)
    password = reverse("admin:auth_user_password_change", args=[person.id])
    new = {"password1": "nanoseconds of wire", "password2": "nanoseconds of wire", "set-password": "1"}
    assert (browser.get(password).status_code, browser.post(password, new).status_code) == (403, 403)
    page = browser.get(reverse("admin:accounts_user_change", args=[person.id])).content.decode()
    assert "Group" not in browser.get("/admin/").content.decode()
    assert not re.search(r'name="(email|is_staff|is_superuser|groups|user_permissions|password)"', page)


def test_superusers_are_out_of_reach_for_staff(db: None) -> None:
    browser, boss = helper(), somebody(is_superuser=True, is_staff=True)
    session = Session.objects.get(user_id=boss.id)
    assert boss.id not in listed(browser, USERS, q=boss.email)
    assert session.pk not in listed(browser, SESSIONS, q=boss.email)
    for page in ("change", "delete", "history"):
        assert browser.get(reverse(f"admin:accounts_user_{page}", args=[boss.id])).status_code == 302
    for action in ("deactivate", "end_all_sessions", "send_password_reset", "delete_selected"):
        act(browser, USERS, action, boss.id, post="yes")
    act(browser, SESSIONS, "end_sessions", session.pk)
    assert User.objects.get(pk=boss.id).is_active
    assert Session.objects.live().filter(pk=session.pk).exists()


def test_what_staff_did_is_seen_by_the_owner(staff: Client) -> None:
    person, other = somebody(), somebody()
    session = Session.objects.get(user_id=person.id)
    form = {"tier": "power", "timezone": "UTC", "locale": "en", "is_active": "on"}
    staff.post(reverse("admin:accounts_user_change", args=[person.id]), form)
    act(staff, SESSIONS, "end_sessions", session.pk)
    again = services.login(email=person.email, password=person.password).access_token
    headers = {"Authorization": f"Bearer {again}"}
    rows = Client().get("/api/v1/auth/staff-actions", headers=headers).json()
    assert [(row["kind"], row["object"]) for row in rows] == [("signed_out", "session"), ("changed", "user")]
    assert rows[0]["object_id"] == str(session.pk)
    assert "staff_id" not in rows[0]
    act(staff, USERS, "deactivate", person.id)
    assert StaffAction.objects.filter(user_id=person.id).first().kind == "deactivated"  # type: ignore[union-attr]
    assert not StaffAction.objects.filter(user_id=other.id).exists()
    assert not LogEntry.objects.exists()  # it would keep the address of a deleted account


# ── Browsers ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_browser_is_among_the_users_sessions_and_ends_with_its_own(staff: Client) -> None:
    boss = User.objects.get(pk=staff.session["_auth_user_id"])
    mine = staff.get("/api/v1/auth/sessions").json()
    current = [row for row in mine if row["current"]]
    assert len(current) == 1
    assert Session.objects.live().filter(user=boss).count() == len(mine) == 2
    Session.objects.filter(pk=current[0]["id"]).end(RevokedReason.OTHER_DEVICE)
    assert staff.get("/api/v1/auth/me").status_code == 401
    assert staff.get(reverse(USERS)).status_code == 302


def test_a_new_password_signs_browsers_out(staff: Client) -> None:
    boss = User.objects.get(pk=staff.session["_auth_user_id"])
    services.end_sessions(user=boss, reason=RevokedReason.PASSWORD)
    assert staff.get(reverse(USERS)).status_code == 302


def test_changing_ones_password_in_the_admin_signs_out_all_devices(staff: Client) -> None:
    boss = User.objects.get(pk=staff.session["_auth_user_id"])
    form = {"old_password": "correct horse battery", "new_password1": "nanoseconds of wire",
            "new_password2": "nanoseconds of wire"}  # fmt: skip
    assert staff.post("/admin/password_change/", form).status_code == 302
    assert services.login(email=boss.email, password="nanoseconds of wire")
    assert Session.objects.live().filter(user=boss).count() == 1


def test_signing_out_ends_the_session(staff: Client) -> None:
    boss = User.objects.get(pk=staff.session["_auth_user_id"])
    staff.post("/admin/logout/")
    assert Session.objects.filter(user=boss, revoked_reason="logout").count() == 1


def test_saving_a_user_unchecked_as_active_signs_them_out(staff: Client) -> None:
    person = somebody()
    form = {"email": person.email, "tier": "power", "timezone": "Asia/Tokyo", "locale": "ja"}
    answer = staff.post(reverse("admin:accounts_user_change", args=[person.id]), form)
    assert answer.status_code == 302
    user = User.objects.get(pk=person.id)
    assert (user.timezone, user.is_active) == ("Asia/Tokyo", False)
    assert user.tier == "free"  # a plan is given as an override, with a reason
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
