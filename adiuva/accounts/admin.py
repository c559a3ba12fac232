"""Accounts and sessions in the admin. Data keys are not registered, and nothing secret is shown."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from adiuva.accounts import services
from adiuva.accounts.admin_base import ReadOnlyAdmin, search_filter
from adiuva.accounts.forms import AdminSignInForm, NewPasswordForm, NewUserForm
from adiuva.accounts.models import RevokedReason, Session, User

admin.site.site_header = "Adiuva"
admin.site.site_title = "Adiuva"
admin.site.index_title = "What runs here"
admin.site.login_form = AdminSignInForm


@admin.register(User)
class AccountAdmin(UserAdmin):  # type: ignore[type-arg]  # not generic at run time
    list_display = ["email", "tier", "is_staff", "is_active", "last_login", "created_at"]
    list_filter = ["tier", "is_staff", "is_active"]
    search_fields = ["email"]  # shows the search box; get_search_results does the search
    search_help_text = "The beginning of an e-mail address, or an id."
    ordering = ["-created_at", "-id"]
    show_full_result_count = False
    list_per_page = 50
    actions = ["end_all_sessions", "deactivate"]
    readonly_fields = ["id", "new_password", "last_login", "created_at"]
    fieldsets = [
        (None, {"fields": ["id", "email", "new_password", "tier", "timezone", "locale"]}),
        ("Access", {"fields": ["is_active", "is_staff", "is_superuser", "groups", "user_permissions"]}),
        ("Times", {"fields": ["last_login", "created_at"]}),
    ]
    add_fieldsets = [
        (None, {"classes": ["wide"], "fields": ["email", "usable_password", "password1", "password2"]})
    ]
    add_form = NewUserForm
    change_password_form = NewPasswordForm

    @admin.display(description="password")
    def new_password(self, user: User) -> str:
        return format_html(
            '<a class="button" href="{}">Set a new one</a>',
            reverse("admin:auth_user_password_change", args=[user.pk]),
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[User], search_term: str
    ) -> tuple[QuerySet[User], bool]:
        return queryset.filter(search_filter(search_term.strip(), keys=("id",), email="email")), False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if change and "is_active" in form.changed_data and not obj.is_active:
            services.end_sessions(user=obj, reason=RevokedReason.INACTIVE)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[Any]]:
        # Everything of a user is deleted; to list it, Django would load it all.
        everything = [f"{user} and everything the server holds of them, for ever" for user in objs]
        return everything, {"users": len(everything)}, set(), []

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        services.delete_account(user=obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        for user in queryset:
            services.delete_account(user=user)

    @admin.action(description="Sign out everywhere", permissions=["change"])
    def end_all_sessions(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        ended = sum(services.end_sessions(user=user, reason=RevokedReason.STAFF) for user in queryset)
        self.message_user(request, f"{ended} sessions ended.", messages.SUCCESS)

    @admin.action(description="Deactivate", permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self.message_user(
            request, f"{services.deactivate(users=queryset)} accounts deactivated.", messages.SUCCESS
        )


@admin.register(Session)
class SessionAdmin(ReadOnlyAdmin):
    list_display = ["id", "user", "user_agent", "created_at", "last_used_at", "expires_at", "revoked_reason"]
    list_filter = ["revoked_reason"]
    search_keys = ("id", "user_id")
    search_help_text = "The beginning of an e-mail address, or the id of a session or a user."
    ordering = ["-created_at", "-id"]
    actions = ["end_sessions"]

    def has_delete_permission(self, request: HttpRequest, obj: Session | None = None) -> bool:
        return False

    def has_end_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("accounts.change_session")

    @admin.action(description="End", permissions=["end"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        ended = Session.objects.filter(pk__in=queryset.values("pk")).end(RevokedReason.STAFF)
        self.message_user(request, f"{ended} sessions ended.", messages.SUCCESS)
