"""The API as pages: each endpoint with forms that a person can fill in, and links to what it lists.

A view may say more about its page:

    page_actions(data)    [(label, address)]: buttons that POST, on the page of one object
    page_row_delete       the name of the route at which a row of its list is deleted
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from django.http import Http404
from django.urls import NoReverseMatch, reverse
from rest_framework import exceptions, serializers
from rest_framework.renderers import BrowsableAPIRenderer, HTMLFormRenderer
from rest_framework.request import Request, override_method
from rest_framework.response import Response

_PACK: Final = "api_forms"
_TITLES: Final = (
    "name",
    "title",
    "agent_name",
    "content",
    "account",
    "user_agent",
    "provider",
    "id",
)
_MAX_TITLE: Final = 100
# What a view's page is refused with when it makes a form: it then has none.
_REFUSED: Final = (exceptions.APIException, Http404, RecursionError)


class FormRenderer(HTMLFormRenderer):
    """Forms with a label for each field, suggestions, and lists as boxes or checkboxes."""

    template_pack = _PACK

    def render_field(self, field: Any, parent_style: Any) -> str:
        declared = field._field
        style = declared.style
        asked = {"raw": field.value, "id": f"field-{parent_style['prefix']}-{field.name}".replace(".", "-")}
        if callable(options := style.get("options")):
            request = declared.context.get("request")
            asked["suggested"] = options(request.user.pk) if request and request.user.is_authenticated else []
        if hasattr(declared, "to_lines"):
            given = field.value
            asked["lines"] = "\n".join(given if isinstance(given, str) else declared.to_lines(given))
        root = declared.root
        is_fresh = root.instance is None and not hasattr(root, "initial_data")
        if is_fresh and style.get("first") and asked.get("suggested"):
            field.value = asked["suggested"][0][0]
        declared.style = {**style, **asked, "prefix": parent_style["prefix"]}
        try:
            return super().render_field(field, parent_style)
        finally:
            declared.style = style


class BrowsableRenderer(BrowsableAPIRenderer):
    form_renderer_class = FormRenderer
    # Set by DRF's own `render`.
    renderer_context: Mapping[str, Any]
    accepted_media_type: str

    def get_context(self, data: Any, accepted_media_type: Any, renderer_context: Any) -> dict[str, Any]:
        context = super().get_context(data, accepted_media_type, renderer_context)
        view, request, response = (renderer_context[name] for name in ("view", "request", "response"))
        patch = None if context["put_form"] else self.get_rendered_html_form(data, view, "PATCH", request)
        # The API's root answers at two addresses, so that DRF names it twice.
        crumbs = list(dict(context["breadcrumblist"]).items())
        parent = crumbs[-2:-1]
        return {
            **context,
            "breadcrumblist": crumbs,
            "patch_form": patch,
            "rows": _rows(view, data),
            "actions": _actions(view, data) if response.status_code < 400 else [],
            "refusal": data if response.status_code >= 400 and isinstance(data, Mapping) else None,
            "parent_url": parent[0][1] if parent else "/api/v1/",
            "raw_method": next(
                (name for name in ("POST", "PUT", "PATCH") if name in view.allowed_methods), ""
            ),
        }

    def get_rendered_html_form(self, data: Any, view: Any, method: str, request: Request) -> Any:
        """A form with what was typed and what is wrong with it, or with what is there now."""
        if method in {"DELETE", "OPTIONS"}:
            return super().get_rendered_html_form(data, view, method, request)
        response: Response | None = self.renderer_context.get("response")
        failed = response is not None and response.status_code == 400 and request.method == method
        with override_method(view, request, method) as asked:
            if not self.show_form_for_method(view, method, asked, None) or not hasattr(
                view, "get_serializer"
            ):
                return None
            with contextlib.suppress(*_REFUSED):
                serializer = (
                    self._failed(data, view, method, request)
                    if failed
                    else view.get_serializer(**self._present(data, view, method))
                )
                return self._form(serializer, method)
        return None

    def _present(self, data: Any, view: Any, method: str) -> dict[str, Any]:
        """What a form for a change begins with: the object, or what the answer says of it."""
        if method == "POST" or not isinstance(data, Mapping):
            return {}
        instance = getattr(getattr(data, "serializer", None), "instance", None)
        return {"instance": dict(data) if instance is None else instance}

    def _failed(self, data: Any, view: Any, method: str, request: Request) -> Any:
        serializer = view.get_serializer(data=request.data, partial=method != "POST")
        with contextlib.suppress(*_REFUSED):
            serializer.is_valid()
        errors = dict(getattr(serializer, "_errors", {}) or {})
        found = data.get("fields") if isinstance(data, Mapping) else None
        for name, problems in (found or {}).items():
            top, _, inner = name.partition(".")
            if top not in errors:
                errors[top] = [f"{inner}: {problem}" if inner else problem for problem in problems]
        serializer._errors = errors
        return serializer

    def _form(self, serializer: Any, method: str) -> str | None:
        if isinstance(serializer, serializers.ListSerializer):
            return None
        try:
            filled = serializer.data
        except (
            AttributeError,
            KeyError,
            TypeError,
        ):  # the answer says less than the form asks: it begins empty
            serializer = type(serializer)(context=serializer.context)
            filled = serializer.data
        if not any(not field.read_only for field in serializer.fields.values()):
            return None
        style = {"template_pack": _PACK, "prefix": method.lower()}
        return str(self.form_renderer_class().render(filled, self.accepted_media_type, {"style": style}))


def _rows(view: Any, data: Any) -> list[dict[str, str]]:
    """Links to the objects of a list, or to the one that was just made."""
    if isinstance(data, Mapping):
        made = "id" in data and getattr(view, "action", None) == "create"
        listed = [{"id": data["run_id"], "name": "The run"}] if "run_id" in data else [data] if made else []
    else:
        listed = [row for row in data or [] if isinstance(row, Mapping) and "id" in row]
    return [row for row in (_row(view, each) for each in listed) if row["url"] or row["delete"]]


def _row(view: Any, row: Mapping[str, Any]) -> dict[str, str]:
    title = next((str(row[name]) for name in _TITLES if row.get(name)), "")
    states = [str(row[name]) for name in ("state", "health", "platform", "created_at") if row.get(name)]
    detail = getattr(view, "page_row_detail", "") or f"{getattr(view, 'basename', '')}-detail"
    path = {name: value for name, value in view.kwargs.items() if name not in {"pk", "agent_id"}}
    return {
        "title": title[:_MAX_TITLE],
        "about": " · ".join(states),
        "url": _reverse(detail, {**path, "pk": row["id"]}),
        "delete": _reverse(getattr(view, "page_row_delete", ""), {"id": row["id"]}),
    }


def _reverse(route: str, parts: Mapping[str, Any]) -> str:
    try:
        return reverse(route, kwargs=dict(parts)) if route else ""
    except NoReverseMatch:
        return ""


def _actions(view: Any, data: Any) -> list[tuple[str, str]]:
    """Buttons on the page of one object: those that its view names, and what may be POSTed below it."""
    if not getattr(view, "detail", False) or not isinstance(data, Mapping):
        return []
    named = list(view.page_actions(data)) if hasattr(view, "page_actions") else []
    offered = view.get_extra_actions() if not hasattr(view, "page_actions") else []
    return named + [
        (str(action.kwargs["name"]), url)
        for action in offered
        if "post" in action.mapping
        and action.detail
        and (url := _reverse(f"{view.basename}-{action.url_name}", view.kwargs))
    ]
