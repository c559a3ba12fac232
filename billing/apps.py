from typing import Any
from uuid import UUID

from django.apps import AppConfig
from django.db.models.signals import post_migrate, pre_delete

from adiuva.accounts.signals import closing


class BillingConfig(AppConfig):
    name = "billing"

    def ready(self) -> None:
        post_migrate.connect(_create_plans, sender=self, dispatch_uid="billing.create_plans")
        from adiuva.accounts.models import User
        from adiuva.object_store import garbage
        from adiuva.vault import limits
        from billing import request_limits, storage_quota
        from billing.marketplace import object_references

        garbage.refers_with(object_references)
        limits.register(storage_quota, request_limits.require)
        pre_delete.connect(_account_deleted, sender=User, dispatch_uid="billing.end_payments")
        closing.connect(_end_payments, dispatch_uid="billing.account_closing")
        from adiuva.accounts import sign_in_rules
        from billing.signals import tier_changed

        sign_in_rules.check_sign_ins_with(_check_sign_in)
        sign_in_rules.check_renewals_with(_check_renewal)
        tier_changed.connect(_tier_changed, dispatch_uid="billing.tier_changed")
        from billing import checks, mails  # noqa: F401  # registers a check
        from billing.marketplace import buying, connected_accounts, payouts  # noqa: F401  # register their kinds of jobs
        from billing.marketplace import mails as marketplace_mails
        from billing.sso import mails as sso_mails

        mails.register()
        marketplace_mails.register()
        sso_mails.register()


def _create_plans(using: str, **_: Any) -> None:
    from billing import plans

    if using == "default":
        plans.create_missing()


def _account_deleted(instance: Any, **_: Any) -> None:
    _end_payments(instance.pk)


def _end_payments(user_id: UUID, **_: Any) -> None:
    from billing.marketplace import developers
    from billing.payments import stripe_jobs
    from billing.teams import members

    stripe_jobs.end_payments(user_id)
    members.dissolve(user_id)
    developers.part(user_id)


def _check_sign_in(user_id: UUID, way: Any) -> None:
    from billing.sso import rules

    rules.check_sign_in(user_id, way)


def _check_renewal(user_id: UUID, session_id: UUID) -> None:
    from billing.sso import rules

    rules.check_renewal(user_id, session_id)


def _tier_changed(user_id: UUID, **_: Any) -> None:
    from billing.teams import seats

    seats.settle(user_id)
