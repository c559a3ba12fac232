"""Actions on connections, for REST, the admin and tasks. Tokens are in tokens.py."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken
from adiuva.core.db import prepared_value
from adiuva.core.errors import AdiuvaError, Invalid, NotFound, Text
from adiuva.core.logging import log_failure
from adiuva.core.pruning import delete_in_batches
from adiuva.devices.models import Device
from billing import entitlements
from integrations import oauth_clients, signals, tokens
from integrations.models import Connection, Consent, Health, Provider

log = structlog.get_logger(__name__)

_REVOKE_PAGES: Final = {
    Provider.GMAIL: "https://myaccount.google.com/connections",
    Provider.OUTLOOK: "https://myapplications.microsoft.com (or https://account.live.com/consent/Manage)",
    Provider.TEAMS: "https://myapplications.microsoft.com",
}


@dataclass(frozen=True)
class Disconnection:
    """The outcome of a disconnection. `revoked`: whether the provider has revoked the permission."""

    revoked: bool
    message: str


def get_connection(user_id: UUID, connection_id: UUID) -> Connection:
    """Return one of a user's connections. Raises NotFound, also for a connection of another user."""
    row = Connection.objects.of(user_id).filter(pk=connection_id).first()
    if row is None:
        raise NotFound("there is no such connection")
    return row


def get_only_connection(user_id: UUID, provider: str) -> Connection:
    """Return the user's only connection to a provider. Raises NotFound without any, Invalid if there are several."""
    found = list(Connection.objects.of(user_id).filter(provider=provider)[:2])
    if not found:
        raise NotFound(Text("no {provider} account is connected", provider=Provider(provider).label))
    if len(found) > 1:
        raise Invalid("say which", fields={"connection": ["There are several: its id is needed."]})
    return found[0]


def connect(*, user_id: UUID, provider: str, grant: oauth_clients.Grant) -> Connection:
    """Store a user's grant. Connecting the same account again updates its connection and makes it healthy.

    Raises QuotaExceeded where the plan has no room for a further provider.
    """
    account_hash = cipher_for(user_id).fingerprint(grant.account.lower(), f"account at {provider}")
    try:
        row = _connect(user_id, provider, account_hash, grant)
    except IntegrityError:  # another consent for the same account was faster; its row exists now
        row = _connect(user_id, provider, account_hash, grant)
    log.info("connection.connected", connection_id=str(row.pk), user_id=str(user_id), provider=provider)
    return row


@transaction.atomic
def _connect(user_id: UUID, provider: str, account_hash: bytes, grant: oauth_clients.Grant) -> Connection:
    account = entitlements.lock(user_id)  # before the connection's own lock
    mine = Connection.objects.of(user_id).filter(provider=provider, account_hash=account_hash)
    row = mine.select_for_update(no_key=True).first()
    if row is None and account.plan is not None and not _is_connected(user_id, provider):
        account.require_room("providers", 1, used=count_providers(user_id))
    was = row.health if row else None
    if row is None:
        row = Connection(pk=uuid.uuid4(), user_id=user_id, provider=provider, account_hash=account_hash)
        row.account = row.access_token = b""  # `keep` has the values
        row.renew_at = row.expires_at = Now()
        row.save(force_insert=True)
    tokens.store_grant(
        row,
        grant,
        account=row.seal(Connection.account, grant.account),
        scopes=sorted(grant.scopes),
        health=Health.OK,
        reason="",
        told_at=None,
        connected_at=Now(),
    )
    if was == Health.NEEDS_REAUTH:
        sent = {"connection_id": row.pk, "user_id": user_id}
        transaction.on_commit(lambda: signals.reconnected.send_robust(Connection, **sent), robust=True)
    row.refresh_from_db()
    return row


def count_providers(user_id: UUID) -> int:
    """Return the number of providers with which the user has connected accounts."""
    found: int = prepared_value(
        "SELECT count(DISTINCT provider) FROM integrations_connection WHERE user_id = %s", user_id
    )
    return found


def check_room(user_id: UUID, provider: str) -> None:
    """Refuse early what `connect` would refuse. Raises QuotaExceeded or NoSuchUser."""
    if not _is_connected(user_id, provider):
        entitlements.check(user_id, "providers")


def _is_connected(user_id: UUID, provider: str) -> bool:
    return Connection.objects.of(user_id).filter(provider=provider).exists()


def has_refresh_token(*, user_id: UUID, provider: str, account: str) -> bool:
    """Return whether a refresh token for this account is stored already."""
    account_hash = cipher_for(user_id).fingerprint(account.lower(), f"account at {provider}")
    mine = Connection.objects.of(user_id).filter(provider=provider, account_hash=account_hash)
    return mine.filter(refresh_token__isnull=False, health=Health.OK).exists()


def disconnect(*, user_id: UUID, connection_id: UUID) -> Disconnection:
    """Delete a connection and its tokens, then ask the provider to revoke the permission. Blocks. Raises NotFound.

    The tokens are deleted first: whatever the provider answers, this server can no longer read the account.
    """
    with transaction.atomic():
        row = Connection.objects.of(user_id).filter(pk=connection_id).select_for_update().first()
        if row is None:
            raise NotFound("there is no such connection")
        provider, token = Provider(row.provider), _token_to_revoke(row)
        row.delete()
    log.info("connection.disconnected", connection_id=str(connection_id), user_id=str(user_id))
    where = f"You can take the permission back yourself at {_REVOKE_PAGES[provider]}."
    try:
        if token and oauth_clients.revoke(provider, token):
            return Disconnection(True, f"{provider.label} took the permission back.")
        said = "Google did not take the permission back"
        if provider != Provider.GMAIL:
            said = "Microsoft offers apps no way to take a permission back"
    except AdiuvaError as error:
        log.warning("connection.revoke_failed", connection_id=str(connection_id), code=error.code)
        said = f"{provider.label} could not be asked to take the permission back"
    return Disconnection(False, f"The tokens are deleted. {said}. {where}")


def revoke_for_deleted_user(user_id: UUID) -> None:
    """Ask Google to revoke the permissions of a user whose account is being deleted, once that is committed.

    The user's key must still exist. It runs in a thread of its own, without anybody waiting; if the process dies first,
    the tokens are lost and the permissions stay until the user removes them.
    """
    held = [
        token
        for row in Connection.objects.of(user_id).filter(provider=Provider.GMAIL)
        if (token := _token_to_revoke(row))
    ]
    if held:
        thread = threading.Thread(target=_revoke_tokens, args=(held,), name="revoke tokens", daemon=True)
        transaction.on_commit(thread.start, robust=True)


def _revoke_tokens(held: list[str]) -> None:
    for token in held:
        try:
            oauth_clients.revoke(Provider.GMAIL, token)
        except AdiuvaError as error:
            log.warning("connection.revoke_failed", code=error.code)


def _token_to_revoke(row: Connection) -> str:
    """Return the token whose revocation ends the whole permission; blank if it cannot be unsealed."""
    field = Connection.access_token if row.refresh_token is None else Connection.refresh_token
    try:
        return row.unseal(field)
    except SealBroken:
        return ""


def sweep() -> None:
    """Repair periodically: announce losses to users with a suitable device online by now; delete old consents."""
    online = Device.objects.online().filter(user_id=OuterRef("user_id"), protocol__gte=tokens.NOTICE_PROTOCOL)
    for connection_id in (
        Connection.objects.unannounced().filter(Exists(online)).values_list("pk", flat=True)[:100]
    ):
        try:
            tokens.announce_loss(connection_id)
        except Exception as error:  # a failing receiver must not stop the other announcements
            log_failure("connection.announce_failed", error, connection_id=str(connection_id))
    delete_in_batches(
        Consent.objects.filter(expires_at__lt=Now() - timedelta(hours=1)).order_by("expires_at")
    )
