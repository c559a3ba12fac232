"""Record of what staff did to an account. Its owner can read the rows, because staff may do more than the owner."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import structlog

from adiuva.accounts.models import StaffAction, User

log = structlog.get_logger(__name__)


def record(
    *, staff: User, action: StaffAction.Kind, owners: Iterable[UUID], what: str = "", id: UUID | str = ""
) -> None:
    """Write a row for each owner. `what` and `id` name the object, such as a session; no value of it is kept."""
    owner_ids = list(owners)
    known = set(User.objects.filter(pk__in=owner_ids).values_list("pk", flat=True))
    StaffAction.objects.bulk_create(
        StaffAction(user_id=owner, staff_id=staff.pk, kind=action, object=what, object_id=str(id))
        for owner in owner_ids
        if owner in known
    )
    for owner in owner_ids:
        log.info("staff.acted", staff_id=str(staff.pk), user_id=str(owner), action=str(action), object=what)
