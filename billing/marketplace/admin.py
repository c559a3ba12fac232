"""Plugins in the admin: the queue of reviews with findings and changes, revocations, and reports."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from adiuva.accounts.admin_base import PeriodFilter, ReadOnlyAdmin
from adiuva.accounts.models import User
from adiuva.core.errors import AdiuvaError
from adiuva.core.logging import log_failure
from adiuva.object_store.store import ObjectMissing
from billing.marketplace import buying, diffs, publication, staff_reviews
from billing.marketplace.findings import Finding
from billing.marketplace.models import Developer, Plugin, PluginVersion, Revocation
from billing.marketplace.package import BadPackage
from billing.marketplace.user_models import PluginReport


class _OfDeveloper(ReadOnlyAdmin):
    """Rows that belong to a developer, who may be gone."""

    developer_path = "developer"

    @property
    def superuser_path(self) -> str:  # type: ignore[override]
        return f"{self.developer_path}__user__is_superuser"

    @property
    def search_owner(self) -> str:  # type: ignore[override]
        return f"{self.developer_path}__user_id"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return self.all_rows(request)


@admin.register(Developer)
class DeveloperAdmin(ReadOnlyAdmin):
    list_display = ["handle", "name", "account", "state", "payouts_enabled", "created_at"]
    list_filter = ["state", ("created_at", PeriodFilter)]
    ordering = ["handle"]

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(handle=text.lower())

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return self.all_rows(request)


@admin.register(Plugin)
class PluginAdmin(_OfDeveloper):
    list_display = ["slug", "name", "developer", "state", "price_cents", "installs", "ratings", "score"]
    list_filter = ["state", "category", "kind", ("created_at", PeriodFilter)]
    list_select_related = ["developer"]
    search_keys = ("id",)
    ordering = ["slug"]
    actions = ["suspend", "offer", "refund_recent"]

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(slug=text) | Q(developer__handle=text.lower())

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_plugin")

    @admin.action(description="Take out of the catalogue", permissions=["act"])
    def suspend(self, request: HttpRequest, chosen: QuerySet[Plugin]) -> None:
        self._set(request, chosen, suspended=True)

    @admin.action(description="Put back into the catalogue", permissions=["act"])
    def offer(self, request: HttpRequest, chosen: QuerySet[Plugin]) -> None:
        self._set(request, chosen, suspended=False)

    def has_refund_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_pluginpurchase")

    @admin.action(description="Refund what was bought in the last 30 days", permissions=["refund"])
    def refund_recent(self, request: HttpRequest, chosen: QuerySet[Plugin]) -> None:
        for plugin in chosen:
            done, left = buying.refund_recent(plugin=plugin)
            said = f"{plugin.slug}: {done} refunded"
            if left:
                more = f"{said}; {left} not yet, being disputed or looked at: repeat it later."
                self.message_user(request, more, messages.WARNING)
            else:
                self.message_user(request, f"{said}.", messages.SUCCESS)

    def _set(self, request: HttpRequest, chosen: QuerySet[Plugin], *, suspended: bool) -> None:
        ids = list(chosen.values_list("pk", flat=True))
        for plugin_id in ids:
            publication.suspend(plugin_id=plugin_id, suspended=suspended)
        self.message_user(request, f"{len(ids)} done.", messages.SUCCESS)


@admin.register(PluginVersion)
class PluginVersionAdmin(_OfDeveloper):
    """The queue is `?state__exact=in_review`. A version's page has its checks, its diff, and the form."""

    developer_path = "author"
    list_display = ["plugin", "version", "state", "author", "submitted_at", "tries", "list_at", "listed_at"]
    list_filter = ["state", ("created_at", PeriodFilter)]
    list_select_related = ["plugin", "author"]
    search_keys = ("id", "plugin_id")
    ordering = ["submitted_at", "id"]
    exclude = ["object", "manifest"]
    change_form_template = "admin/billing/pluginversion/change_form.html"

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(plugin__slug=text) | Q(sha256=text)

    def may_act(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_pluginversion")

    def get_urls(self) -> list[URLPattern]:
        act = self.admin_site.admin_view(self.act)
        return [path("<uuid:version_id>/act/", act, name="billing_pluginversion_act"), *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        version = self.get_object(request, object_id)
        shown = self._shown(version) if version is not None else {}
        more = {**(extra_context or {}), **shown, "may_act": self.may_act(request)}
        return super().change_view(request, object_id, form_url, more)

    def _shown(self, version: PluginVersion) -> dict[str, Any]:
        try:
            found = diffs.diff(version)
        except (BadPackage, ObjectMissing, AdiuvaError) as error:
            log_failure("plugin_diff.failed", error, level="warning")
            found = None
        checks = [
            {"check": check, "findings": [Finding.of_body(body) for body in check.findings]}
            for check in version.checks.all()
        ]
        return {
            "diff": found,
            "checks": checks,
            "reviews": list(version.reviews.all()),
            "checklist": staff_reviews.CHECKLIST,
        }

    def act(self, request: HttpRequest, version_id: UUID) -> HttpResponse:
        """Carry out a decision or a revocation, from the form on the version's page."""
        if request.method != "POST" or not self.may_act(request):
            raise PermissionDenied
        given, me = request.POST, cast(User, request.user).pk
        notes = given.get("notes", "").replace("\0", "")
        try:
            match given.get("act", ""):
                case "approve" | "ask_changes" | "reject" as decision:
                    staff_reviews.decide(
                        version_id=version_id,
                        reviewer_id=me,
                        decision=decision,
                        sha256=given.get("sha256", ""),
                        notes=notes[:2000],
                        checklist=given.getlist("checklist"),
                    )
                case "list_now":
                    publication.list_now(version_id=version_id)
                case "revoke":
                    publication.revoke(version_id=version_id, by=me, reason=notes[:500])
                case "restore":
                    publication.restore(version_id=version_id, by=me)
                case _:
                    raise PermissionDenied
        except AdiuvaError as error:
            self.message_user(request, f"Not done: {error.message}.", messages.ERROR)
        else:
            self.message_user(request, "Done.", messages.SUCCESS)
        return redirect(reverse("admin:billing_pluginversion_change", args=[version_id]))


@admin.register(Revocation)
class RevocationAdmin(_OfDeveloper):
    developer_path = "version__author"
    list_display = ["version", "reason", "by", "at", "restored_by", "restored_at"]
    list_filter = [("at", PeriodFilter)]
    list_select_related = ["version"]
    search_keys = ("version_id", "by")
    ordering = ["-id"]


@admin.register(PluginReport)
class PluginReportAdmin(ReadOnlyAdmin):
    list_display = ["at", "plugin_page", "reason", "text", "account", "closed_at", "closed_by"]
    list_filter = [("closed_at", admin.EmptyFieldListFilter), "reason", ("at", PeriodFilter)]
    list_select_related = ["plugin", "user"]
    search_keys = ("plugin_id", "user_id")
    ordering = ["-id"]
    actions = ["close"]

    @staticmethod
    def by_text(text: str) -> Q:
        return Q(plugin__slug=text)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return self.all_rows(request)

    @admin.display(description="plugin")
    def plugin_page(self, report: PluginReport) -> SafeString:
        url = reverse("admin:billing_plugin_change", args=[report.plugin_id])
        return format_html('<a href="{}">{}</a>', url, report.plugin)

    def has_close_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("billing.change_pluginreport")

    @admin.action(description="Close", permissions=["close"])
    def close(self, request: HttpRequest, chosen: QuerySet[PluginReport]) -> None:
        rows = PluginReport.objects.filter(pk__in=chosen.values("pk"), closed_at=None)
        count = rows.update(closed_at=Now(), closed_by=cast(User, request.user).pk)
        self.message_user(request, f"{count} closed.", messages.SUCCESS)
