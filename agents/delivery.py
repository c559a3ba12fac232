"""What cloud agents found while no device was there, brought to the first that comes; and how all records are brought.

A run that has ended is held for its delivery as its worker held it: by a lease and a fence in its row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from django.db import OperationalError, transaction
from redis.exceptions import RedisError

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError
from adiuva.devices import outbox
from adiuva.devices.link import DeviceLink, DeviceOffline, OutcomeUnknown
from adiuva.devices.models import Device
from adiuva.devices.outbox import PendingRecord
from adiuva.devices.protocol import ToolResultBody
from agents import journal, lease, result_commits
from agents.lease import LeaseLost
from agents.models import Run
from agents.result_commits import Answered
from agents.sources import DeviceSilent

Outcomes = Mapping[UUID, ToolResultBody | AdiuvaError]
_MOST_RUNS = 1_000  # of a user's, that are delivered at a call

log = structlog.get_logger("agents.delivery")


async def bring(
    link: DeviceLink, records: Sequence[PendingRecord], settle: Callable[[Outcomes], Awaitable[Any]]
) -> None:
    """Insert records on a device, and have what it answered settled. Raise DeviceOffline or DeviceSilent when some stay
    in line, after the others were settled."""

    async def mark_sent(ids: list[UUID]) -> None:
        await db.run(outbox.mark_sent, ids)

    dedupes = (await link.target()).can("dedupe")
    outcomes = await outbox.deliver(link, records, mark_sent=mark_sent)
    unknown = {key for key, outcome in outcomes.items() if isinstance(outcome, OutcomeUnknown)}
    if not dedupes:
        unknown.clear()  # it must not get them twice: they are settled as uncertain
    await settle({key: outcome for key, outcome in outcomes.items() if key not in unknown})
    if unknown:  # they stay in line, and come again as the same calls
        raise DeviceSilent if await link.still_there() else DeviceOffline
    if any(isinstance(outcome, DeviceOffline) for outcome in outcomes.values()):
        raise DeviceOffline  # the rest stays in line


async def bring_to_one(
    link: DeviceLink,
    device: UUID,
    records: Sequence[PendingRecord],
    settle: Callable[[Outcomes], Awaitable[Any]],
) -> None:
    """The same for records that any of the user's devices may have: they become this one's, unless they are another's
    already, and are given back if it goes before they are sent."""
    mine, new = await db.run(outbox.assign, [record.id for record in records], device)
    sending = [record for record in records if record.id in mine]
    if not sending:
        return
    unsent = set(new)

    async def told(outcomes: Outcomes) -> None:
        unsent.intersection_update(key for key in new if isinstance(outcomes.get(key), DeviceOffline))
        await settle(outcomes)

    try:
        await bring(link, sending, told)
    except DeviceOffline:
        await db.run(outbox.release, unsent, device)
        raise


# ── Runs that have ended ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Held:
    run_id: UUID
    user_id: UUID
    fence: int
    cipher: UserCipher = field(repr=False)


async def deliver(user_id: UUID) -> None:
    """Bring a user's waiting records to the devices that are here. Each record goes to one of them."""
    devices = await db.run(_devices, user_id)
    for run_id in await db.run(_undelivered, user_id) if devices else []:
        held = await db.run(_hold, run_id)
        if held is None:
            continue  # another worker has it
        try:
            is_silent = any([await _to(held, device) for device in devices])
            await db.run(_let_go, held, pause=is_silent)
        except LeaseLost:
            log.info("delivery.let_go", run_id=str(run_id))
        except (OperationalError, RedisError, OSError) as error:
            log.warning("delivery.interrupted", run_id=str(run_id), error=type(error).__name__)
            return


async def _to(held: _Held, device: UUID) -> bool:
    """Bring a run's records to a device, as far as they are its own or nobody's. True: it does not answer."""

    async def settle(outcomes: Outcomes) -> None:
        await db.run(_settle, held, outcomes)

    async with DeviceLink(held.user_id, device) as link:
        try:
            while waiting := await db.run(
                outbox.waiting,
                cipher=held.cipher,
                user_id=held.user_id,
                run_id=held.run_id,
                device=device,
            ):
                await bring_to_one(link, device, waiting, settle)
        except DeviceOffline:
            return False
        except DeviceSilent:
            return True
    return False


def _devices(user_id: UUID) -> list[UUID]:
    return list(Device.objects.of(user_id).online().order_by("-last_seen").values_list("pk", flat=True))


def _undelivered(user_id: UUID) -> list[UUID]:
    found = Run.objects.of(user_id).filter(undelivered=True).order_by("completed_at")
    return list(found.values_list("pk", flat=True)[:_MOST_RUNS])


@transaction.atomic
def _hold(run_id: UUID) -> _Held | None:
    run = Run.objects.select_for_update(skip_locked=True).filter(pk=run_id, undelivered=True).first()
    now = db.clock()
    if run is None or (run.lease_until is not None and run.lease_until > now):
        return None
    run.fence += 1
    run.lease_until = now + lease.LEASE
    run.save(update_fields=["fence", "lease_until"])
    return _Held(run.pk, run.user_id, run.fence, cipher_for(run.user_id))


def _mine(held: _Held) -> Run:
    """The run's row, locked, with its lease renewed. Raise LeaseLost: an undo, or another worker, has it."""
    run = Run.objects.select_for_update().filter(pk=held.run_id, fence=held.fence).first()
    if run is None:
        raise LeaseLost
    run.lease_until = db.clock() + lease.LEASE
    return run


@transaction.atomic
def _settle(held: _Held, outcomes: Outcomes) -> None:
    run = _mine(held)
    entries = result_commits.settle(run, held.cipher, [Answered(outcomes)])
    run.problems += lease.problems(journal.write(run, entries))
    run.save(update_fields=["items_created", "problems", "lease_until"])


@transaction.atomic
def _let_go(held: _Held, *, pause: bool) -> None:
    """`pause`: a device does not answer; it is tried again when the lease has ended."""
    run = _mine(held)
    run.undelivered = outbox.count_waiting(run.pk) > 0
    if not pause:
        run.lease_until = None
    run.save(update_fields=["undelivered", "lease_until"])
