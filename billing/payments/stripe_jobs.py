"""Carries out actions at Stripe: once, whatever breaks on the way.

The row is claimed, Stripe is called with no transaction open, and the outcome is written if the row is still ours. A
call whose outcome is unknown is sent again with the same key, for which Stripe gives the first answer again. In two
cases the key does not help, and Stripe is searched first: it keeps a failure of its own (a 500) for the key, and it
forgets keys after a day. If the search finds the object, that one counts; if not, a raised `attempt` makes a new key.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import IntegrityError, OperationalError, transaction
from django.db.models import F
from django.db.models.functions import Now

from adiuva.accounts.models import User
from adiuva.core import db, leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import Conflict
from adiuva.core.http import backoff_s
from adiuva.core.leases import Lease, LeaseLost
from adiuva.core.logging import log_failure
from billing.payments import money_api, stripe_api, sync
from billing.payments.models import Customer, StripeJob, Subscription
from billing.payments.stripe_api import Refused, StripeAway

_LEASE: Final = dt.timedelta(seconds=60)  # longer than a call may take
_KEYS_LAST: Final = dt.timedelta(hours=23)  # Stripe: at least 24
_LONGEST_WAIT_S: Final = 3600.0
_AFTER_CONFLICT: Final = dt.timedelta(seconds=1)  # a later round sends it again

log = structlog.get_logger(__name__)


class InProgress(Conflict):
    """The opposite of what is wanted is just being done: the later of two calls could come first."""

    code = "billing_in_progress"

    def __init__(self) -> None:
        super().__init__("the subscription is being changed just now: try again in a minute")


class NotPossible(Exception):
    """The subject of the job is gone: the job is dropped."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job. `send` calls Stripe and returns the id of what it made; `look` finds what an earlier call made.

    `done` and `given_up` run in the transaction that writes the end, with the row locked; `first` locks what comes
    before a job in the order of locks (docs/architecture/billing.md). A job that is given up has done nothing at
    Stripe; the row's `error` says why.
    """

    send: Callable[[StripeJob], str]
    look: Callable[[StripeJob], str | None]
    done: Callable[[StripeJob], None] = lambda _: None
    given_up: Callable[[StripeJob], None] = lambda _: None
    first: Callable[[StripeJob], object] = lambda _: None


def register(kind: str, what: Kind) -> None:
    """Register how a kind of job is carried out, where its module stands above this one."""
    _KINDS[kind] = what


def after_refunds(act: Callable[[str], None]) -> None:
    """Call `act` with the id of each refunded charge, in the transaction that writes the refund."""
    _after_refunds.append(act)


@transaction.atomic
def want(kind: str, subject: str, user_id: UUID | None, **detail: Any) -> StripeJob:
    """Return the open job of this kind and subject, made if there is none. The sweep or `carry_out` does it."""
    for _ in range(3):
        found = StripeJob.objects.filter(kind=kind, subject=subject, state__in=StripeJob.OPEN).first()
        if found is not None:
            return found
        try:
            with transaction.atomic():
                return StripeJob.objects.create(kind=kind, subject=subject, user_id=user_id, detail=detail)
        except IntegrityError:
            continue  # another process was faster
    raise AssertionError("an open job came and went three times")


def drop(kind: str, subject: str) -> None:
    """Give up jobs that are no longer wanted. A call that is under way may still be carried out."""
    leases.revoke(
        StripeJob.objects.filter(kind=kind, subject=subject, state__in=StripeJob.OPEN),
        state=StripeJob.State.DROPPED,
    )


@transaction.atomic
def withdraw(kind: str, subject: str) -> None:
    """Drop the open job, if there is one. Raises InProgress while a process carries it out."""
    mine = StripeJob.objects.filter(kind=kind, subject=subject, state__in=StripeJob.OPEN)
    list(mine.select_for_update(no_key=True).values_list("pk"))
    if mine.filter(leases.is_held()).exists():
        raise InProgress
    leases.revoke(mine, state=StripeJob.State.DROPPED)


@transaction.atomic
def drop_unsent(kind: str, subject: str) -> bool:
    """Drop an open job that Stripe has not heard of. Returns False if it may have: the job will end by itself."""
    free = StripeJob.objects.filter(leases.is_free(), kind=kind, subject=subject, state__in=StripeJob.OPEN)
    unsent = free.filter(state=StripeJob.State.WANTED, first_sent_at=None)
    found = list(unsent.select_for_update(no_key=True, skip_locked=True).values_list("pk", flat=True))
    leases.revoke(StripeJob.objects.filter(pk__in=found), state=StripeJob.State.DROPPED)
    return bool(found)


def carry_out(job_id: UUID) -> StripeJob:
    """Try an open job now. Returns the row afterwards: done, failed, or open if another process has it.

    Raises StripeAway or Refused if the call failed (the row says so as well), and StripeOff.
    """
    if not stripe_api.is_on():
        raise stripe_api.StripeOff
    found = leases.claim(
        StripeJob.objects.filter(pk=job_id, state__in=StripeJob.OPEN), _LEASE, tries=F("tries") + 1
    )
    if found:
        _carry_out(found[0])
    return StripeJob.objects.get(pk=job_id)


def sweep(most: int = 100) -> int:
    """Try jobs that are due. Returns how many were tried."""
    tried = 0
    while tried < most and stripe_api.is_on():
        found = leases.claim(
            StripeJob.objects.due().order_by("not_before", "pk"), _LEASE, tries=F("tries") + 1
        )
        if not found:
            break
        tried += 1
        try:
            _carry_out(found[0])
        except (StripeAway, Refused):
            continue  # the row says when it is tried again, or that it failed
    return tried


def _carry_out(job: StripeJob) -> None:
    lease, kind = job.lease(_LEASE), _KINDS[job.kind]
    # The clock is the database's; `claimed_at` was read with the claim.
    must_look = job.first_sent_at is not None and job.claimed_at - job.first_sent_at > _KEYS_LAST
    tries = StripeJob.objects.values_list("tries", flat=True).get(pk=job.pk)
    try:
        if must_look:
            if (known := kind.look(job)) is not None:
                _finish(lease, kind, job, known)
                return
            job.attempt += 1
            job.first_sent_at = None
        if job.first_sent_at is None:
            lease.renew(first_sent_at=Now(), attempt=job.attempt)
        made = kind.send(job)
    except LeaseLost:  # it was dropped while Stripe was searched
        log.info("stripe.job_late", job_id=str(job.pk))
    except NotPossible:
        _give_up(lease, kind, job, StripeJob.State.DROPPED, "not_possible")
    except StripeAway as error:
        _fail_for_now(lease, kind, job, error, tries)
        raise
    except Refused as error:
        if error.reason == "IdempotencyError":
            # It was sent with other parameters, since its data has changed: Stripe is searched for the result of that
            # call.
            _look_next(lease, tries, error.reason)
            raise StripeAway(error.reason) from None
        log.warning("stripe.job_refused", job_id=str(job.pk), kind=job.kind, reason=error.reason)
        _give_up(lease, kind, job, StripeJob.State.FAILED, error.reason[:100])
        raise
    else:
        _finish(lease, kind, job, made)


def _finish(lease: Lease[StripeJob], kind: Kind, job: StripeJob, stripe_id: str) -> None:
    """Write the end of a job. Raises nothing if the lease is lost: the process that has the row gets the same answer
    for the same key.
    """
    end = {"state": StripeJob.State.DONE, "stripe_id": stripe_id, "error": ""}
    _write_end(lease, kind, job, kind.done, end)


def _give_up(
    lease: Lease[StripeJob], kind: Kind, job: StripeJob, state: StripeJob.State, reason: str
) -> None:
    _write_end(lease, kind, job, kind.given_up, {"state": state, "error": reason})


def _write_end(
    lease: Lease[StripeJob],
    kind: Kind,
    job: StripeJob,
    follow: Callable[[StripeJob], None],
    end: dict[str, Any],
) -> None:
    try:
        with transaction.atomic():
            kind.first(job)
            row = lease.held()
            for name, value in end.items():
                setattr(row, name, value)
            follow(row)
            lease.release(**end)
    except LeaseLost:
        log.info("stripe.job_late", job_id=str(lease.pk))
    except OperationalError as error:
        if not db.is_conflict(error):
            raise
        # The same key is sent again, for which Stripe gives the same answer.
        log_failure("stripe.job_not_written", error, level="warning", job_id=str(lease.pk))
        _release(lease, state=StripeJob.State.UNKNOWN, not_before=Now() + _AFTER_CONFLICT)


def _fail_for_now(lease: Lease[StripeJob], kind: Kind, job: StripeJob, error: StripeAway, tries: int) -> None:
    wait_s = max(error.retry_after_s or 0.0, _wait_s(tries))
    if error.is_kept:
        try:
            known = kind.look(job)
        except (StripeAway, Refused):
            _look_next(lease, tries, error.reason)
            return
        except NotPossible:
            _give_up(lease, kind, job, StripeJob.State.DROPPED, "not_possible")
            return
        if known is not None:
            _finish(lease, kind, job, known)
            return
        _release(
            lease,
            state=StripeJob.State.WANTED,
            attempt=job.attempt + 1,
            first_sent_at=None,
            error=error.reason,
            not_before=Now() + dt.timedelta(seconds=wait_s),
        )
        return
    state = StripeJob.State.UNKNOWN if error.may_be_done else job.state
    _release(lease, state=state, error=error.reason, not_before=Now() + dt.timedelta(seconds=wait_s))


def _look_next(lease: Lease[StripeJob], tries: int, reason: str) -> None:
    """Make the next try search Stripe before it sends, as after a day."""
    _release(
        lease,
        state=StripeJob.State.UNKNOWN,
        error=reason,
        first_sent_at=Now() - 2 * _KEYS_LAST,
        not_before=Now() + dt.timedelta(seconds=_wait_s(tries)),
    )


def _release(lease: Lease[StripeJob], **changes: Any) -> None:
    try:
        lease.release(**changes)
    except LeaseLost:
        log.info("stripe.job_late", job_id=str(lease.pk))


def _wait_s(tries: int) -> float:
    return backoff_s(min(tries, 12), first_s=2.0, longest_s=_LONGEST_WAIT_S)


# ── The kinds ───────────────────────────────────────────────────────────────────────────────────────────


def _send_customer(job: StripeJob) -> str:
    email = User.objects.filter(pk__in=[job.user_id]).values_list("email", flat=True).first()
    if email is None:  # the account is gone; a customer that was made is found, and then deleted
        if (made := _look_for_customer(job)) is None:
            raise NotPossible
        return made
    return stripe_api.create_customer(email=email, user_id=str(job.user_id), row=str(job.pk), key=job.key)


def _look_for_customer(job: StripeJob) -> str | None:
    # Not by the address, which may have changed or be gone. An hour is more than two clocks differ.
    since = job.created_at - dt.timedelta(hours=1)
    return stripe_api.find_customer(since=since, row=str(job.pk))


def _lock_user(job: StripeJob) -> bool:
    found = User.objects.select_for_update(no_key=True).filter(pk__in=[job.user_id])
    return bool(found.values_list("pk"))


def _customer_done(job: StripeJob) -> None:
    if not User.objects.filter(pk__in=[job.user_id]).exists():  # locked before, if it is there
        Customer.objects.get_or_create(stripe_id=job.stripe_id)
        want(StripeJob.Kind.DELETE_CUSTOMER, job.stripe_id, None)
        return
    Customer.objects.get_or_create(stripe_id=job.stripe_id, defaults={"user_id": job.user_id})


def _customer_of(job: StripeJob) -> str:
    found = Customer.objects.filter(user_id__in=[job.user_id]).values_list("stripe_id", flat=True).first()
    if found is None:
        raise NotPossible
    return found


def _send_checkout(job: StripeJob) -> str:
    return stripe_api.create_checkout(
        customer_id=_customer_of(job),
        price_id=job.detail["price"],
        seats=job.detail["seats"],
        user_id=str(job.user_id),
        row=str(job.pk),
        key=job.key,
        back=f"{job.detail['site']}/billing/return?checkout={job.pk}",
        cancelled=f"{job.detail['site']}/billing/cancelled",
    ).stripe_id


def _look_for_checkout(job: StripeJob) -> str | None:
    found = stripe_api.find_checkout(customer_id=_customer_of(job), row=str(job.pk))
    return found.stripe_id if found else None


def _set_cancel(*, cancel: bool) -> Callable[[StripeJob], str]:
    def send(job: StripeJob) -> str:
        # Our copy may be older than a change in the portal, so Stripe is asked whether there is something to do.
        if stripe_api.get_subscription(job.subject).cancel_at_period_end is not cancel:
            if cancel:
                stripe_api.release_schedule(job.subject)
            stripe_api.set_cancel(job.subject, cancel=cancel, key=job.key)
        return job.subject

    return send


def _look_for_cancel(*, cancel: bool) -> Callable[[StripeJob], str | None]:
    def look(job: StripeJob) -> str | None:
        found = stripe_api.get_subscription(job.subject)
        return job.subject if found.cancel_at_period_end is cancel else None

    return look


def _send_seats(job: StripeJob) -> str:
    item = stripe_api.item_of(job.subject)
    stripe_api.set_seats(
        job.subject, item=item, seats=job.detail["seats"], grows=job.detail["grows"], key=job.key
    )
    return job.subject


def _look_for_seats(job: StripeJob) -> str | None:
    found = stripe_api.get_subscription(job.subject)
    return job.subject if found.quantity == job.detail["seats"] else None


def _send_refund(job: StripeJob) -> str:
    return money_api.refund(charge_id=job.subject, cents=job.detail["cents"], row=str(job.pk), key=job.key)


def _look_for_refund(job: StripeJob) -> str | None:
    return money_api.find_refund(charge_id=job.subject, row=str(job.pk))


def _refund_done(job: StripeJob) -> None:
    enqueue_on_commit("billing.copy_ledger")
    for act in _after_refunds:
        act(job.subject)


def _end(job: StripeJob) -> str:
    stripe_api.cancel_now(job.subject)
    return job.subject


def _resync(job: StripeJob) -> None:
    sync.want([job.subject])


def _resync_all(job: StripeJob) -> None:
    mine = Subscription.objects.filter(customer__stripe_id=job.subject)
    sync.want(list(mine.values_list("stripe_id", flat=True)))


def _delete_customer(job: StripeJob) -> str:
    stripe_api.delete_customer(job.subject)
    return job.subject


_after_refunds: Final[list[Callable[[str], None]]] = []
_KINDS: Final[dict[str, Kind]] = {
    StripeJob.Kind.CUSTOMER: Kind(_send_customer, _look_for_customer, _customer_done, first=_lock_user),
    StripeJob.Kind.CHECKOUT: Kind(_send_checkout, _look_for_checkout),
    StripeJob.Kind.CANCEL: Kind(_set_cancel(cancel=True), _look_for_cancel(cancel=True), _resync, _resync),
    StripeJob.Kind.RESUME: Kind(_set_cancel(cancel=False), _look_for_cancel(cancel=False), _resync, _resync),
    StripeJob.Kind.SEATS: Kind(_send_seats, _look_for_seats, _resync, _resync),
    StripeJob.Kind.REFUND: Kind(_send_refund, _look_for_refund, _refund_done),
    # Ending or deleting twice is harmless, so there is nothing to look for.
    StripeJob.Kind.END: Kind(_end, lambda _: None, _resync),
    StripeJob.Kind.DELETE_CUSTOMER: Kind(_delete_customer, lambda _: None, _resync_all),
}


def end_payments(user_id: UUID) -> None:
    """Order the deletion of a customer, in the transaction that deletes the account: it cancels all subscriptions.

    A customer that is just being made is deleted when it is known.
    """
    for stripe_id in Customer.objects.filter(user_id=user_id).values_list("stripe_id", flat=True):
        want(StripeJob.Kind.DELETE_CUSTOMER, stripe_id, None)
    leases.revoke(
        StripeJob.objects.filter(user_id=user_id, kind=StripeJob.Kind.CHECKOUT, state__in=StripeJob.OPEN),
        state=StripeJob.State.DROPPED,
    )
    # They lose their user in any order.
    mine = Subscription.objects.of(user_id).order_by("pk")
    list(mine.select_for_update(no_key=True).values_list("pk"))
