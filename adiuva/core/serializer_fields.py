"""Serializer fields that a person can fill in on the API's pages. In JSON they are what their base classes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_framework import serializers
from rest_framework.fields import empty
from rest_framework.utils import html


class LinesField(serializers.ListField):
    """List of texts; on a page, a box with one text on each line."""

    def __init__(self, **options: Any) -> None:
        options["style"] = {"base_template": "lines.html", "rows": 4} | options.get("style", {})
        super().__init__(**options)

    def get_value(self, dictionary: Any) -> Any:
        typed = _typed(self, dictionary)
        if typed is None:
            return super().get_value(dictionary)
        lines = (
            typed[0].splitlines() if len(typed) == 1 else typed
        )  # programs that send forms may send several
        return self.from_lines([line.strip() for line in lines if line.strip()])

    def from_lines(self, lines: list[str]) -> Any:
        return lines

    def to_lines(self, value: Any) -> Sequence[str]:
        return value or []


class ChecksField(serializers.ListField):
    """List of some of `choices`; on a page, a checkbox for each."""

    def __init__(self, *, choices: Sequence[str], **options: Any) -> None:
        self.choices = {name: name.replace("_", " ") for name in choices}
        options["style"] = {"base_template": "checks.html"} | options.get("style", {})
        super().__init__(**options)

    def get_value(self, dictionary: Any) -> Any:
        typed = _typed(self, dictionary)
        return super().get_value(dictionary) if typed is None else [name for name in typed if name]


class FilterConfigField(serializers.JSONField):
    """Object of lists of texts and a span of days; on a page, a box for each list and a field for each day."""

    _LISTS = ("labels", "senders")
    _DAYS = ("from", "to")

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"style": {"base_template": "filters.html"}} | options)

    def get_value(self, dictionary: Any) -> Any:
        if not html.is_html_input(dictionary) or self.field_name in dictionary:
            return super().get_value(dictionary)
        shown = [f"{self.field_name}.{name}" for name in (*self._LISTS, *self._DAYS)]
        if not any(name in dictionary for name in shown):
            return empty
        lists = {
            name: [line.strip() for line in dictionary.get(f"{self.field_name}.{name}", "").splitlines()]
            for name in self._LISTS
        }
        days = {name: dictionary.get(f"{self.field_name}.{name}", "") for name in self._DAYS}
        found: dict[str, Any] = {name: [line for line in lines if line] for name, lines in lists.items()}
        found["date_range"] = {name: day for name, day in days.items() if day}
        return {name: value for name, value in found.items() if value}


def _typed(field: serializers.ListField, dictionary: Any) -> list[str] | None:
    """Return the texts that a form has under a field's name; None without any, and for JSON, a list already."""
    if not html.is_html_input(dictionary) or field.field_name not in dictionary:
        return None
    found: list[str] = dictionary.getlist(field.field_name)
    return found
