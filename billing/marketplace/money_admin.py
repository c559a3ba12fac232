"""Sales of plugins and payments to developers in the admin: read, and refunded."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.core.errors import AdiuvaError
from billing.marketplace import buying, purchase_sync
from billing.marketplace.money_models import DeveloperPayment, PluginPurchase
from billing.payments.money_admin import RefundForm


class DebtFilter(admin.SimpleListFilter):
    title = "settled"
    parameter_name = "settled"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [("debt", "the developer has too much"), ("waiting", "the developer is due more")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[PluginPurchase]) -> QuerySet[PluginPurchase]:
        if self.value() == "debt":
            return queryset.filter(settled_cents__gt=F("due_cents"))
        if self.value() == "waiting":
            return queryset.filter(settled_cents__lt=F("due_cents"))
        return queryset


@admin.register(PluginPurchase)
class PluginPurchaseAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "plugin",
        "developer",
        "state",
        "total_cents",
        "refunded_cents",
        "lost_cents",
        "due_cents",
        "settled_cents",
        "currency",
        "paid_at",
    ]
    list_filter = ["state", DebtFilter, ("paid_at", PeriodFilter)]
    list_select_related = ["plugin", "developer"]
    search_keys = ("id", "user_id")
    ordering = ["-created_at"]
    action_form = RefundForm
    actions = ["refund", "fetch"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[PluginPurchase]:
        return self.all_rows(request)  # the buyer may be gone

    @staticmethod
    def by_text(text: str) -> Q:
        named = Q(charge=text) | Q(payment_intent=text) | Q(session=text)
        return named | Q(plugin__slug=text) | Q(developer__handle=text)

    def has_refund_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_pluginpurchase")

    @admin.action(description="Refund this purchase", permissions=["refund"])
    def refund(self, request: HttpRequest, chosen: QuerySet[PluginPurchase]) -> None:
        given, rows = request.POST.get("cents", "").strip(), list(chosen[:2])
        if len(rows) != 1 or (given and not (given.isascii() and given.isdecimal() and len(given) < 10)):
            self.message_user(request, "Choose one purchase, and a number of cents or none.", messages.ERROR)
            return
        try:
            buying.refund(purchase=rows[0], cents=int(given) if given else None)
        except AdiuvaError as error:
            self.message_user(request, f"Not refunded: {error.message}.", messages.ERROR)
            return
        self.message_user(request, "It will be refunded within seconds.", messages.SUCCESS)

    @admin.action(description="Fetch from Stripe", permissions=["refund"])
    def fetch(self, request: HttpRequest, chosen: QuerySet[PluginPurchase]) -> None:
        purchase_sync.want(Q(pk__in=list(chosen.values_list("pk", flat=True))))
        self.message_user(request, "They will be fetched within seconds.", messages.SUCCESS)


@admin.register(DeveloperPayment)
class DeveloperPaymentAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "developer",
        "kind",
        "cents",
        "currency",
        "state",
        "error",
        "stripe_id",
        "created_at",
        "done_at",
    ]
    list_filter = ["kind", "state", ("created_at", PeriodFilter)]
    list_select_related = ["developer"]
    search_keys = ("id", "purchase_id")
    search_owner = "developer__user_id"
    ordering = ["-created_at"]

    superuser_path = "developer__user__is_superuser"

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeveloperPayment]:
        return self.all_rows(request)  # they belong to no account

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(stripe_id=text) | Q(developer__handle=text) | Q(developer__stripe_account=text)
