"""Base classes of the admin: read-only pages, and searches that use an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final, cast
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import AdminSplitDateTime
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from adiuva.accounts import staff_log
from adiuva.accounts.models import StaffAction, User

MAX_OWNERS: Final = 200


def search_filter(
    term: str, *, keys: tuple[str, ...], owner: str, by_text: Callable[[str], Q] | None = None
) -> Q:
    """Return a filter for rows with this id, of owners with this part of an address, or with this text.

    An empty term matches all rows. `keys` are the columns of ids, `owner` is the column of the owner's id. The owners
    are looked up first (at most MAX_OWNERS), since PostgreSQL uses an index for ids that it knows.
    """
    if not term:
        return Q()
    found = by_text(term) if by_text else Q(pk__in=())
    try:
        wanted = UUID(term)
    except ValueError:
        people = User.objects.with_address_part(term).order_by().values_list("pk", flat=True)
        return found | Q(**{f"{owner}__in": list(people[:MAX_OWNERS])})
    for key in keys:
        found |= Q(**{key: wanted})
    return found


class PeriodFilter(admin.FieldListFilter):
    """Filter for the last hour, day, week or month, counted from now: `?created_at__within=day`."""

    PERIODS: Final = {
        "hour": timedelta(hours=1),
        "day": timedelta(days=1),
        "week": timedelta(days=7),
        "month": timedelta(days=30),
    }

    def __init__(
        self, field: Any, request: HttpRequest, params: Any, model: Any, model_admin: Any, field_path: str
    ) -> None:
        self.parameter = f"{field_path}__within"
        super().__init__(field, request, params, model, model_admin, field_path)
        given: Any = self.used_parameters.get(self.parameter) or [""]
        self.chosen = str(given[-1])

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        period = self.PERIODS.get(self.chosen)
        return queryset.filter(**{f"{self.field_path}__gte": timezone.now() - period}) if period else queryset

    def choices(self, changelist: Any) -> Iterator[Any]:
        for name, label in [("", "Any time"), *((name, f"The last {name}") for name in self.PERIODS)]:
            change, remove = ({self.parameter: name}, []) if name else ({}, [self.parameter])
            query = changelist.get_query_string(change, remove)
            yield {"selected": self.chosen == name, "query_string": query, "display": label}


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """Paginator that counts at most MAX_COUNT rows, since counting a large table is slow. Search finds the rest."""

    MAX_COUNT = 10_000

    @cached_property
    def count(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        return self.object_list[: self.MAX_COUNT].count()


class NewestChangeList(ChangeList):
    """Change list of a large table. A filter without an index searches only the NEWEST rows.

    Otherwise PostgreSQL would read the whole table to find a rare value. Searches and periods bound what is read by
    themselves, so they look further.
    """

    NEWEST = 50_000

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows = super().get_queryset(request, exclude_parameters)
        chosen = {name.partition("__") for name in self.get_filters_params()}
        indexes = [index for index in self.lookup_opts.indexes if index.fields and not index.condition]
        indexed = {index.fields[0].removeprefix("-") for index in indexes}
        is_bounded = self.query or any(how == "within" or name in indexed for name, _, how in chosen)
        if is_bounded or not chosen:
            return rows
        column = str(self.model_admin.get_ordering(request)[0]).removeprefix("-")
        times = self.model._default_manager.order_by(f"-{column}").values_list(column, flat=True)
        if not (last := list(times[self.NEWEST : self.NEWEST + 1])):
            return rows
        self.model_admin.message_user(
            request,
            f"Among the newest {self.NEWEST:,}. Search, or choose a period, to look further.",
            messages.INFO,
        )
        return rows.filter(**{f"{column}__gte": last[0]})


class AuditedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
    """Admin that records what staff do in rows that the owner can read. Django's own log would keep addresses.

    Only superusers see the rows of superusers.
    """

    def owner_id(self, obj: Any) -> UUID:
        """Return the id of the account that the row belongs to."""
        found: UUID = obj.user_id
        return found

    def audit(self, request: HttpRequest, action: StaffAction.Kind, *objects: Any) -> None:
        for obj in objects:
            what = str(obj._meta.verbose_name)[:30]
            owners = [self.owner_id(obj)]
            staff = cast(User, request.user)
            staff_log.record(staff=staff, action=action, owners=owners, what=what, id=obj.pk)

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

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Name both inputs of a time for people who hear the page: Django's label belongs to neither."""
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if field is not None and isinstance(field.widget, AdminSplitDateTime):
            for part, widget in zip(("date", "time"), field.widget.widgets, strict=True):
                widget.attrs["aria-label"] = f"{field.label}: {part}"
        return field

    def all_rows(self, request: HttpRequest) -> QuerySet[Any]:
        """Return all rows of the page, before those of superusers are taken out."""
        return super().get_queryset(request)


class ReadOnlyAdmin(AuditedAdmin):
    """Admin whose rows nobody adds, edits or deletes by hand; actions call the app's services."""

    search_fields = ["user__email"]  # shows the search box; get_search_results does the search
    search_keys: tuple[str, ...] = ("id", "user_id")
    search_owner = "user_id"
    search_help_text = (
        "An id of it or its owner, or a part of the owner's address (the beginning of its words)."
    )
    list_select_related = ["user"]
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they count all rows
    paginator = CappedPaginator
    list_per_page = 50
    sortable_by = ()  # no index serves other orders than the page's own

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if not self.search_fields:  # a page without a search box
            return queryset, False
        term = search_term.strip()
        return queryset.filter(
            search_filter(term, keys=self.search_keys, owner=self.search_owner, by_text=self.by_text)
        ), False

    is_large = False  # then its `ordering` has an index, the newest first; see NewestChangeList

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return NewestChangeList if self.is_large else super().get_changelist(request, **kwargs)

    by_text: Callable[[str], Q] | None = None  # finds rows by a text that identifies them, such as a code

    @admin.display(description="user")
    def account(self, obj: Any) -> SafeString | str:
        """Return the owner's address as a link to their page."""
        if obj.user is None:
            return "–"
        return format_html(
            '<a href="{}">{}</a>', reverse("admin:accounts_user_change", args=[obj.user.pk]), obj.user
        )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
