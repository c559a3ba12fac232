"""An account that is deleted while its owner's devices and workers write: nothing fails with a 500, nothing is left."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections, transaction

from adiuva.accounts import services
from adiuva.accounts.models import User
from adiuva.core.errors import NotFound
from adiuva.export import services as exports
from adiuva.export.build import build_export
from adiuva.export.models import Export, ExportChunk
from tests.agents.factories import create_agent
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
