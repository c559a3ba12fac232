"""A socket lives no longer than its session, however that ends, and knows its account's plan."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable

import pytest
from django.db import connection
from django.utils import timezone

from adiuva.accounts import services, session_check
from adiuva.accounts.models import RevokedReason, Session, SessionChange, User
from adiuva.accounts.tasks import prune
from adiuva.core import db
from adiuva.devices.connections import ConnectionRegistry
from tests.factories import Person, somebody
from tests.socket_client import Socket


def _deleted(person: Person) -> None:
    services.delete_account(user=User.objects.get(pk=person.id))


def _deactivated(person: Person) -> None:
    services.deactivate(users=User.objects.filter(pk=person.id))


def _signed_out(person: Person) -> None:
    services.end_sessions(user=User.objects.get(pk=person.id), reason=RevokedReason.STAFF)


def _row_deleted(person: Person) -> None:
    Session.objects.filter(user_id=person.id).delete()


ENDS: list[Callable[[Person], None]] = [_deleted, _deactivated, _signed_out, _row_deleted]


@pytest.mark.parametrize("end", ENDS)
async def test_a_socket_closes_within_seconds_when_its_session_ends(
    web: str, person: Person, end: Callable[[Person], None]
) -> None:
    stranger = await db.run(somebody)
    async with Socket(web, person.access_token) as socket, Socket(web, stranger.access_token) as other:
        await socket.hello()
        await other.hello()
        await db.run(end, person)
        assert await socket.code() == 4401
        assert await other.is_alive()


@pytest.mark.parametrize("end", [*ENDS, lambda person: User.objects.filter(pk=person.id).update(tier="pro")])
def test_whatever_changes_a_session_is_found_by_the_next_look(
    person: Person, db: None, end: Callable[[Person], None]
) -> None:
    stranger = services.authenticate(access_token=somebody().access_token).pk
    mine = services.authenticate(access_token=person.access_token).pk
    looked_at, before = session_check.recheck(connected={mine, stranger}, share=set(), since=None)
    assert before == {}
    end(person)
    _, found = session_check.recheck(connected={mine, stranger}, share=set(), since=looked_at)
    assert found == {mine: "pro" if Session.objects.live().filter(pk=mine).exists() else None}
    _, found = session_check.recheck(connected={stranger}, share=set(), since=looked_at)
    assert found == {}


def test_a_look_finds_what_changed_while_the_database_was_away(person: Person, db: None) -> None:
    mine = services.authenticate(access_token=person.access_token).pk
    _signed_out(person)
    an_hour_ago = timezone.now() - dt.timedelta(hours=1)
    SessionChange.objects.update(changed_at=an_hour_ago + dt.timedelta(minutes=1))
    assert session_check.recheck(connected={mine}, share=set(), since=None)[1] == {}
    assert session_check.recheck(connected={mine}, share=set(), since=an_hour_ago)[1] == {mine: None}


def test_a_look_without_changes_costs_one_statement_and_no_more_with_more_sockets(
    person: Person, db: None, django_assert_num_queries: pytest.FixtureRequest
) -> None:
    with django_assert_num_queries(1):  # type: ignore[operator]
        session_check.recheck(connected={uuid.uuid4() for _ in range(500)}, share=set(), since=None)


def test_using_and_refreshing_a_session_is_no_change(person: Person, db: None) -> None:
    before = SessionChange.objects.count()
    services.refresh(refresh_token=person.refresh_token)
    Session.objects.filter(user_id=person.id).update(last_used_at=timezone.now())
    user = User.objects.get(pk=person.id)
    user.locale = "it"
    user.save()
    assert SessionChange.objects.count() == before


def test_changes_are_forgotten_after_a_day(person: Person, db: None) -> None:
    before = set(SessionChange.objects.values_list("pk", flat=True))
    _signed_out(person)
    change = SessionChange.objects.exclude(pk__in=before)
    assert change.update(changed_at=timezone.now() - dt.timedelta(hours=23)) == 1
    prune()
    assert change.update(changed_at=timezone.now() - dt.timedelta(hours=25)) == 1
    prune()
    assert not change.exists()


def test_of_a_deleted_account_no_change_names_it(person: Person, db: None) -> None:
    _deleted(person)
    with connection.cursor() as cursor:
        cursor.execute("SELECT change::text FROM accounts_sessionchange AS change")
        rows = [row for (row,) in cursor.fetchall()]
    assert rows and not any(str(person.id) in row for row in rows)


class _Connection:
    """A socket as the registry sees it."""

    pk, epoch, tier = None, 0, ""

    def __init__(self, session_id: uuid.UUID) -> None:
        self.session_id, self.code = session_id, 0

    def end(self, code: int) -> None:
        self.code = code


async def test_what_ends_by_time_is_found_within_a_round(committed_db: str) -> None:
    people = [await db.run(somebody) for _ in range(5)]
    sessions = [await db.run(services.authenticate, access_token=one.access_token) for one in people]
    gone = {one.pk for one in sessions[:3]}
    past = timezone.now() - dt.timedelta(minutes=1)
    await db.run(
        lambda: Session.objects.filter(pk__in=gone).update(
            created_at=past - dt.timedelta(days=1), expires_at=past
        )
    )
    registry = ConnectionRegistry()
    connections = [_Connection(one.pk) for one in sessions]
    registry._connections.update(connections)  # type: ignore[arg-type]
    for _ in range(20):
        await registry._check_sessions()
    assert {one.session_id for one in connections if one.code == 4401} == gone
    assert [one.tier for one in connections if one.session_id not in gone] == ["free", "free"]
