"""Access tokens: fresh for everybody who asks, refreshed by one at a time, and lost with one word to the user."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.db import connections as databases
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core import enqueue
from adiuva.core.errors import NotFound, Unavailable
from adiuva.devices.models import Device
from integrations import connections, signals, tokens
from integrations.errors import NeedsReauth, ProviderNotConfigured, ProviderUnavailable
from integrations.models import Connection
from tests.factories import a_process
from tests.fakes.identity import Bare, Fail, Identity, Lost, Refuse, Rotate
from tests.fakes.provider import WAIT_S, Hold
from tests.integrations.browser_user import Owner

BOTH = pytest.mark.parametrize("provider", ["gmail", "outlook"])


def token(owner: Owner, row: Connection, rejected: str | None = None) -> str:
    return asyncio.run(tokens.access_token(row.pk, user_id=owner.id, rejected=rejected))


def expired(row: Connection, *, ago: timedelta = timedelta(minutes=1), **values: Any) -> str:
    """Its token has ended, at the provider too. Returns it."""
    past = Now() - ago
    Connection.objects.filter(pk=row.pk).update(renew_at=past, expires_at=past, **values)
    return held(row)


def due(row: Connection) -> str:
    """Its token is valid for four minutes more. Returns it."""
    Connection.objects.filter(pk=row.pk).update(
        renew_at=Now() - timedelta(minutes=1), expires_at=Now() + timedelta(minutes=4)
    )
    return held(row)


def held(row: Connection, column: str = "access_token") -> str:
    return Connection.objects.get(pk=row.pk).unseal(getattr(Connection, column))


def rested(row: Connection) -> None:
    """The pause after a failure is over."""
    Connection.objects.filter(pk=row.pk).update(retry_at=None)


@pytest.fixture
def lost(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What `needs_reauth` was sent with for this user, whom no worker of another test tells."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(enqueue, "_put", lambda *_: None)

    def hear(sender: Any, signal: Any, **sent: Any) -> None:
        assert transaction.get_connection().in_atomic_block
        if sent["user_id"] == owner.id:
            seen.append(sent)

    signals.needs_reauth.connect(hear, weak=False, dispatch_uid="test")
    yield seen
    signals.needs_reauth.disconnect(dispatch_uid="test")


@BOTH
def test_a_token_is_kept_until_five_minutes_before_its_end(
    owner: Owner, identity: Identity, provider: str
) -> None:
    row = owner.connect(provider)
    first = held(row)
    assert token(owner, row) == first
    assert identity.refreshes == []
    assert timedelta(minutes=54) < row.renew_at - timezone.now() < timedelta(minutes=56)
    due(row)
    second = token(owner, row)
    assert second != first and identity.accepts(second) and held(row) == second
    assert len(identity.refreshes) == 1
    assert token(owner, row) == second


@BOTH
def test_fifty_who_ask_at_once_cause_one_refresh(owner: Owner, identity: Identity, provider: str) -> None:
    """Tasks of several event loops, as the threads of a worker have them."""
    row = owner.connect(provider)
    expired(row)
    hold = Hold()
    identity.script(hold)
    begun = threading.Barrier(6)

    async def ten() -> list[str]:
        begun.wait(WAIT_S)
        asks = (tokens.access_token(row.pk, user_id=owner.id) for _ in range(10))
        return await asyncio.gather(*asks)

    with ThreadPoolExecutor(5) as threads:
        loops = [threads.submit(asyncio.run, ten()) for _ in range(5)]
        begun.wait(WAIT_S)
        assert hold.reached.wait(WAIT_S)
        hold.release()
        found = [one for loop in loops for one in loop.result(WAIT_S)]
    assert len(found) == 50 and set(found) == {held(row)}
    assert len(identity.refreshes) == 1


@BOTH
def test_processes_that_share_nothing_but_the_row_cause_one_refresh(
    owner: Owner, identity: Identity, provider: str
) -> None:
    """The refresh below what a process shares: each caller here is one that knows of no other."""
    row = owner.connect(provider)
    expired(row)
    hold = Hold()
    identity.script(hold)

    def alone(_: int) -> str:
        try:
            return tokens.refresh(row.pk, user_id=owner.id)
        finally:
            databases.close_all()

    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(alone, each) for each in range(6)]
        assert hold.reached.wait(WAIT_S)
        hold.release()
        found = {one.result(WAIT_S) for one in asked}
    assert found == {held(row)}
    assert (len(identity.refreshes), identity.peak) == (1, 1)


def test_who_gives_up_waiting_does_not_take_the_refresh_from_the_others(
    owner: Owner, identity: Identity
) -> None:
    row = owner.connect()
    expired(row)
    hold = Hold()
    identity.script(hold)

    async def two() -> str:
        first = asyncio.create_task(tokens.access_token(row.pk, user_id=owner.id))
        while not hold.reached.is_set():
            await asyncio.sleep(0.002)
        second = asyncio.create_task(tokens.access_token(row.pk, user_id=owner.id))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        hold.release()
        return await second

    assert asyncio.run(two()) == held(row)
    assert len(identity.refreshes) == 1


def test_a_token_that_was_rejected_is_refreshed_once_for_all_who_met_it(
    owner: Owner, identity: Identity
) -> None:
    """The provider's clock, or its user, ended it early: by ours it is good for an hour."""
    row = owner.connect()
    old = held(row)
    identity.expire()

    async def many() -> set[str]:
        asks = (tokens.access_token(row.pk, user_id=owner.id, rejected=old) for _ in range(10))
        return set(await asyncio.gather(*asks))

    (new,) = asyncio.run(many())
    assert identity.accepts(new) and new != old
    assert token(owner, row, rejected=old) == new  # one more, who comes late with the old one
    assert len(identity.refreshes) == 1


def test_clocks_of_servers_do_not_matter(owner: Owner, identity: Identity) -> None:
    row = owner.connect()
    first = held(row)
    for hours in (-48, 48):
        with time_machine.travel(timezone.now() + timedelta(hours=hours)):
            assert token(owner, row) == first
    with time_machine.travel(timezone.now() - timedelta(hours=48)):
        expired(row)
        second = token(owner, row)
    assert token(owner, row) == second
    assert len(identity.refreshes) == 1


@pytest.mark.parametrize(("life_s", "kept_s"), [(60, 60), (0, 60), (-5, 60), (10**9, 86_400)])
def test_a_providers_idea_of_a_tokens_life_is_taken_within_bounds(
    owner: Owner, identity: Identity, life_s: int, kept_s: int
) -> None:
    identity.life_s = life_s
    row = owner.connect()
    assert abs((row.expires_at - timezone.now()).total_seconds() - kept_s) < 20
    assert token(owner, row) == held(row)
    assert identity.refreshes == []


@BOTH
def test_the_old_refresh_token_is_kept_when_none_comes_and_a_new_one_is_used(
    owner: Owner, identity: Identity, provider: str
) -> None:
    row = owner.connect(provider)
    first = held(row, "refresh_token")
    identity.script(Bare(), Rotate())
    for _ in range(3):
        expired(row)
        token(owner, row)
    sent = [request.form["refresh_token"] for request in identity.refreshes]
    assert sent[:2] == [first, first]
    assert sent[2] != first
    assert Connection.objects.get(pk=row.pk).health == "ok"


@BOTH
def test_a_refresh_whose_answer_is_lost_is_asked_for_again(
    owner: Owner, identity: Identity, provider: str
) -> None:
    row = owner.connect(provider)
    expired(row)
    identity.script(Lost())
    with pytest.raises(Unavailable) as away:
        token(owner, row)
    assert away.value.code == "provider_away"
    rested(row)
    assert identity.accepts(token(owner, row))
    assert len(identity.refreshes) == 2


def test_after_a_failure_the_provider_is_left_alone_as_long_as_it_asks(
    owner: Owner, identity: Identity
) -> None:
    row = owner.connect()
    expired(row)
    identity.script(Fail(429, retry_after=120))
    waits = []
    for _ in range(3):
        with pytest.raises(ProviderUnavailable) as away:
            token(owner, row)
        waits.append(away.value.retry_after_s)
    assert waits[0] == 120 and all(110 < wait <= 120 for wait in waits)
    assert len(identity.refreshes) == 1
    rested(row)
    assert identity.accepts(token(owner, row))
    assert Connection.objects.get(pk=row.pk).retry_at is None


def test_a_provider_that_is_away_does_not_matter_while_the_token_is_still_valid(
    owner: Owner, identity: Identity
) -> None:
    row = owner.connect()
    first = due(row)
    identity.script(Fail(503), Fail(503), Refuse("invalid_client", 401))
    assert token(owner, row) == first
    assert token(owner, row) == first  # in the pause
    assert len(identity.refreshes) == 1
    for _ in range(2):  # but not for who was refused with it, in the pause and after
        with pytest.raises(ProviderUnavailable):
            token(owner, row, rejected=first)
        rested(row)
    with pytest.raises(ProviderNotConfigured):
        token(owner, row)
    assert Connection.objects.get(pk=row.pk).health == "ok"  # not the user's fault


@BOTH
def test_a_permission_that_is_gone_needs_the_user_who_is_told_once(
    owner: Owner, identity: Identity, provider: str, lost: list[dict[str, Any]]
) -> None:
    row = owner.connect(provider)
    expired(row)
    identity.revoke("ada@example.com")

    async def many() -> list[Any]:
        asks = (tokens.access_token(row.pk, user_id=owner.id) for _ in range(20))
        return await asyncio.gather(*asks, return_exceptions=True)

    found = asyncio.run(many())
    assert {type(one) for one in found} == {NeedsReauth}
    assert {(one.code, one.status, one.extra["connection"]) for one in found} == {
        ("needs_reauth", 409, str(row.pk))
    }
    assert len(identity.refreshes) == 1
    assert lost == [{"connection_id": row.pk, "user_id": owner.id}]
    shown = owner.rest.get(f"/api/v1/connections/{row.pk}").json()
    assert (shown["health"], shown["reason"]) == ("needs_reauth", "refused")
    assert "taken back" in shown["message"]

    connections.sweep()  # nobody is here who could be told
    with pytest.raises(NeedsReauth):
        token(owner, row)
    assert len(lost) == 1 and len(identity.refreshes) == 1


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("interaction_required", "sign_in"),
        ("consent_required", "sign_in"),
        ("admin_policy_enforced", "refused"),
    ],
)
def test_a_provider_that_wants_to_see_its_user_needs_them(
    owner: Owner, identity: Identity, word: str, reason: str, lost: list[dict[str, Any]]
) -> None:
    row = owner.connect("outlook")
    expired(row)
    identity.script(Refuse(word))
    with pytest.raises(NeedsReauth):
        token(owner, row)
    assert Connection.objects.get(pk=row.pk).reason == reason
    assert len(lost) == 1


def test_without_a_refresh_token_the_end_of_the_token_needs_the_user(
    owner: Owner, identity: Identity
) -> None:
    row = owner.connect()
    expired(row, refresh_token=None)
    with pytest.raises(NeedsReauth, match="no lasting permission"):
        token(owner, row)
    assert identity.refreshes == []


def test_news_are_announced_while_somebody_is_here_until_they_are_told(
    owner: Owner, identity: Identity, lost: list[dict[str, Any]]
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("the listener is not well")

    row = owner.connect()
    expired(row)
    identity.revoke("ada@example.com")
    signals.needs_reauth.connect(fail, weak=False, dispatch_uid="fails")
    try:
        with pytest.raises(NeedsReauth):
            token(owner, row)
        lost.clear()
        connections.sweep()
        assert lost == []  # no device is here
        desk = Device.objects.create(user_id=owner.id, device_id="desk", process=a_process())
        connections.sweep()
        assert lost == []  # one that knows no such frames
        Device.objects.filter(pk=desk.pk).update(protocol=2)
        connections.sweep()  # the failing one fails
    finally:
        signals.needs_reauth.disconnect(dispatch_uid="fails")
    lost.clear()
    connections.sweep()
    assert lost == [{"connection_id": row.pk, "user_id": owner.id}]
    assert [tokens.claim_notice(row.pk) for _ in range(3)] == [True, False, False]
    connections.sweep()
    assert len(lost) == 1
    tokens.release_notice(row.pk)
    connections.sweep()
    assert len(lost) == 2 and tokens.claim_notice(row.pk)


def test_a_use_is_noted_without_waiting_for_a_refresh(owner: Owner, identity: Identity) -> None:
    row = owner.connect()
    assert row.last_used_at is None
    with transaction.atomic():
        Connection.objects.select_for_update().get(pk=row.pk)
        assert token(owner, row) == held(row)  # by another thread, on another connection
    assert Connection.objects.get(pk=row.pk).last_used_at is None
    token(owner, row)
    assert Connection.objects.get(pk=row.pk).last_used_at is not None


def test_another_users_connection_is_none(owner: Owner, identity: Identity) -> None:
    row, stranger = owner.connect(), Owner(identity)
    for who, what in ((stranger.id, row.pk), (owner.id, uuid4())):
        with pytest.raises(NotFound):
            asyncio.run(tokens.access_token(what, user_id=who))
        with pytest.raises(NotFound):
            tokens.refresh(what, user_id=who)
        with pytest.raises(NotFound):
            tokens.refresh_now(what, user_id=who)


def test_a_token_that_was_moved_to_another_row_does_not_open(owner: Owner, identity: Identity) -> None:
    from adiuva.core.crypto import SealBroken

    one, other = owner.connect(), owner.connect(account="grace@example.com")
    Connection.objects.filter(pk=one.pk).update(access_token=other.access_token)
    with pytest.raises(SealBroken):
        token(owner, one)
