"""The API as pages: each endpoint with forms that a person can fill in, and links to what it lists.

A view may say more about its page:

    page_for_people       True: the whole page is in the user's language: name, description, labels, helps, choices.
                          Otherwise it is for people who write programs, and all of it is in English, like OpenAPI
    page_actions(data)    [PageAction]: buttons that POST, on the page of one object and at its row of a list
    page_rows(data)       [PageRow]: what the page of one object lists below it
    page_figures(data)    [(label, text)]: figures of the answer that people want to read without counting digits
    page_without_form     the actions that take no body
    page_row_detail       the name of a row's route, if its view set has none
    page_row_delete       the name of the route that deletes a row of its list, if its view set has none
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from django.http import Http404
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext
from rest_framework import exceptions, serializers
from rest_framework.renderers import BrowsableAPIRenderer, HTMLFormRenderer
from rest_framework.request import Request, override_method
from rest_framework.response import Response
from rest_framework.utils.formatting import markup_description
from rest_framework.views import get_view_name

from adiuva.core.language import DEFAULT, speaking

_PACK: Final = "api_forms"
_TITLES: Final = (
    "name",
    "title",
    "agent_name",
    "content",
    "account",
    "user_agent",
    "provider",
    "device_id",
    "id",
)
MAX_TITLE: Final = 100
# Texts shown of a row below its title.
STATES: Final = ("state", "health", "platform")
# A view may refuse to make a form for its page with these errors; the page then has none.
_REFUSED: Final = (exceptions.APIException, Http404, RecursionError)


class PageAction(NamedTuple):
    """Button that POSTs to `url`. `key` names what it does, the same in every language.

    `confirm`: the button's text for the second press, where a row asks again before it acts.
    """

    key: str
    label: str
    url: str
    confirm: str = ""


def undo_action(url: str) -> PageAction:
    return PageAction("undo", gettext("Undo"), url, confirm=gettext("Yes, undo"))


@dataclass(frozen=True)
class PageRow:
    """Line of a list. `url`: its own page; `delete`: the address that a DELETE removes it at. "" for neither."""

    title: str
    about: str
    url: str = ""
    actions: Sequence[PageAction] = ()
    delete: str = ""


class FormRenderer(HTMLFormRenderer):
    """Renderer of forms with a label for each field, suggestions, and lists as boxes or checkboxes."""

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
    # DRF's own `render` sets these.
    renderer_context: Mapping[str, Any]
    accepted_media_type: str

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> Any:
        if getattr(renderer_context["view"], "page_for_people", False):
            return super().render(data, accepted_media_type, renderer_context)
        with speaking(DEFAULT):
            page = super().render(data, accepted_media_type, renderer_context)
        renderer_context["response"].headers["Content-Language"] = DEFAULT
        return page

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
            "rows": _rows(view, data) if response.status_code < 400 else [],
            "actions": _actions(view, data) if response.status_code < 400 else [],
            "figures": view.page_figures(data)
            if response.status_code < 400 and hasattr(view, "page_figures")
            else [],
            "refusal": data if response.status_code >= 400 and isinstance(data, Mapping) else None,
            "parent_url": parent[0][1] if parent else "/api/v1/",
            "raw_method": next(
                (name for name in ("POST", "PUT", "PATCH") if name in view.allowed_methods), ""
            ),
        }

    def get_rendered_html_form(self, data: Any, view: Any, method: str, request: Request) -> Any:
        """Return a form with what was typed and what is wrong with it, or with the present values."""
        if method in {"DELETE", "OPTIONS"}:
            return super().get_rendered_html_form(data, view, method, request)
        response: Response | None = self.renderer_context.get("response")
        failed = response is not None and response.status_code == 400 and request.method == method
        with override_method(view, request, method) as asked:
            no_body = getattr(view, "action", None) in getattr(view, "page_without_form", ())
            if no_body or not hasattr(view, "get_serializer"):
                return None
            if not self.show_form_for_method(view, method, asked, None):
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
        """Return the values that a form for a change begins with: the object, or what the answer says of it."""
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
        ):  # the form asks for more than the answer has, so it begins empty
            serializer = type(serializer)(context=serializer.context)
            filled = serializer.data
        if not any(not field.read_only for field in serializer.fields.values()):
            return None
        style = {"template_pack": _PACK, "prefix": method.lower()}
        return str(self.form_renderer_class().render(filled, self.accepted_media_type, {"style": style}))


def name_of(view: Any) -> str:
    """Return a view's name, for DRF's setting VIEW_NAME_FUNCTION."""
    return gettext(get_view_name(view))


def description_of(view: Any, html: bool = False) -> str:
    """Return the docstring with each paragraph on one line, for DRF's setting VIEW_DESCRIPTION_FUNCTION."""
    written = inspect.cleandoc(getattr(view, "description", None) or type(view).__doc__ or "")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in written.split("\n\n"))
    text = gettext(text) if text else ""
    return str(markup_description(text)) if html else text


def _rows(view: Any, data: Any) -> list[PageRow]:
    """Return links to the objects of a list, or to the one that was just made, and the actions on each."""
    if isinstance(data, Mapping) and getattr(view, "detail", False) and hasattr(view, "page_rows"):
        return list(view.page_rows(data))
    if isinstance(data, Mapping):
        made = "id" in data and getattr(view, "action", None) == "create"
        listed = [{"id": data["run_id"], "name": "The run"}] if "run_id" in data else [data] if made else []
    else:
        listed = [row for row in data or [] if isinstance(row, Mapping) and "id" in row]
    return [row for row in (_row(view, each) for each in listed) if row.url or row.delete]


def _row(view: Any, row: Mapping[str, Any]) -> PageRow:
    title = next((str(row[name]) for name in _TITLES if row.get(name)), "")
    states = [gettext(str(row[name]).replace("_", " ")) for name in STATES if row.get(name)]
    if made := row.get("created_at"):
        states.append(str(made)[:16].replace("T", " "))
    path = {name: value for name, value in view.kwargs.items() if name not in {"pk", "agent_id"}}
    place = _reverse(f"{view.basename}-detail", path | {"pk": row["id"]}) if hasattr(view, "basename") else ""
    # An object that was just made has its buttons, and its form to delete it, on its own page.
    is_listed = getattr(view, "action", None) in {None, "list"}
    delete = _named(view, "page_row_delete", row) or (place if hasattr(view, "destroy") else "")
    return PageRow(
        title=title[:MAX_TITLE],
        about=" · ".join(states),
        url=_named(view, "page_row_detail", row) or place,
        actions=view.page_actions(row) if is_listed and hasattr(view, "page_actions") else (),
        delete=delete if is_listed else "",
    )


def _named(view: Any, attribute: str, row: Mapping[str, Any]) -> str:
    route = getattr(view, attribute, "")
    return reverse(route, args=[row["id"]]) if route else ""


def _reverse(route: str, parts: Mapping[str, Any]) -> str:
    try:
        return reverse(route, kwargs=dict(parts)) if route else ""
    except NoReverseMatch:
        return ""


def _actions(view: Any, data: Any) -> list[PageAction]:
    """Return buttons on the page of one object, and below the answer of an endpoint that is no list."""
    is_list = getattr(view, "detail", True) is False
    if is_list or not isinstance(data, Mapping) or not hasattr(view, "page_actions"):
        return []
    return list(view.page_actions(data))
