"""Base classes of the admin: read-only pages, and searches that use an index."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from adiuva.accounts import staff_actions
from adiuva.accounts.models import StaffAction, User


def search_filter(term: str, *, keys: tuple[str, ...], email: str) -> Q:
    """Rows whose id is `term`, or whose e-mail address begins with it. An empty term matches all."""
    try:
        wanted = UUID(term)
    except ValueError:
        return Q(**{f"{email}__startswith": User.normalize_username(term).lower()}) if term else Q()
    found = Q()
    for key in keys:
        found |= Q(**{key: wanted})
    return found


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """Counts at most MAX_COUNT rows, since counting a large table is slow. Search and filters find the rest."""

    MAX_COUNT = 10_000

    @cached_property
    def count(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        return self.object_list[: self.MAX_COUNT].count()


class AuditedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
    """Writes what staff do into rows that the owner can read, in place of Django's log, which keeps addresses.

    Rows of superusers are there for superusers alone.
    """

    def owner_id(self, obj: Any) -> UUID:
        """Whose row it is."""
        found: UUID = obj.user_id
        return found

    def audit(self, request: HttpRequest, action: StaffAction.Kind, *objects: Any) -> None:
        for obj in objects:
            what = str(obj._meta.verbose_name)[:30]
            owners = [self.owner_id(obj)]
            staff = cast(User, request.user)
            staff_actions.record(staff=staff, action=action, owners=owners, what=what, id=obj.pk)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self.audit(request, StaffAction.Kind.CHANGED, obj)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self.audit(request, StaffAction.Kind.CHANGED, obj)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        self.audit(request, StaffAction.Kind.DELETED, *queryset)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = self.all_rows(request)
        if cast(User, request.user).is_superuser:
            return rows
        return rows.exclude(**{self.superuser_path: True})

    superuser_path = "user__is_superuser"

    def all_rows(self, request: HttpRequest) -> QuerySet[Any]:
        """What the page is about, before rows of superusers are taken out."""
        return super().get_queryset(request)


class ReadOnlyAdmin(AuditedAdmin):
    """Rows cannot be added or edited; actions call the app's services."""

    search_fields = ["user__email"]  # shows the search box; get_search_results does the search
    search_keys: tuple[str, ...] = ("id",)
    list_select_related = ["user"]
    show_full_result_count = False
    paginator = CappedPaginator
    list_per_page = 50

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        return queryset.filter(
            search_filter(search_term.strip(), keys=self.search_keys, email="user__email")
        ), False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
