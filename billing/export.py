"""The plan in a user's data export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import billing.marketplace.export  # noqa: F401  # registers its parts
from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, register
from billing.models import (
    AddedAllowance,
    Allowance,
    Domain,
    Identity,
    IdentityProvider,
    Membership,
    Override,
    Subscription,
    Team,
    Use,
)
from billing.payments.copies import COPY_FIELDS


def _overrides(user_id: UUID) -> Iterator[dict[str, Any]]:
    # Which member of the staff gave it is not the user's data.
    shown = exported_columns(Override, but=["user", "by"])
    yield from Override.objects.of(user_id).order_by("created_at", "id").values(*shown)


def _uses(user_id: UUID) -> Iterator[dict[str, Any]]:
    shown = exported_columns(Use, but=["user"])
    yield from Use.objects.of(user_id).order_by("day", "id").values(*shown).iterator(ROWS_PER_BATCH)


def _allowances(user_id: UUID) -> Iterator[dict[str, Any]]:
    shown = exported_columns(Allowance, but=["user"])
    yield from Allowance.objects.filter(user=user_id).order_by("month", "id").values(*shown)


def _additions(user_id: UUID) -> Iterator[dict[str, Any]]:
    shown = exported_columns(AddedAllowance, but=["user", "by"])
    yield from AddedAllowance.objects.filter(user=user_id).order_by("created_at", "id").values(*shown)


register(ArchivePart("added_allowances.jsonl", "What staff added to your months' budgets.", _additions))
register(ArchivePart("allowances.jsonl", "What your work could still spend, by the month.", _allowances))
register(ArchivePart("usage.jsonl", "What your work asked of models, by the day.", _uses))
register(ArchivePart("plan_overrides.jsonl", "Plans that staff gave to the account.", _overrides))


def _subscriptions(user_id: UUID) -> Iterator[dict[str, Any]]:
    shown = exported_columns(Subscription, but=["user", "customer", *COPY_FIELDS])
    yield from (
        Subscription.objects.of(user_id).order_by("started_at", "id").values(*shown, "customer__stripe_id")
    )


register(ArchivePart("subscriptions.jsonl", "What was paid, as the payment service told it.", _subscriptions))


def _teams(user_id: UUID) -> Iterator[dict[str, Any]]:
    # A team's other members are in their own archives.
    shown = exported_columns(Team, but=["owner", "name_sealed"])
    for team in Team.objects.filter(owner_id=user_id):
        row = {name: getattr(team, name) for name in shown}
        yield {"role": "owner", **row, "name": team.name, "sso": _sign_in_of(team.pk)}
    of_mine = exported_columns(Membership, but=["user", "address"])
    for mine in Membership.objects.of(user_id).select_related("team"):
        row = {name: getattr(mine, name) for name in of_mine}
        yield {"role": "member", **row, "name": mine.team.name}


def _sign_in_of(team_id: UUID) -> dict[str, Any] | None:
    shown = exported_columns(IdentityProvider, but=["id", "team", "secret"])
    found = IdentityProvider.objects.filter(team_id=team_id).values(*shown).first()
    if found is None:
        return None
    domains = Domain.objects.filter(provider__team_id=team_id).values("name", "proven_at")
    return {**found, "domains": list(domains)}


def _identities(user_id: UUID) -> Iterator[dict[str, Any]]:
    shown = exported_columns(Identity, but=["user", "provider"])
    yield from Identity.objects.filter(user_id=user_id).order_by("id").values(*shown)


register(ArchivePart("sso_identities.jsonl", "Who you are at your organisation's sign-in.", _identities))
register(ArchivePart("teams.jsonl", "The team that you own, or in which you have a seat.", _teams))
