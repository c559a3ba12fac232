"""Pagination: by number, as deployed clients ask, and by a cursor, which costs the same on every page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import orjson
from django.core.exceptions import ValidationError as DjangoValidationError
from django.core.paginator import Page, Paginator
from django.db.models import F, Field, Model, QuerySet
from django.db.models.fields.tuple_lookups import Tuple, TupleGreaterThan, TupleLessThan
from django.utils.translation import gettext
from drf_spectacular.utils import OpenApiParameter
from rest_framework import exceptions
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param

from adiuva.core.prepared import PreparedQuery, placeholders

if TYPE_CHECKING:
    from rest_framework.views import APIView

M = TypeVar("M", bound=Model)

# A longer list is counted up to this number of rows, and later pages are refused, because counting and skipping both
# read an index entry for each row.
MOST_COUNTED: Final = 100_000
_MAX_CURSOR_CHARS: Final = 500

TOTAL_COUNT: Final = OpenApiParameter(
    "X-Total-Count",
    int,
    OpenApiParameter.HEADER,
    description=f"How many there are in all; of more than {MOST_COUNTED:,} no more are counted. Not with `cursor`.",
    response=[200],
)


class PageLimitPagination(PageNumberPagination):
    """Pagination by `page` (from 1) or `cursor`, and `limit` (50, at most 100).

    The answer is the plain list; `X-Total-Count` says how many rows there are in all, `Link` (RFC 8288) where the other
    pages are. A page past the end is empty; a page that begins after MOST_COUNTED rows is refused. `rel="next"` leads
    on by a cursor: the position of the last row in the list's order, so that rows which come or go meanwhile neither
    repeat others nor hide them.
    """

    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 100
    page_query_description = f"From 1. After {MOST_COUNTED:,} rows only `cursor` leads on (400)."
    page_size_query_description = f"How many on a page; 50 if not given, and never more than {max_page_size}."
    cursor_query_description = (
        'Where to go on, instead of `page`: the address in `Link` with `rel="next"` has it. However far it is, such a'
        " page costs the same, and rows that come meanwhile do not shift it."
    )

    def paginate_queryset(self, queryset: Any, request: Request, view: APIView | None = None) -> list[Any]:
        self.request = request
        number = _positive(request, "page", 1)
        limit = min(_positive(request, "limit", self.page_size), self.max_page_size)
        order = queryset if isinstance(queryset, OrderedRows) else total_order(queryset)
        if cursor := request.query_params.get("cursor", ""):
            found = list(order.after(cursor)[: limit + 1])
            self.display_page_controls = False
            links = {"first": remove_query_param(request.build_absolute_uri(), "cursor")}
            self._headers = {}
        else:
            start = (number - 1) * limit
            found, total = _cut(order, start, limit)
            paginator = _Counted((), limit, total)
            self.page = Page(found[:limit], number, paginator)
            self.display_page_controls = 1 < paginator.num_pages >= number
            links = _links_by_number(request, number, paginator)
            self._headers = {"X-Total-Count": str(paginator.count)}
        rows = found[:limit]
        if len(found) > limit and order.fields:
            url = remove_query_param(request.build_absolute_uri(), "page")
            links["next"] = replace_query_param(url, "cursor", order.cursor(rows[-1]))
        if links:
            self._headers["Link"] = ", ".join(f'<{to}>; rel="{rel}"' for rel, to in links.items())
        return rows

    def get_paginated_response(self, data: Any) -> Response:
        return Response(data, headers=self._headers)

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return schema

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        cursor = {
            "name": "cursor",
            "required": False,
            "in": "query",
            "description": self.cursor_query_description,
            "schema": {"type": "string"},
        }
        return [*super().get_schema_operation_parameters(view), cursor]


class _Counted(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """Paginator of rows that were counted already."""

    count = 0

    def __init__(self, rows: Sequence[Any], limit: int, count: int) -> None:
        super().__init__(rows, limit)
        self.count = count


def _cut(order: OrderedRows[Any], start: int, limit: int) -> tuple[list[Any], int]:
    """Return the rows of a page, with one more if there are more, and how many the list has. Raises ValidationError."""
    found = order.cut(start, start + limit + 1) if start < MOST_COUNTED else []
    end = start + len(found)
    if (found and len(found) <= limit) or not end:
        return found, end
    total = MOST_COUNTED if start < MOST_COUNTED <= end else order.rows.order_by()[:MOST_COUNTED].count()
    if start >= MOST_COUNTED == total:
        why = gettext("By number, pages go to row {most}. Follow the links to the next page instead.")
        raise exceptions.ValidationError({"page": [why.format(most=MOST_COUNTED)]})
    return found, total


def _links_by_number(request: Request, number: int, paginator: _Counted) -> dict[str, str]:
    others = {"first": 1, "prev": number - 1, "next": number + 1}
    if paginator.count < MOST_COUNTED:
        others["last"] = paginator.num_pages
    return {
        rel: replace_query_param(request.build_absolute_uri(), "page", other)
        for rel, other in others.items()
        if 1 <= other <= paginator.num_pages and other != number
    }


# ── The order of a list ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Order:
    """Order of a list: its names, and its columns; none if a row's values do not say where the row stands."""

    names: tuple[Any, ...]
    fields: tuple[Field[Any, Any], ...] = ()
    is_down: bool = False

    @classmethod
    def total(cls, queryset: QuerySet[Any]) -> _Order:
        """Return the queryset's order with the primary key behind it, so that no equal rows repeat on the next page."""
        names = list(queryset.query.order_by or queryset.model._meta.ordering)
        if not all(isinstance(name, str) for name in names):
            return cls(tuple(names))
        meta = queryset.model._meta
        is_down = bool(names) and names[-1].startswith("-")
        if meta.pk.name not in {name.lstrip("-") for name in names}:
            names.append("-" * is_down + meta.pk.name)
        columns = {field.name: field for field in meta.concrete_fields if not field.null}
        fields = [columns[name.lstrip("-")] for name in names if name.lstrip("-") in columns]
        is_plain = len(fields) == len(names) and all(name.startswith("-") == is_down for name in names)
        return cls(tuple(names), tuple(fields) if is_plain else (), is_down)


class OrderedRows(Generic[M]):
    """Rows of a list in a total order."""

    def __init__(self, rows: QuerySet[M], order: _Order) -> None:
        self._rows, self._order = rows, order

    @property
    def fields(self) -> tuple[Field[Any, Any], ...]:
        return self._order.fields

    @property
    def rows(self) -> QuerySet[M]:
        return self._rows.order_by(*self._order.names)

    def first(self, length: int) -> list[M]:
        return list(self.rows[:length])

    def cut(self, start: int, end: int) -> list[M]:
        if not start:
            return self.first(end)
        # PostgreSQL passes over the rows before a page in the index alone, and reads only the page's own rows. Their
        # keys are fetched first: within one statement, PostgreSQL estimates them badly and joins them row by row.
        keys = list(self.rows.values_list("pk", flat=True)[start:end])
        return list(self.rows.filter(pk__in=keys)) if keys else []

    def cursor(self, row: M) -> str:
        """Return the position of a row."""
        values = [getattr(row, field.attname) for field in self.fields]
        return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")

    def after(self, cursor: str) -> QuerySet[M]:
        """Return the rows after a cursor. Raises ValidationError."""
        compare = TupleLessThan if self._order.is_down else TupleGreaterThan
        columns = Tuple(*(F(field.name) for field in self.fields))
        return self.rows.filter(compare(columns, self._position(cursor)))

    def _position(self, cursor: str) -> tuple[Any, ...]:
        try:
            if not self.fields or len(cursor) > _MAX_CURSOR_CHARS:
                raise ValueError
            found = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
            if None in found:
                raise ValueError
            return tuple(field.clean(value, None) for field, value in zip(self.fields, found, strict=True))
        except (ValueError, TypeError, DjangoValidationError):
            raise exceptions.ValidationError({"cursor": [gettext("Not a cursor of this list.")]}) from None


def total_order(queryset: QuerySet[M]) -> OrderedRows[M]:
    return OrderedRows(queryset, _Order.total(queryset))


class PreparedList(Generic[M]):
    """List with a first page that a statement compiled once reads (core.prepared), because clients ask for it most.

    _MINE = PreparedList(lambda user_id: Agent.objects.of(user_id))
    _MINE.of(me)           # for `paginate_queryset`, instead of Agent.objects.of(me)
    _MINE.of(me).rows      # the queryset, for all else
    """

    def __init__(self, build: Callable[..., QuerySet[M]]) -> None:
        self.build = build
        self.first = cache(self._first)

    def of(self, *values: Any) -> OrderedRows[M]:
        return _PreparedRows(self, values)

    @cached_property
    def order(self) -> _Order:
        return _Order.total(self.build(*placeholders(self.build)))

    def _first(self, length: int) -> PreparedQuery[M]:
        return PreparedQuery(self.build, lambda rows: rows.order_by(*self.order.names)[:length])


class _PreparedRows(OrderedRows[M]):
    def __init__(self, listed: PreparedList[M], values: tuple[Any, ...]) -> None:
        self._list, self._values, self._order = listed, values, listed.order

    @property
    def rows(self) -> QuerySet[M]:
        return self._list.build(*self._values).order_by(*self._order.names)

    def first(self, length: int) -> list[M]:
        return self._list.first(length)(*self._values)


def _positive(request: Request, name: str, default: int) -> int:
    raw = request.query_params.get(name, "")
    if not raw:
        return default
    if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and int(raw)):
        raise exceptions.ValidationError({name: [gettext("A whole number from 1 is required.")]})
    return int(raw)
