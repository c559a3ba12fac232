"""Deliver records to devices: those of a run in progress, and those of ended cloud agents' runs that wait for a device.

The delivery of an ended run holds the lease on its row, as its worker did.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from redis.exceptions import RedisError

from adiuva.accounts.keys import cipher_for
from adiuva.core import db, leases
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError
from adiuva.core.leases import Lease, LeaseLost
from adiuva.core.outages import store_of
from adiuva.devices import outbox
from adiuva.devices.link import DeviceLink, DeviceOffline, OutcomeUnknown
from adiuva.devices.link_errors import DeviceCannotSave
from adiuva.devices.models import Device
from adiuva.devices.outbox import PendingRecord
from adiuva.devices.protocol import ToolResultBody
from agents import claimed_runs, journal, result_commits
from agents.local_folders import DeviceSilent
from agents.models import Run
from agents.result_commits import DeviceAnswered

Outcomes = Mapping[UUID, ToolResultBody | AdiuvaError]
# The most runs of one user in one delivery.
_MAX_RUNS = 1_000

log = structlog.get_logger(__name__)


async def deliver_records(
    link: DeviceLink, records: Sequence[PendingRecord], settle: Callable[[Outcomes], Awaitable[Any]]
) -> None:
    """Insert records on a device, and call `settle` with its answers.

    Raises DeviceOffline or DeviceSilent if some records keep waiting, after the others were settled.
    """
    dedupes = (await link.target()).can("dedupe")
    outcomes = await outbox.deliver(link, records)
    unknown = {key for key, outcome in outcomes.items() if isinstance(outcome, OutcomeUnknown)}
    if not dedupes:
        unknown.clear()  # the device must not get these twice, so they are settled as uncertain
    answered = [key for key, outcome in outcomes.items() if isinstance(outcome, ToolResultBody)]
    async with outbox.sent_if_interrupted(answered):
        await settle({key: outcome for key, outcome in outcomes.items() if key not in unknown})
    if cannot_save := next((o for o in outcomes.values() if isinstance(o, DeviceCannotSave)), None):
        raise DeviceSilent(cannot_save.code)
    if unknown:  # these keep waiting, and are sent again as the same calls
        raise DeviceSilent if await link.is_current() else DeviceOffline
    if any(isinstance(outcome, DeviceOffline) for outcome in outcomes.values()):
        raise DeviceOffline  # the rest keeps waiting


async def deliver_unassigned(
    link: DeviceLink,
    device: UUID,
    records: Sequence[PendingRecord],
    settle: Callable[[Outcomes], Awaitable[Any]],
) -> None:
    """Deliver records, as `deliver_records` does, that any of the user's devices may have.

    They are assigned to this device unless they are another's already, and unassigned again if it certainly does not
    have them: it disconnected before they were sent, or could not save them.
    """
    mine, new = await db.run(outbox.assign, [record.id for record in records], device)
    sending = [record for record in records if record.id in mine]
    if not sending:
        return
    absent = set(new)

    async def settle_and_note(outcomes: Outcomes) -> None:
        absent.intersection_update(
            key for key in new if isinstance(outcomes.get(key), outbox.NOTHING_HAPPENED)
        )
        await settle(outcomes)

    try:
        await deliver_records(link, sending, settle_and_note)
    except (DeviceOffline, DeviceSilent):
        await db.run(outbox.release, absent, device)
        raise


# ── Runs that have ended ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _ClaimedDelivery:
    lease: Lease[Run]
    run_id: UUID
    user_id: UUID
    cipher: UserCipher = field(repr=False)


async def deliver_waiting(user_id: UUID) -> None:
    """Deliver a user's waiting records to the devices that are online, each record to one of them."""
    devices = await db.run(_devices, user_id)
    for run_id in await db.run(_undelivered, user_id) if devices else []:
        claimed = await db.run(_claim, run_id)
        if claimed is None:
            continue  # another worker has it
        try:
            is_silent = any([await _deliver_run(claimed, device) for device in devices])
            await db.run(_release, claimed, pause=is_silent)
        except LeaseLost:
            log.info("delivery.lease_lost", run_id=str(run_id))
        except Exception as error:
            if store_of(error) is None and not isinstance(error, RedisError | OSError):
                raise
            log.warning("delivery.interrupted", run_id=str(run_id), error=type(error).__name__)
            return


async def _deliver_run(claimed: _ClaimedDelivery, device: UUID) -> bool:
    """Deliver a run's records that are assigned to a device or to none. Returns whether the device fell silent."""

    async def settle(outcomes: Outcomes) -> None:
        await db.run(_settle, claimed, outcomes)

    async with DeviceLink(claimed.user_id, device) as link:
        try:
            while waiting := await db.run(
                outbox.waiting,
                cipher=claimed.cipher,
                user_id=claimed.user_id,
                run_id=claimed.run_id,
                device=device,
            ):
                await deliver_unassigned(link, device, waiting, settle)
        except DeviceOffline:
            return False
        except DeviceSilent:
            return True
    return False


def _devices(user_id: UUID) -> list[UUID]:
    return list(Device.objects.of(user_id).online().seen_last_first().values_list("pk", flat=True))


def _undelivered(user_id: UUID) -> list[UUID]:
    found = Run.objects.of(user_id).filter(undelivered=True).order_by("completed_at")
    return list(found.values_list("pk", flat=True)[:_MAX_RUNS])


@transaction.atomic
def _claim(run_id: UUID) -> _ClaimedDelivery | None:
    found = leases.claim(Run.objects.filter(pk=run_id, undelivered=True), claimed_runs.lease_duration())
    if not found:
        return None
    run = found[0]
    lease = run.lease(claimed_runs.lease_duration())
    return _ClaimedDelivery(lease, run.pk, run.user_id, cipher_for(run.user_id))


@transaction.atomic
def _settle(claimed: _ClaimedDelivery, outcomes: Outcomes) -> None:
    run = claimed.lease.held()
    created, entries = result_commits.settle_answers(claimed.cipher, [DeviceAnswered(outcomes)])
    claimed.lease.renew(
        items_created=run.items_created + created,
        problems=run.problems + claimed_runs.count_problems(journal.write(run, entries)),
    )


@transaction.atomic
def _release(claimed: _ClaimedDelivery, *, pause: bool) -> None:
    """Release the run. `pause`: keep the lease until it runs out, because a device does not answer."""
    claimed.lease.held()
    release = claimed.lease.renew if pause else claimed.lease.release
    release(undelivered=outbox.count_waiting(claimed.run_id) > 0)
