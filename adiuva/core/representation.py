"""Way from a row to its rendered form, found out once for each serializer class.

DRF makes the fields of a serializer anew for each request, and asks each field of each row for its value and for that
value's form. Both are known beforehand for most fields: a column or a property, and a form that depends on the value
alone. Input goes DRF's way, and so does the output of a serializer that has a field of another kind.

Times and ids stay as they are in the output (`serializer.data`): our renderer writes them as DRF's fields would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from rest_framework import fields, serializers

M = TypeVar("M", bound=models.Model)
Form = Callable[[Any], Any]

# By the DRF field's method that forms a value: the columns with values that have that form already. Subclasses that
# keep the method count as the same field. The renderer writes times and ids as DRF does.
_STORED: Final[Mapping[Callable[..., Any], tuple[type[Any], ...]]] = {
    fields.BooleanField.to_representation: (models.BooleanField,),
    fields.CharField.to_representation: (models.CharField, models.TextField),
    fields.ChoiceField.to_representation: (models.CharField,),
    fields.DateTimeField.to_representation: (models.DateTimeField,),
    fields.FloatField.to_representation: (models.FloatField,),
    fields.IntegerField.to_representation: (models.IntegerField,),
    fields.JSONField.to_representation: (models.JSONField,),
    fields.ListField.to_representation: (),
    fields.UUIDField.to_representation: (models.UUIDField, models.ForeignKey),
}
_SHORT: Final[Mapping[Callable[..., Any], Form]] = {
    fields.CharField.to_representation: str,
    fields.IntegerField.to_representation: int,
    fields.FloatField.to_representation: float,
}


# No docstring, since the API's description would give it to subclasses. A subclass whose fields depend on the request
# overrides `get_fields`, and then goes DRF's way.
class ModelSerializer(serializers.ModelSerializer[M]):
    def to_representation(self, instance: M) -> dict[str, Any]:
        plan = _plan_of(type(self))
        if plan is None or not isinstance(instance, plan.model):
            return super().to_representation(instance)
        found = dict(zip(plan.names, plan.read(instance), strict=False))
        for name, form in plan.forms:
            if (value := found[name]) is not None:
                found[name] = form(value)
        for name, method in plan.methods:
            found[name] = getattr(self, method)(instance)
        return found


def rows_of(serializer: serializers.BaseSerializer[M], rows: Iterable[M]) -> list[Any]:
    """Return the rows of a list as `many=True` gives them, without the two further serializers that DRF makes, and with
    a context that need not be looked up behind a parent for each row."""
    return [serializer.to_representation(row) for row in rows]


class _Plan(NamedTuple):
    model: type[models.Model]
    names: Sequence[str]
    # Getter of all names' values, and one more, because for a single name it would return no tuple.
    read: Callable[[models.Model], tuple[Any, ...]]
    forms: Sequence[tuple[str, Form]]
    methods: Sequence[tuple[str, str]]


@cache
def _plan_of(kind: type[ModelSerializer[Any]]) -> _Plan | None:
    """Return the plan of a serializer class; None if DRF must do the work."""
    if kind.get_fields is not serializers.ModelSerializer.get_fields:
        return None
    model = kind.Meta.model
    names, sources = [], []
    forms: list[tuple[str, Form]] = []
    methods: list[tuple[str, str]] = []
    readable: list[Any] = list(kind()._readable_fields)
    for field in readable:
        name: str = field.field_name
        names.append(name)
        if type(field) is fields.SerializerMethodField:
            methods.append((name, str(field.method_name)))
            sources.append("__class__")  # until we call the method
            continue
        if not (_is_context_free(field) and _is_plain(model, field.source)):
            return None
        sources.append(field.source)
        if not _is_stored(model, field):
            forms.append((name, _form(field)))
    return _Plan(model, names, attrgetter(*sources, "__class__"), forms, methods)


def _is_context_free(field: Any) -> bool:
    """Return whether the form of the field's values depends on nothing else."""
    if type(field).get_attribute is not fields.Field.get_attribute or _method(field) not in _STORED:
        return False
    return not isinstance(field, fields.ListField) or _is_context_free(field.child)


def _is_plain(model: type[models.Model], source: str) -> bool:
    """Return whether the source is a column or a property, so that nothing has to be followed or called."""
    return _column(model, source) is not None or isinstance(
        getattr(model, source, None), property | cached_property
    )


def _is_stored(model: type[models.Model], field: Any) -> bool:
    """Return whether the column's values have the form already."""
    match field:
        case fields.ChoiceField() if not _has_texts(field):
            return False
        case fields.DateTimeField(format=_) | fields.JSONField(binary=True):
            return False
        case fields.UUIDField() if field.uuid_format != "hex_verbose":
            return False
    return isinstance(_column(model, field.source), _STORED[_method(field)])


def _form(field: Any) -> Form:
    if _method(field) is fields.ChoiceField.to_representation and _has_texts(field):
        known = field.choice_strings_to_values
        return lambda value: known.get(value, value)
    return _SHORT.get(_method(field), field.to_representation)


def _method(field: Any) -> Callable[..., Any]:
    found: Callable[..., Any] = type(field).to_representation
    return found


def _has_texts(field: Any) -> bool:
    return all(type(choice) is str for choice in field.choices)


def _column(model: type[models.Model], source: str) -> models.Field[Any, Any] | None:
    try:
        found = model._meta.get_field(source)
    except FieldDoesNotExist:
        return None
    return found if isinstance(found, models.Field) and found.attname == source else None
