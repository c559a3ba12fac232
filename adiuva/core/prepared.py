"""Querysets that are compiled once, for reads in every request.

Django takes several times as long to build a queryset and its SQL as PostgreSQL takes for a row or a short list. This
module does both once for each process; afterwards a read is a prepared statement (adiuva.core.db) and its rows:

    _mine = PreparedQuery(lambda user_id: Agent.objects.of(user_id).select_related("user"))
    _mine(user.pk)         # the same Agents as of `Agent.objects.of(user.pk).select_related("user")`

Calls may differ only in the values of comparisons. Whatever changes the statement itself (another filter, another
order, a value that may be None) needs another PreparedQuery. Lists on pages have adiuva.core.paging.PreparedList.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Generic, TypeVar

from django.db import connection
from django.db.models import JSONField, Model, QuerySet, Value
from django.db.models.query import get_related_populators

from adiuva.core.db import prepared_cursor

M = TypeVar("M", bound=Model)


class PreparedQuery(Generic[M]):
    """Query that is compiled once. `build` makes the queryset of its positional arguments, which it may only compare
    with columns. It is called once, with placeholders. `arrange` can order and cut the queryset.

    The queryset must cast a value if PostgreSQL cannot infer its type from the column.
    """

    def __init__(
        self,
        build: Callable[..., QuerySet[M]],
        arrange: Callable[[QuerySet[M]], QuerySet[M]] | None = None,
    ) -> None:
        self._build, self._arrange = build, arrange

    def __call__(self, *values: Any) -> list[M]:
        return self._compiled.read(values)

    @cached_property
    def _compiled(self) -> _Compiled[M]:
        found = self._build(*placeholders(self._build))
        return _Compiled(self._arrange(found) if self._arrange else found)


def placeholders(build: Callable[..., Any]) -> list[Value]:
    """Return the placeholders for the arguments of `build` in a statement."""
    return [Value(_Place(index)) for index in range(len(signature(build).parameters))]


@dataclass(frozen=True)
class _Place:
    """Placeholder for the argument of this number. Django does not know its type, so it passes it on unchanged."""

    number: int


class _Compiled(Generic[M]):
    """Statement of a queryset, and the way from its rows to instances, which Django would find out each time."""

    def __init__(self, queryset: QuerySet[M]) -> None:
        compiler = queryset.query.get_compiler(queryset.db)
        self._sql, self._parameters = compiler.as_sql()
        info, select = compiler.klass_info, compiler.select
        assert info is not None and not compiler.annotation_col_map
        start, end = info["select_fields"][0], info["select_fields"][-1] + 1
        self._model: type[M] = info["model"]
        self._columns = slice(start, end)
        self._names = [column.target.attname for column, *_ in select[start:end]]
        self._related = get_related_populators(info, select, queryset.db)  # type: ignore[call-arg]  # of a later Django
        self._db = queryset.db
        # JSON columns arrive decoded here.
        self._converters = [
            (index, converter, expression)
            for index, (converters, expression) in compiler.get_converters(
                [each[0] for each in select]
            ).items()
            for converter in converters
            if getattr(converter, "__func__", None) is not JSONField.from_db_value
        ]

    def read(self, values: Sequence[Any]) -> list[M]:
        given = [values[each.number] if isinstance(each, _Place) else each for each in self._parameters]
        with prepared_cursor() as cursor:
            cursor.execute(self._sql, given)
            rows = cursor.fetchall()
        return [self._instance(row) for row in (map(self._converted, rows) if self._converters else rows)]

    def _converted(self, row: Iterable[Any]) -> list[Any]:
        found = list(row)
        for index, converter, expression in self._converters:
            found[index] = converter(found[index], expression, connection)
        return found

    def _instance(self, row: Sequence[Any]) -> M:
        found = self._model.from_db(self._db, self._names, row[self._columns])
        for related in self._related:
            related.populate(row, found)
        return found
