"""The texts of the API's pages for people: names, descriptions, and labels, helps and choices of their forms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.urls import ResolverMatch, URLPattern, URLResolver, get_resolver
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from adiuva.core.browsable_api import STATES, description_of

_METHODS = ("get", "post", "put", "patch", "delete")


def views() -> Iterator[Any]:
    """A view for each address and method of the API, as it is when it makes its page."""
    for pattern in _patterns(get_resolver().url_patterns):
        found: Any = pattern.callback
        kind = getattr(found, "view_class", None) or getattr(found, "cls", None)
        if not hasattr(kind, "get_renderers"):
            continue
        actions = getattr(found, "actions", None)
        for method in _METHODS:
            if method in actions if actions is not None else hasattr(kind, method):
                view = kind(**getattr(found, "initkwargs", {}))
                asked = getattr(APIRequestFactory(), method)("/")
                asked.resolver_match = ResolverMatch(found, (), {})
                view.request = Request(asked)
                view.request.user = AnonymousUser()
                view.args, view.kwargs, view.format_kwarg = (), {}, None
                view.action = actions[method] if actions is not None else None
                yield view


def _patterns(listed: list[URLPattern | URLResolver]) -> Iterator[URLPattern]:
    for each in listed:
        if isinstance(each, URLResolver):
            yield from _patterns(each.url_patterns)
        else:
            yield each


@cache
def page_texts() -> frozenset[str]:
    found: set[str] = set()
    for view in views():
        if getattr(view, "page_for_people", False):
            found |= {view.get_view_name(), description_of(view)}
            if hasattr(view, "get_serializer"):
                has_form = view.action not in getattr(view, "page_without_form", ())
                is_form = view.request.method in {"POST", "PUT", "PATCH"} and has_form
                found |= set(_form_texts(view.get_serializer(), is_form=is_form))
    return frozenset(found - {""})


def _form_texts(form: Any, *, is_form: bool) -> Iterator[str]:
    for name, field in getattr(form, "child", form).fields.items():
        choices = getattr(field, "choices", {})
        if name in STATES:  # said of the rows of a list
            yield from (str(value).replace("_", " ") for value in choices)
        if is_form and not field.read_only:
            yield str(field.label)
            yield str(field.help_text or "")
            yield from map(str, choices.values())
            if isinstance(field, serializers.Serializer):
                yield from _form_texts(field, is_form=True)
