"""Accounts and sessions in the admin. Data keys are not registered, and nothing secret is shown."""

from __future__ import annotations

from typing import Any, Final, cast
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse

from adiuva.accounts import keys, mail_link_actions, mails, services
from adiuva.accounts.admin_base import (
    AuditedAdmin,
    CappedPaginator,
    PeriodFilter,
    ReadOnlyAdmin,
    search_filter,
)
from adiuva.accounts.forms import NewUserForm
from adiuva.accounts.models import RevokedReason, Session, StaffAction, User
from adiuva.core.errors import AdiuvaError

admin.site.site_header = "Adiuva"
admin.site.site_title = "Adiuva"
admin.site.index_title = "What runs here"
admin.site.unregister(Group)  # whoever may edit a group could grant it rights, and join it

_RIGHTS: Final[list[Any]] = ["is_staff", "is_superuser", "groups", "user_permissions"]


@admin.register(User)
class AccountAdmin(AuditedAdmin, UserAdmin):  # type: ignore[type-arg]  # not generic at run time
    """Accounts in the admin. Staff who may change users can neither set a password nor an address, grant rights, nor
    see superusers.

    A superuser grants rights; nobody sets somebody else's password: a reset is a link to the user.
    """

    list_display = ["email", "tier", "is_staff", "is_active", "last_login", "created_at"]
    list_filter = ["tier", "is_staff", "is_active", ("created_at", PeriodFilter)]
    search_fields = ["email"]  # shows the search box; get_search_results does the search
    search_help_text = "An id, or a part of an address (the beginning of its words)."
    ordering = ["-created_at", "-id"]
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they count all rows
    paginator = CappedPaginator
    list_per_page = 50
    sortable_by = ()
    actions = ["end_all_sessions", "deactivate", "send_password_reset", "send_factor_removal"]
    readonly_fields = ["id", "email", "tier", "last_login", "created_at"]
    superuser_path = "is_superuser"
    fieldsets = [
        (None, {"fields": ["id", "email", "tier", "timezone", "locale"]}),
        ("Access", {"fields": ["is_active"]}),
        ("Rights", {"classes": ["collapse"], "fields": _RIGHTS}),
        ("Times", {"fields": ["last_login", "created_at"]}),
    ]
    add_fieldsets = [(None, {"classes": ["wide"], "fields": ["email"]})]
    add_form = NewUserForm

    def owner_id(self, obj: Any) -> UUID:
        found: UUID = obj.pk
        return found

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return [name for name in self.readonly_fields if name != "email"]
        rights = [] if cast(User, request.user).is_superuser else _RIGHTS
        return [*self.readonly_fields, *rights]

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        raise PermissionDenied

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[User], search_term: str
    ) -> tuple[QuerySet[User], bool]:
        return queryset.filter(search_filter(search_term.strip(), keys=("id",), owner="id")), False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        if not change:
            super().save_model(request, obj, form, change)
            self._send_link(request, obj)
            return
        many = {field.name for field in obj._meta.many_to_many}  # saved by save_related
        try:
            services.save_columns(obj, *(name for name in form.changed_data if name not in many))
        except keys.NoSuchUser as error:
            raise Http404(error.message) from None
        if "is_active" in form.changed_data and not obj.is_active:
            services.end_sessions(user=obj, reason=RevokedReason.INACTIVE)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[Any]]:
        # Deleting a user deletes all that is theirs. To list it, Django would load it all.
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
        self.audit(request, StaffAction.Kind.SIGNED_OUT, *queryset)
        self.message_user(request, f"{ended} sessions ended.", messages.SUCCESS)

    @admin.action(description="Deactivate", permissions=["change"])
    def deactivate(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self.audit(request, StaffAction.Kind.DEACTIVATED, *queryset.filter(is_active=True))
        self.message_user(
            request, f"{services.deactivate(users=queryset)} accounts deactivated.", messages.SUCCESS
        )

    @admin.action(description="Mail a link to set a new password", permissions=["change"])
    def send_password_reset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        sent = sum(self._send_link(request, user) for user in queryset)
        self.message_user(request, f"{sent} links sent.", messages.SUCCESS)

    @admin.action(description="Mail a link to remove a lost second factor", permissions=["change"])
    def send_factor_removal(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        """Mail the link that removes a lost factor in a day, unless the factor is used before (mail_link_actions)."""
        for user in queryset:
            try:
                mail_link_actions.ask_factor_removal(user=user)
            except AdiuvaError as error:
                self.message_user(request, f"{user.pk}: {error.message}", messages.ERROR)
                continue
            self.audit(request, StaffAction.Kind.FACTOR_RESET, user)
            self.message_user(request, f"{user.pk}: the link is sent in a day.", messages.SUCCESS)

    def _send_link(self, request: HttpRequest, user: User) -> bool:
        try:
            mails.order_password_reset(user=user)
        except mails.MailNotConfigured as error:
            self.message_user(request, error.message, messages.ERROR)
            return False
        self.audit(request, StaffAction.Kind.RESET_SENT, user)
        return True


@admin.register(Session)
class SessionAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "account",
        "user_agent",
        "created_at",
        "last_used_at",
        "expires_at",
        "revoked_reason",
    ]
    list_filter = ["revoked_reason", ("created_at", PeriodFilter)]
    ordering = ["-created_at", "-id"]
    actions = ["end_sessions"]

    def has_end_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("accounts.change_session")

    @admin.action(description="End", permissions=["end"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        self.audit(request, StaffAction.Kind.SIGNED_OUT, *queryset.filter(revoked_at=None))
        ended = Session.objects.filter(pk__in=queryset.values("pk")).end(RevokedReason.STAFF)
        self.message_user(request, f"{ended} sessions ended.", messages.SUCCESS)


@admin.register(StaffAction)
class StaffActionAdmin(ReadOnlyAdmin):
    list_display = ["id", "at", "staff_id", "account", "kind", "object", "object_id"]
    list_filter = ["kind", ("at", PeriodFilter)]
    search_keys = ("staff_id", "user_id")
    ordering = ["-id"]
    fields = ["id", "at", "staff_id", "user", "kind", "object", "object_id"]
