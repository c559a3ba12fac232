"""Developers' accounts at Stripe, which get their shares: opened once, and copied when Stripe reports changes."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.urls import reverse

from adiuva.accounts.models import User
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.leases import Lease
from billing.marketplace.models import Developer
from billing.payments import connect_api, copies, stripe_api, stripe_jobs
from billing.payments.connect_api import AccountState
from billing.payments.copies import Copies
from billing.payments.models import StripeJob
from billing.payments.stripe_api import Refused, StripeAway
from billing.payments.stripe_jobs import NotPossible


def page_of(*, developer: Developer) -> str:
    """Return the address of Stripe's page for a developer: first to identify themselves, later to see their earnings.

    The first call opens the account. Raises StripeOff, StripeAway, Refused.
    """
    if not stripe_api.is_on():
        raise stripe_api.StripeOff
    account = developer.stripe_account
    if account is None:
        with transaction.atomic():  # another click may have opened it since the developer was read
            row = Developer.objects.select_for_update(no_key=True).get(pk=developer.pk)
            wanted = (
                stripe_jobs.want(StripeJob.Kind.ACCOUNT, str(row.pk), row.user_id)
                if row.stripe_account is None
                else None
            )
        if wanted is not None:
            stripe_jobs.carry_out(wanted.pk)
        account = Developer.objects.values_list("stripe_account", flat=True).get(pk=developer.pk)
        if account is None:
            raise StripeAway("in_progress")
    if developer.payouts_enabled:
        return connect_api.earnings_page(account)
    back = f"{settings.PUBLIC_URL}{reverse('account-plugins')}"
    return connect_api.account_page(account, back=f"{back}?onboarding=done", again=f"{back}?onboarding=again")


def _send(job: StripeJob) -> str:
    found = User.objects.filter(pk__in=[job.user_id]).values_list("email", flat=True).first()
    if found is None:  # the account is gone, and nothing was sold yet
        raise NotPossible
    return connect_api.create_account(email=found, developer=job.subject, row=str(job.pk), key=job.key)


def _look(job: StripeJob) -> str | None:
    return connect_api.find_account(row=str(job.pk), since=job.created_at - dt.timedelta(hours=1))


def _done(job: StripeJob) -> None:
    if Developer.objects.filter(pk=job.subject, stripe_account=None).update(stripe_account=job.stripe_id):
        want(Q(pk=job.subject))


stripe_jobs.register(StripeJob.Kind.ACCOUNT, stripe_jobs.Kind(_send, _look, _done))


def want(developers: Q) -> None:
    """Request new copies of these developers' accounts."""
    _COPIES.want(Developer.objects.filter(developers).exclude(stripe_account=None))


def run(most: int = 50) -> int:
    """Fetch wanted copies that are due. Returns how many were tried."""
    return _COPIES.run(most)


def _get(row: Developer) -> AccountState:
    return connect_api.get_account(row.stripe_account or "")


def _write(lease: Lease[Developer], state: AccountState, wanted: int) -> None:
    row = lease.held()
    if state.receives and not row.payouts_enabled:
        enqueue_on_commit("billing.settle_developers")
    row.payouts_enabled, row.account_told, row.country = state.receives, state.submitted, state.country
    copies.finish(lease, row, wanted)


def _shut(row: Developer, reason: str) -> None:
    """Note that Stripe has no such account, or that it is no longer ours."""
    row.payouts_enabled = False


_COPIES: Final = Copies(Developer, _get, _write, _shut)


def refresh(developer_id: UUID) -> None:
    """Fetch an account now, for a developer who returns from Stripe's page, unless another process is about to."""
    want(Q(pk=developer_id))
    with suppress(StripeAway, Refused):  # the row says when it is tried again
        _COPIES.fetch_free(Developer.objects.filter(pk=developer_id).exclude(stripe_account=None))


def compare() -> None:
    """Request a copy of each account: events about accounts are not listed with the others."""
    want(Q(stripe_account__isnull=False))
