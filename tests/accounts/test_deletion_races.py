"""An account that is deleted or changed while its owner's devices and workers write: nothing fails with a 500, nothing
is left of a deleted one, and no other change is undone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from adiuva.accounts import services
from adiuva.accounts.models import User
from adiuva.core.errors import NotFound
from adiuva.export import services as exports
from adiuva.export.build import build_export
from adiuva.export.models import Export, ExportChunk
from tests.agents.factories import create_agent
from tests.conflicts import overtaken
from tests.factories import Person, somebody

ROUNDS = 6


def _closing(work: object) -> object:
    try:
        return work()  # type: ignore[operator]
    finally:
        connections.close_all()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_an_account_is_deleted_while_its_export_is_made(committed_db: str, number: int) -> None:
    person = somebody()
    for _ in range(5):
        create_agent(person.id)
    export = exports.request_export(user_id=person.id)
    start = threading.Barrier(2)

    def build() -> None:
        start.wait(10)
        build_export(export.pk)

    def delete() -> None:
        start.wait(10)
        services.delete_account(user=User.objects.get(pk=person.id))

    with ThreadPoolExecutor(2) as threads:
        for job in [threads.submit(_closing, each) for each in (build, delete)]:
            job.result(60)
    assert not User.objects.filter(pk=person.id).exists()
    assert not Export.objects.filter(pk=export.pk).exists()


def test_a_part_that_is_added_during_the_deletion_waits_and_then_finds_nothing(committed_db: str) -> None:
    """The order that failed: a chunk, not yet committed, when the deletion has deleted the others."""
    person = somebody()
    export = exports.request_export(user_id=person.id)
    inserted, deleting = threading.Event(), threading.Event()

    def add() -> bool:
        try:
            with transaction.atomic():
                ExportChunk.objects.create(export_id=export.pk, number=7, sealed=b"x")
                inserted.set()
                deleting.wait(0.3)
            return True
        except Exception as error:
            return type(error).__name__ != "IntegrityError"

    with ThreadPoolExecutor(2) as threads:
        adding = threads.submit(_closing, add)
        assert inserted.wait(10)
        services.delete_account(user=User.objects.get(pk=person.id))
        deleting.set()
        adding.result(30)
    assert not ExportChunk.objects.filter(export_id=export.pk).exists()
    assert not User.objects.filter(pk=person.id).exists()


def test_creating_while_deleting_is_refused_and_never_fails(web: str, committed_db: str) -> None:
    seen: set[int] = set()
    agent = {"name": "Desk", "device_id": "desk", "directory_paths": ["/home/ada"], "data_types": ["tasks"],
             "prompt_template": "", "file_extensions": [], "schedule_cron": ""}  # fmt: skip

    def create(person: Person, start: threading.Barrier) -> None:
        with person.rest(web) as rest:
            rest.get("/auth/me")
            start.wait(10)
            for _ in range(4):
                seen.add(rest.post("/agents/local", json=agent).status_code)
                seen.add(rest.post("/memory/core", json={"key": "k", "content": "c"}).status_code)

    for _ in range(2):
        person, start = somebody(), threading.Barrier(4)
        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(create, person, start) for _ in range(3)]
            start.wait(10)
            try:
                services.delete_account(user=User.objects.get(pk=person.id))
            except NotFound:
                raise AssertionError from None
            for job in jobs:
                job.result(60)
        assert not User.objects.filter(pk=person.id).exists()
    assert seen <= {200, 201, 401, 404, 409}, seen


# ── Changes of the account's own row ────────────────────────────────────────────────────────────────────────


def patch_me(person: Person) -> int:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return client.patch("/api/v1/auth/me", {"timezone": "Asia/Tokyo"}).status_code


def ask_address_change(person: Person) -> int:
    body = {"email": f"new-{person.email}", "password": person.password}
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return client.post("/api/v1/auth/email/change", body).status_code


def change_password(person: Person) -> int:
    body = {"current_password": person.password, "new_password": "another quiet afternoon"}
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return client.post("/api/v1/auth/password", body).status_code


def edit_in_the_admin(person: Person) -> int:
    boss = User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id)
    browser = Client()
    browser.force_login(boss)
    form = {"timezone": "Asia/Tokyo", "locale": "en", "is_active": "on"}
    return browser.post(reverse("admin:accounts_user_change", args=[person.id]), form).status_code


@pytest.mark.parametrize(
    ("act", "status"),
    [(patch_me, 404), (ask_address_change, 404), (change_password, 404), (edit_in_the_admin, 404)],
)
def test_a_change_that_waits_for_the_deletion_brings_nothing_back(
    committed_db: str, settings: Any, act: Callable[[Person], int], status: int
) -> None:
    settings.MAIL_ENABLED = True
    person = somebody()
    user = User.objects.get(pk=person.id)
    assert overtaken(lambda: act(person), lambda: services.delete_account(user=user)) == status
    assert not User.objects.filter(pk=person.id).exists()


@pytest.mark.parametrize(("act", "status"), [(patch_me, 200), (edit_in_the_admin, 302)])
def test_a_change_of_the_time_zone_undoes_no_other_change(
    committed_db: str, act: Callable[[Person], int], status: int
) -> None:
    person = somebody()

    def change() -> None:
        user = User.objects.get(pk=person.id)
        services.set_password(user=user, password="another quiet afternoon")
        User.objects.filter(pk=user.pk).update(tier="pro", email=f"new-{user.email}", locale="it")

    assert overtaken(lambda: act(person), change) == status
    user = User.objects.get(pk=person.id)
    assert (user.timezone, user.tier, user.email, user.locale) == (
        "Asia/Tokyo", "pro", f"new-{person.email}", "it"
    )  # fmt: skip
    assert user.check_password("another quiet afternoon")


def log_in(person: Person) -> int:
    return (
        APIClient()
        .post("/api/v1/auth/login", {"email": person.email, "password": person.password})
        .status_code
    )


@pytest.mark.parametrize("act", [log_in, change_password])
def test_a_request_with_the_old_password_does_not_undo_a_new_one(
    committed_db: str, settings: Any, act: Callable[[Person], int]
) -> None:
    person, new = somebody(), "nanoseconds of wire"
    user = User.objects.get(pk=person.id)
    # Hashes that were made at another cost are renewed when their password is typed.
    settings.PASSWORD_HASHERS = ["adiuva.accounts.hashers.Argon2id"]
    found = overtaken(lambda: act(person), lambda: services.set_password(user=user, password=new))
    assert found in (400, 401)
    assert services.check_credentials(email=person.email, password=new)


def test_a_form_with_the_old_password_does_not_undo_a_new_one(committed_db: str) -> None:
    person, new = somebody(is_staff=True), "nanoseconds of wire"
    user, browser = User.objects.get(pk=person.id), Client()
    browser.force_login(user)
    typed = "another quiet afternoon"
    form = {"old_password": person.password, "new_password1": typed, "new_password2": typed}
    change = lambda: services.set_password(user=User.objects.get(pk=person.id), password=new)  # noqa: E731
    answer = overtaken(lambda: browser.post("/admin/password_change/", form), change)
    assert answer.status_code == 403
    assert services.check_credentials(email=person.email, password=new)
