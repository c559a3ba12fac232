"""Celery tasks: each calls one function."""

from __future__ import annotations

from uuid import UUID

from celery import shared_task

from adiuva.core import db
from adiuva.core.logging import log_failure
from billing import budget_sweep, storage_quota, tiers, usage
from billing.marketplace import (
    connected_accounts,
    ownership_transfers,
    payouts,
    publication,
    purchase_sync,
    submissions,
)
from billing.payments import disputes, ledger, stripe_jobs, sync, webhooks
from billing.sso import domain_rechecks, events, signing_in
from billing.teams import seats


@shared_task(name="billing.sweep")
def sweep() -> None:
    tiers.sweep()
    seats.sweep()
    storage_quota.expire()
    signing_in.forget_old()
    events.forget_old()
    usage.delete_old()
    budget_sweep.delete_old()


@shared_task(name="billing.check_plans")
def check_plans() -> None:
    tiers.check()


@shared_task(name="billing.sync")
def sync_payments() -> None:
    """Fetch changes from Stripe, and carry out jobs there."""
    # If one step fails, or PostgreSQL ends it for the sake of another transaction, the others still do their work.
    failed: Exception | None = None
    for step in (
        webhooks.process,
        stripe_jobs.sweep,
        sync.run,
        disputes.run,
        purchase_sync.run,
        connected_accounts.run,
    ):
        try:
            with db.conflicts_put_off("payments.step_put_off", step=step.__module__):
                step()
        except Exception as error:
            log_failure("payments.step_failed", error, step=step.__module__)
            failed = error
    if failed is not None:
        raise failed


@shared_task(name="billing.settle_developers")
def settle_developers() -> None:
    """Send developers the money due to them, and take back the rest."""
    payouts.sweep()
    ownership_transfers.sweep()


@shared_task(name="billing.catch_up")
def catch_up() -> None:
    webhooks.catch_up()
    ledger.copy()


@shared_task(name="billing.copy_ledger")
def copy_ledger() -> None:
    ledger.copy()


@shared_task(name="billing.compare")
def compare() -> None:
    webhooks.compare()
    webhooks.forget_old()
    purchase_sync.compare()
    connected_accounts.compare()
    payouts.check()
    ledger.check()


@shared_task(name="billing.recheck_domains")
def recheck_domains() -> None:
    domain_rechecks.recheck()


@shared_task(name="billing.settle_lost")
def settle_lost() -> None:
    budget_sweep.settle_lost()


@shared_task(name="billing.check_plugin")
def check_plugin(version_id: str) -> None:
    submissions.check_one(UUID(version_id))


@shared_task(name="billing.tend_plugins")
def tend_plugins() -> None:
    """Check submitted versions, and list those whose hold is over."""
    submissions.sweep()
    publication.list_due()
