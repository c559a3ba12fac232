"""The ledger and disputes in the admin: read, searched by an id of Stripe's, refunded and released."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.core.errors import AdiuvaError
from billing.payments import disputes, refunds
from billing.payments.models import Dispute, LedgerEntry


class ByStripeIdAdmin(ReadOnlyAdmin):
    """Rows that belong to nobody, found by an id of Stripe's."""

    stripe_ids: tuple[str, ...] = ()
    list_select_related = []
    search_help_text = "An id of Stripe's: of the row, or of its charge, invoice, subscription or customer."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return self.all_rows(request)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term, found = search_term.strip(), Q()
        for name in self.stripe_ids if term else ():
            found |= Q(**{name: term})
        return queryset.filter(found), False


class RefundForm(ActionForm):
    cents = forms.IntegerField(
        required=False, min_value=1, label="cents to refund", help_text="Empty: all that is left."
    )


@admin.register(LedgerEntry)
class LedgerEntryAdmin(ByStripeIdAdmin):
    list_display = ["source", "kind", "cents", "currency", "charge_id", "subscription_id", "happened_at"]
    list_filter = ["kind", ("happened_at", PeriodFilter)]
    stripe_ids = ("source", "charge_id", "invoice_id", "subscription_id", "customer_id")
    ordering = ["-happened_at", "-source"]
    readonly_fields = ["booked"]
    action_form = RefundForm
    actions = ["refund", "refund_and_end"]

    @admin.display(description="lines")
    def booked(self, entry: LedgerEntry) -> SafeString:
        """Show the lines of the entry, which sum to zero."""
        lines = [
            (line.get_account_display(), line.cents, line.currency.upper()) for line in entry.lines.all()
        ]
        rows = format_html_join("", "<tr><td>{}</td><td>{}</td><td>{}</td></tr>", lines)
        return format_html("<table>{}</table>", rows)

    def has_refund_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_ledgerentry")

    @admin.action(description="Refund this charge", permissions=["refund"])
    def refund(self, request: HttpRequest, chosen: QuerySet[LedgerEntry]) -> None:
        self._refund(request, chosen, ends=False)

    @admin.action(description="Refund this charge and end its subscription now", permissions=["refund"])
    def refund_and_end(self, request: HttpRequest, chosen: QuerySet[LedgerEntry]) -> None:
        self._refund(request, chosen, ends=True)

    def _refund(self, request: HttpRequest, chosen: QuerySet[LedgerEntry], *, ends: bool) -> None:
        given = request.POST.get("cents", "").strip()
        charges = list(chosen[:2])
        if len(charges) != 1 or (given and not (given.isascii() and given.isdecimal() and len(given) < 12)):
            self.message_user(request, "Choose one charge, and a number of cents or none.", messages.ERROR)
            return
        try:
            refunds.want(charge=charges[0], cents=int(given) if given else None, ends=ends)
        except AdiuvaError as error:
            self.message_user(request, f"Not refunded: {error.message}.", messages.ERROR)
            return
        self.message_user(request, "It will be refunded within seconds.", messages.SUCCESS)


@admin.register(Dispute)
class DisputeAdmin(ByStripeIdAdmin):
    list_display = [
        "stripe_id",
        "status",
        "cents",
        "currency",
        "reason",
        "charge_id",
        "evidence_due_by",
        "released",
    ]
    list_filter = ["status", "released", ("opened_at", PeriodFilter)]
    stripe_ids = ("stripe_id", "charge_id", "subscription_id", "customer_id")
    ordering = ["-opened_at"]
    actions = ["release"]

    def has_release_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_dispute")

    @admin.action(description="Give back the plan that it took", permissions=["release"])
    def release(self, request: HttpRequest, chosen: QuerySet[Dispute]) -> None:
        lost = list(chosen.filter(status="lost", released=False))
        for dispute in lost:
            disputes.release(dispute=dispute)
        self.message_user(request, f"{len(lost)} released.", messages.SUCCESS)
