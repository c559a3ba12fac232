"""Base classes of the admin: read-only pages, and searches that use an index."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from adiuva.accounts.models import User


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


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
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
