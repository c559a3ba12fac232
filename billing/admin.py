"""Plans and overrides in the admin. Subscriptions that a user pays for are not changed here."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.accounts.models import StaffAction, User
from billing import allowances, plans, tiers
from billing.marketplace import admin as _marketplace  # noqa: F401  # Django looks for `billing.admin` alone
from billing.marketplace import money_admin as _sales  # noqa: F401
from billing.models import AddedAllowance, Allowance, Override, Plan, Use
from billing.payments import admin as _payments  # noqa: F401
from billing.payments import money_admin as _money  # noqa: F401
from billing.sso import admin as _sso  # noqa: F401
from billing.teams import admin as _teams  # noqa: F401

_MAX_CHANGES = 50


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
    """A plan's row. An edit holds everywhere within seconds, for all who have the plan."""

    list_display = [
        "tier",
        "price_cents",
        "agents",
        "agents_enabled",
        "providers",
        "storage_bytes",
        "backup_bytes",
        "vectors",
        "plugins",
        "sso",
        "requests_per_minute",
    ]
    readonly_fields = ["tier", "position", "currency", "per_seat", "updated_at", "history"]
    sortable_by = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Plan, form: Any, change: bool) -> None:
        values = {name: form.cleaned_data[name] for name in form.changed_data}
        plans.edit(tier=obj.tier, values=values, by=cast(User, request.user).pk)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Log nothing: the plan keeps its own history."""

    @admin.display(description="history")
    def history(self, plan: Plan) -> SafeString | str:
        """Show the last edits: when, who, and what."""
        lines = [
            (f"{change.at:%Y-%m-%d %H:%M}", change.by, name, _said(before), _said(after))
            for change in plan.changes.all()[:_MAX_CHANGES]
            for name, (before, after) in change.changes.items()
        ]
        cells = "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} → {}</td></tr>"
        return format_html("<table>{}</table>", format_html_join("", cells, lines)) if lines else "none"


def _said(value: Any) -> str:
    return "no limit" if value is None else str(value)


class OverrideForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    class Meta:
        model = Override
        fields = ["user", "tier", "until", "reason"]

    def clean_until(self) -> Any:
        until = self.cleaned_data["until"]
        if until is not None and until <= timezone.now():
            raise ValidationError(gettext("This time is over."))
        return until


@admin.register(Override)
class OverrideAdmin(ReadOnlyAdmin):
    """Plans that staff give. A row stays as it was given; to change it, end it and give another."""

    list_display = ["id", "account", "tier", "until", "reason", "by", "created_at"]
    list_filter = ["tier", ("created_at", PeriodFilter)]
    search_keys = ("user_id",)
    ordering = ["-created_at", "-id"]
    raw_id_fields = ["user"]
    fields = ["user", "tier", "until", "reason", "by", "created_at"]
    actions = ["end_now"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields if obj else OverrideForm.Meta.fields

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **kwargs, **({} if obj else {"form": OverrideForm}))

    def save_model(self, request: HttpRequest, obj: Override, form: Any, change: bool) -> None:
        given = tiers.give(
            user_id=obj.user_id,
            tier=obj.tier,
            until=obj.until,
            reason=obj.reason,
            by=cast(User, request.user).pk,
        )
        obj.pk = given.pk

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self.audit(request, StaffAction.Kind.PLAN_GIVEN, obj)

    def has_end_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.add_override")

    @admin.action(description="End now", permissions=["end"])
    def end_now(self, request: HttpRequest, chosen: QuerySet[Override]) -> None:
        ended = [override for override in chosen if tiers.end(override=override)]
        self.audit(request, StaffAction.Kind.PLAN_ENDED, *ended)
        self.message_user(request, f"{len(ended)} ended.", messages.SUCCESS)


@admin.register(Use)
class UseAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "account",
        "day",
        "purpose",
        "model",
        "calls",
        "input_tokens",
        "output_tokens",
        "cost_micro",
    ]
    list_filter = ["purpose"]
    search_keys = ("user_id", "agent")
    ordering = ["-day", "-id"]
    fields = [
        "user",
        "day",
        "purpose",
        "agent",
        "model",
        "calls",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "cost_micro",
        "estimated_micro",
        "estimated_calls",
        "unpriced_calls",
    ]


@admin.register(Allowance)
class AllowanceAdmin(ReadOnlyAdmin):
    list_display = ["id", "account", "scope", "month", "spent", "reserved", "added"]
    search_keys = ("user_id", "agent")
    ordering = ["-id"]
    fields = ["user", "scope", "agent", "month", "spent", "reserved", "added", "told_low"]


@admin.register(AddedAllowance)
class AddedAllowanceAdmin(ReadOnlyAdmin):
    """Allowances that staff give on top of this month's budget. They count at once; a row stays as it was given."""

    list_display = ["id", "account", "month", "micro", "reason", "by", "created_at"]
    list_filter = [("created_at", PeriodFilter)]
    search_keys = ("user_id",)
    ordering = ["-created_at", "-id"]
    raw_id_fields = ["user"]
    fields = ["user", "month", "micro", "reason", "by", "created_at"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields if obj else ["user", "micro", "reason"]

    def save_model(self, request: HttpRequest, obj: AddedAllowance, form: Any, change: bool) -> None:
        staff = cast(User, request.user).pk
        obj.pk = allowances.add(user_id=obj.user_id, micro=obj.micro, reason=obj.reason, by=staff).pk

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self.audit(request, StaffAction.Kind.BUDGET_ADDED, obj)
