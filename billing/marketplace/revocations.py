"""The signed list of revocations, with a number that only grows and a time after which the list no longer counts."""

from __future__ import annotations

from typing import Any

from django.db import connection
from django.utils import timezone

from billing.marketplace import staff_reviews
from billing.marketplace.signing import Signed, revocation_statement

# At least the time, so that the next change after a restored backup has a number that no client has seen.
_COUNT_UP = """
INSERT INTO billing_revocationcounter (id, value) VALUES (1, extract(epoch FROM now())::bigint)
ON CONFLICT (id) DO UPDATE
    SET value = greatest(billing_revocationcounter.value + 1, extract(epoch FROM now())::bigint)
"""
_STATE = """
SELECT coalesce((SELECT value FROM billing_revocationcounter), 0), plugin.slug, version.version, revocation.reason
FROM (VALUES (1)) AS one
LEFT JOIN billing_revocation AS revocation ON revocation.restored_at IS NULL
LEFT JOIN billing_pluginversion AS version ON version.id = revocation.version_id
LEFT JOIN billing_plugin AS plugin ON plugin.id = version.plugin_id
ORDER BY revocation.id
"""


def count_up() -> None:
    """Give the list its next number. Call it in the transaction that changes the list: others wait for its end."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNT_UP)


def signed_list() -> Signed:
    """Return the list as it is now. Raises NoSigningKey."""
    counter, entries = _state()
    return staff_reviews.keys().sign(
        "revocations", revocation_statement(counter=counter, now=timezone.now(), revoked=entries)
    )


def _state() -> tuple[int, list[dict[str, str]]]:
    """Return the number and the entries at one moment: one statement reads both."""
    with connection.cursor() as cursor:
        cursor.execute(_STATE)
        rows = cursor.fetchall()
    entries = [
        {"plugin": plugin, "version": version, "reason": reason}
        for _, plugin, version, reason in rows
        if plugin is not None
    ]
    return rows[0][0], entries


def body(signed: Signed) -> dict[str, Any]:
    return {"statement": signed.statement, "signature": signed.signature, "key_id": signed.key_id}
