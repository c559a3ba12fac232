"""Valid access tokens of connections; one refresh of a connection at a time, however many callers ask.

Callers in one process share a single refresh, which runs in a thread. Between processes the row lock decides: a process
that had to wait for it finds the new token in the row. The lock is held during the request to the provider (some
seconds, bounded), so that its answer is saved before another process can ask.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import connection as database
from django.db import connections as databases
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from adiuva.core import db
from adiuva.core.errors import NotFound, Text
from integrations import oauth_clients, signals
from integrations.errors import GrantRefused, NeedsReauth, ProviderUnavailable
from integrations.models import Connection, Health, Reason, reconnect_text

log = structlog.get_logger(__name__)

# A token is refreshed this long before it expires, so that none expires during a request.
_RENEW_BEFORE_EXPIRY: Final = timedelta(minutes=5)
# `last_used_at` is written at most this often.
_LAST_USED_PRECISION: Final = timedelta(minutes=1)
# `refresh_now` does nothing within this time after a refresh: providers count refreshes.
_MIN_REFRESH_INTERVAL: Final = timedelta(seconds=10)
# Pause after a failed refresh, so that the callers that waited for it do not try one after the other.
_FAILURE_PAUSE_S: Final = 5
# A longer Retry-After of a provider is cut to this.
_MAX_PAUSE_S: Final = 900
# The lowest protocol version of devices that accept notices.
NOTICE_PROTOCOL: Final = 2
# A pool apart from the database's: waiting for a provider must not block other queries. Four threads, as each holds
# a database connection while it waits.
_threads = ThreadPoolExecutor(4, thread_name_prefix="tokens")
_running_refreshes: dict[tuple[UUID, str | None], Future[str]] = {}
_lock = threading.Lock()

# SKIP LOCKED: does not wait for a refresh that holds the row's lock.
_TOUCH_LAST_USED = """
UPDATE integrations_connection SET last_used_at = now() WHERE id = (
    SELECT id FROM integrations_connection WHERE id = %s FOR NO KEY UPDATE SKIP LOCKED
)
"""


async def access_token(connection_id: UUID, *, user_id: UUID, rejected: str | None = None) -> str:
    """Return the access token of a user's connection, for the `Authorization: Bearer` header of one or more requests.

    By the database's clock it is valid for some minutes at least: it is refreshed when it is about to expire. Call this
    before each request (one query), and store the token nowhere.

    `rejected`: a token to which the provider has just answered 401. If it is still the current one, it is refreshed
    even though it has not expired; if somebody else has refreshed it meanwhile, the new one is returned. Repeat the
    request once with the returned token, not twice.

    Raises NotFound (no such connection, or another user's), NeedsReauth (the user has to connect again; until then the
    provider gets no request), ProviderUnavailable (try again later, after `retry_after_s` if it is set) or
    ProviderNotConfigured.
    """
    token = await db.run(current_token, connection_id, user_id=user_id, rejected=rejected)
    if token is not None:
        return token
    # Shielded: a cancelled caller must not cancel the refresh that others wait for.
    return await asyncio.shield(asyncio.wrap_future(_shared_refresh(connection_id, user_id, rejected)))


def current_token(connection_id: UUID, *, user_id: UUID, rejected: str | None = None) -> str | None:
    """Return the stored token, or None if it must be refreshed first. Raises what `access_token` raises."""
    row = _with_database_time().of(user_id).filter(pk=connection_id).first()
    if row is None:
        raise NotFound("there is no such connection")
    token = _usable_token(row, rejected)
    if token is not None and (row.last_used_at is None or row.now - row.last_used_at > _LAST_USED_PRECISION):
        with database.cursor() as cursor:
            cursor.execute(_TOUCH_LAST_USED, [row.pk])
    return token


def refresh(connection_id: UUID, *, user_id: UUID, rejected: str | None = None) -> str:
    """Refresh the token under the row's lock if that is due. Blocks. Raises what `access_token` raises."""
    failure: ProviderUnavailable | None = None
    with transaction.atomic():
        row = (
            _with_database_time()
            .of(user_id)
            .select_for_update(of=("self",), no_key=True)
            .filter(pk=connection_id)
            .first()
        )
        if row is None:
            raise NotFound("there is no such connection")
        token = _usable_token(row, rejected)
        if token is not None:
            return token
        try:
            if row.refresh_token is None:
                raise GrantRefused(Reason.NO_REFRESH)
            grant = oauth_clients.refresh(row.provider, row.unseal(Connection.refresh_token))
        except GrantRefused as refusal:
            _mark_lost(row, Reason(refusal.reason))
        except ProviderUnavailable as error:
            failure = error
            pause_s = min(error.retry_after_s or _FAILURE_PAUSE_S, _MAX_PAUSE_S)
            _update(row, retry_at=Now() + timedelta(seconds=pause_s))
        else:
            token = store_grant(row, grant, refreshed_at=Now(), refreshes=F("refreshes") + 1)
            log.info("connection.refreshed", connection_id=str(row.pk), user_id=str(user_id))
    if token is not None:
        return token
    if failure is None:
        raise _needs_reauth(row)
    log.warning("connection.refresh_failed", connection_id=str(row.pk), user_id=str(user_id))
    held: str = row.unseal(Connection.access_token)
    if held != rejected and row.left > timedelta():
        return held  # the refresh was early: this token is still valid for a while
    raise failure


def refresh_now(connection_id: UUID, *, user_id: UUID) -> None:
    """Refresh even if it is not due, but not twice within _MIN_REFRESH_INTERVAL. Blocks.

    Raises what `access_token` raises.
    """
    row = _with_database_time().of(user_id).filter(pk=connection_id).first()
    if row is None:
        raise NotFound("there is no such connection")
    if row.health == Health.OK and row.refreshed_at and row.now - row.refreshed_at < _MIN_REFRESH_INTERVAL:
        return
    refresh(connection_id, user_id=user_id, rejected=row.unseal(Connection.access_token))


def store_grant(row: Connection, grant: oauth_clients.Grant, **more: Any) -> str:
    """Save a grant, and `more` columns with it, and return the access token. The caller holds the row's lock."""
    life = timedelta(seconds=grant.lifetime_s)
    changes: dict[str, Any] = {
        "access_token": row.seal(Connection.access_token, grant.access_token),
        "renew_at": Now() + life - min(_RENEW_BEFORE_EXPIRY, life / 2),
        "expires_at": Now() + life,
        "retry_at": None,
        **more,
    }
    if grant.refresh_token:  # most providers send a new one only sometimes
        changes["refresh_token"] = row.seal(Connection.refresh_token, grant.refresh_token)
    _update(row, **changes)
    return grant.access_token


def announce_loss(connection_id: UUID) -> None:
    """Send `needs_reauth` for a loss that its user was not told of. Receivers call `claim_notice` before telling."""
    with transaction.atomic():
        lost = Connection.objects.unannounced().filter(pk=connection_id)
        if (user_id := lost.values_list("user_id", flat=True).first()) is not None:
            signals.needs_reauth.send(Connection, connection_id=connection_id, user_id=user_id)


def claim_notice(connection_id: UUID) -> bool:
    """Return whether the caller is to notify the user of a loss. True for exactly one caller."""
    return bool(Connection.objects.unannounced().filter(pk=connection_id).update(told_at=Now()))


def release_notice(connection_id: UUID) -> None:
    """Undo `claim_notice`: no device could be notified."""
    Connection.objects.filter(pk=connection_id, health=Health.NEEDS_REAUTH).update(told_at=None)


# ── Internals ──────────────────────────────────────────────────────────────────────────────────────────────


def _with_database_time() -> Any:
    """Return connections with times by the database's clock, since the clocks of our servers may differ."""
    return Connection.objects.annotate(
        now=Now(), left=F("expires_at") - Now(), due=Q(renew_at__lte=Now()), paused=Q(retry_at__gt=Now())
    )


def _usable_token(row: Any, rejected: str | None) -> str | None:
    """Return the stored token if it can be used; None if it has to be refreshed. Raises if neither is possible."""
    if row.health != Health.OK:
        raise _needs_reauth(row)
    token: str = row.unseal(Connection.access_token)
    if token != rejected and not row.due:
        return token
    if not row.paused:
        return None
    if token != rejected and row.left > timedelta():
        return token
    wait = max(1, round((row.retry_at - row.now).total_seconds()))
    raise ProviderUnavailable(
        Text("{provider} asked us to wait before the next request", provider=row.get_provider_display()),
        retry_after_s=wait,
    )


def _shared_refresh(connection_id: UUID, user_id: UUID, rejected: str | None) -> Future[str]:
    """Return this process's running refresh for these arguments; starts one if there is none."""
    key = connection_id, rejected
    with _lock:
        found = _running_refreshes.get(key)
        if found is None:
            call = contextvars.copy_context().run
            found = _running_refreshes[key] = _threads.submit(
                call, _refresh_in_thread, connection_id, user_id, rejected
            )
            found.add_done_callback(lambda _: _running_refreshes.pop(key, None))
        return found


def _refresh_in_thread(connection_id: UUID, user_id: UUID, rejected: str | None) -> str:
    try:
        return refresh(connection_id, user_id=user_id, rejected=rejected)
    finally:
        databases.close_all()


def _mark_lost(row: Connection, reason: Reason) -> None:
    _update(row, health=Health.NEEDS_REAUTH, reason=reason)
    row.health, row.reason = Health.NEEDS_REAUTH, reason
    log.warning("connection.lost", connection_id=str(row.pk), user_id=str(row.user_id), reason=reason.value)
    transaction.on_commit(lambda: announce_loss(row.pk), robust=True)


def _needs_reauth(row: Connection) -> NeedsReauth:
    return NeedsReauth(
        reconnect_text(row.provider, row.reason),
        connection_id=row.pk,
    )


def _update(row: Connection, **values: Any) -> None:
    Connection.objects.filter(pk=row.pk).update(**values)
