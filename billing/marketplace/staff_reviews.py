"""Staff's decisions about versions. Nobody decides about a version or a plugin of their own.

An approval is signed at once, and the version is listed when its hold is over. In that day a developer whose account
was taken over, or a second look, can still stop it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from billing.marketplace import states
from billing.marketplace.errors import ChecklistOpen, NoSigningKey, NotReviewed, OwnVersion, WrongState
from billing.marketplace.models import Developer, PluginReview, PluginVersion
from billing.marketplace.signing import Signed, SigningKeys, plugin_statement
from billing.marketplace.states import State

HOLD: Final = dt.timedelta(hours=24)
# The points that a reviewer has checked. An approval needs all of them.
CHECKLIST: Final = {
    "code": "I have read all code and texts that changed.",
    "permissions": "It needs each permission and host that it asks for.",
    "findings": "I have looked at each place that the checks point to.",
    "description": "It does what its name and summary say, and nothing else.",
}

Decision = PluginReview.Decision


def keys() -> SigningKeys:
    """Return the signing keys. Raises NoSigningKey."""
    if not settings.PLUGIN_KEYS:
        raise NoSigningKey
    return SigningKeys(settings.PLUGIN_KEYS)


def sign(version: PluginVersion, reviewed_at: dt.datetime) -> Signed:
    """Sign a version. Raises NoSigningKey."""
    return keys().sign(
        "plugin",
        plugin_statement(
            plugin=version.plugin.slug,
            version=version.version,
            sha256=version.sha256,
            size=version.size,
            permissions=version.permissions,
            reviewed_at=reviewed_at,
        ),
    )


@transaction.atomic
def decide(
    *,
    version_id: UUID,
    reviewer_id: UUID,
    decision: str,
    sha256: str,
    notes: str = "",
    checklist: Collection[str] = (),
) -> PluginVersion:
    """Approve a version, ask for changes, or reject it. `sha256`: that of the package that the reviewer has looked at.

    Raises NoSuchVersion, WrongState, OwnVersion, NotReviewed, ChecklistOpen, NoSigningKey.
    """
    version = states.locked(version_id)
    _require_other(version, reviewer_id)
    if version.state != State.IN_REVIEW:
        raise WrongState(version.state)
    if sha256 != version.sha256:
        raise NotReviewed
    if decision == Decision.APPROVE and set(checklist) != CHECKLIST.keys():
        raise ChecklistOpen
    PluginReview.objects.create(
        version=version,
        reviewer=reviewer_id,
        decision=decision,
        notes=notes,
        checklist=sorted(checklist),
        sha256=sha256,
    )
    if decision == Decision.APPROVE:
        now = timezone.now().replace(microsecond=0)
        signed = sign(version, now)
        states.move(
            version,
            State.APPROVED,
            signature=signed.signature,
            key_id=signed.key_id,
            reviewed_at=now,
            list_at=now + HOLD,
            reason="",
        )
    else:
        to = State.CHANGES_ASKED if decision == Decision.ASK_CHANGES else State.REJECTED
        states.move(version, to, reason=notes[:500])
    return version


def _require_other(version: PluginVersion, reviewer_id: UUID) -> None:
    own = {version.author_id, version.plugin.developer_id}
    if Developer.objects.filter(pk__in=own, user_id=reviewer_id).exists():
        raise OwnVersion
