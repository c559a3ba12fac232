"""Subscriptions, events and Stripe's jobs in the admin: read, and tried again."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db import IntegrityError, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.core import leases
from billing.payments import sync
from billing.payments.models import Customer, Event, LedgerEntry, StripeJob, Subscription


def _by_stripe_id(text: str) -> Q:
    return Q(stripe_id=text)


@admin.register(Subscription)
class SubscriptionAdmin(ReadOnlyAdmin):
    list_display = [
        "stripe_id",
        "account",
        "tier",
        "quantity",
        "status",
        "period_end",
        "doubled",
        "synced_at",
        "refused",
    ]
    list_filter = ["status", "tier", "doubled", "cancel_at_period_end", ("started_at", PeriodFilter)]
    search_keys = ("id", "user_id")
    ordering = ["-started_at", "-id"]

    @staticmethod
    def by_text(text: str) -> Q:
        """Search by an id of Stripe's: its own, its customer's, or that of a charge or invoice that paid for it."""
        booked = LedgerEntry.objects.filter(Q(charge_id=text) | Q(invoice_id=text)).exclude(
            subscription_id=""
        )
        return (
            Q(stripe_id=text)
            | Q(customer__stripe_id=text)
            | Q(stripe_id__in=list(booked.values_list("subscription_id", flat=True)[:20]))
        )

    actions = ["fetch"]

    def has_fetch_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_subscription")

    @admin.action(description="Fetch from Stripe", permissions=["fetch"])
    def fetch(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> None:
        ids = list(chosen.values_list("stripe_id", flat=True))
        sync.want(ids)
        self.message_user(request, f"{len(ids)} will be fetched within seconds.", messages.SUCCESS)


@admin.register(Customer)
class CustomerAdmin(ReadOnlyAdmin):
    list_display = ["stripe_id", "account", "created_at"]
    search_keys = ("user_id",)
    by_text = staticmethod(_by_stripe_id)
    ordering = ["-id"]


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = [
        "stripe_id",
        "type",
        "object_id",
        "subscription_id",
        "state",
        "error",
        "created",
        "received_at",
    ]
    list_filter = ["state", "livemode", ("received_at", PeriodFilter)]
    ordering = ["-received_at"]
    list_select_related = []
    search_help_text = "Stripe's id of the event, or of what it is about."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Event]:
        return self.all_rows(request)  # they belong to nobody

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        by_id = Q(stripe_id=term) | Q(object_id=term) | Q(subscription_id=term)
        return (queryset.filter(by_id) if term else queryset), False


@admin.register(StripeJob)
class StripeJobAdmin(ReadOnlyAdmin):
    list_display = ["id", "kind", "subject", "state", "attempt", "tries", "error", "not_before", "created_at"]
    list_filter = ["state", "kind", ("created_at", PeriodFilter)]
    search_keys = ("id", "user_id")
    ordering = ["-created_at"]
    list_select_related = []

    def get_queryset(self, request: HttpRequest) -> QuerySet[StripeJob]:
        return self.all_rows(request)  # the user may be gone

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(subject=text) | Q(stripe_id=text)

    actions = ["again"]

    def has_again_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_stripejob")

    @admin.action(description="Try again now", permissions=["again"])
    def again(self, request: HttpRequest, chosen: QuerySet[StripeJob]) -> None:
        """Try jobs again, even those that failed for good: staff may have mended the cause."""
        states = [StripeJob.State.WANTED, StripeJob.State.UNKNOWN, StripeJob.State.FAILED]
        tried, others = 0, []
        for pk in chosen.filter(state__in=states).values_list("pk", flat=True):
            # Each by itself: whoever holds one may wait for another.
            try:
                with transaction.atomic():
                    failed = StripeJob.objects.filter(pk=pk, state=StripeJob.State.FAILED)
                    # With a new key: Stripe would give the same answer again for the former one.
                    again = {"attempt": F("attempt") + 1, "first_sent_at": None}
                    leases.revoke(failed, state=StripeJob.State.WANTED, **again)
                    StripeJob.objects.filter(pk=pk).update(not_before=Now())
                tried += 1
            except IntegrityError:  # `stripe_job_one_open`
                others.append(str(pk))
        self.message_user(request, f"{tried} will be tried within seconds.", messages.SUCCESS)
        if others:
            said = f"Not tried, as another job about the same is open: {', '.join(others)}."
            self.message_user(request, said, messages.WARNING)
