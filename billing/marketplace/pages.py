"""Pages on which people look at plugins and their publishers, buy one, and report one.

They work without scripts; looking takes no account.
"""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import urlencode
from uuid import UUID

from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.utils.translation import get_language, gettext_lazy, ngettext
from django.views import View
from django.views.decorators.csrf import csrf_protect

from adiuva.accounts.models import User
from adiuva.core import number_formats
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import in_their_language, said, sentence
from adiuva.devices.tables import NOUNS
from billing.marketplace import buying, catalogue, ratings_and_reports, schedule_words
from billing.marketplace.errors import NoSuchPlugin
from billing.marketplace.models import Developer, Plugin
from billing.marketplace.page_forms import ReportForm
from billing.marketplace.permissions import PERMISSIONS

_PER_PAGE: Final = 20
_MAX_PAGE: Final = 500
# The most times that the page after a payment looks again, and the seconds between them.
_MOST_LOOKS: Final = 10
_LOOK_AGAIN_S: Final = 2
_SORTS: Final = {
    "rating": gettext_lazy("Best rated"),
    "installs": gettext_lazy("Most installed"),
    "newest": gettext_lazy("Newest"),
}
_KINDS: Final = {
    "agent_template": gettext_lazy("Agent template"),
    "importer": gettext_lazy("Importer"),
    "theme": gettext_lazy("Theme"),
    "extension": gettext_lazy("Extension"),
}


@method_decorator([in_their_language, csrf_protect], name="dispatch")
class Page(View):
    http_method_names = ["get"]

    @property
    def me(self) -> UUID | None:
        user = self.request.user
        return user.pk if isinstance(user, User) else None

    def page(self, name: str, *, status: int = 200, **context: Any) -> HttpResponse:
        return render(self.request, f"marketplace/{name}.html", context, status=status)

    def shown(self, plugin: Plugin) -> dict[str, Any]:
        user = self.request.user
        return _shown(plugin, user.locale if isinstance(user, User) else get_language() or "en")


class CataloguePage(Page):
    """The listed plugins, with a search."""

    def get(self, request: HttpRequest) -> HttpResponse:
        category = request.GET.get("category", "")
        sort = request.GET.get("sort", "rating")
        number = request.GET.get("page", "1")
        filters = {
            "q": request.GET.get("q", "")[:200],
            "category": category if category in Plugin.Category.values else "",
            "sort": sort if sort in _SORTS else "rating",
        }
        page = int(number) if number.isascii() and number.isdecimal() and 0 < len(number) < 4 else 1
        found = catalogue.find(**filters, page=min(max(page, 1), _MAX_PAGE), limit=_PER_PAGE)
        return self.page(
            "catalogue",
            plugins=[self.shown(plugin) for plugin in found.plugins],
            total=found.total,
            filters=filters,
            categories=Plugin.Category.choices,
            sorts=_SORTS.items(),
            before=_link(filters, found.page - 1) if found.page > 1 else "",
            after=_link(filters, found.page + 1) if found.page * _PER_PAGE < found.total else "",
        )


def _link(filters: dict[str, str], page: int) -> str:
    return "?" + urlencode({**{name: value for name, value in filters.items() if value}, "page": page})


class PluginPage(Page):
    """One plugin: its purpose, its permissions, and its listed versions. Also the place to buy it."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        return self._show(_listed(slug))

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        plugin = _listed(slug)
        if self.me is None:
            return redirect_to_login(request.path)
        site = request.build_absolute_uri("/").rstrip("/")
        try:
            url = buying.check_out(user_id=self.me, plugin=plugin, site=site)
        except AdiuvaError as error:
            return self._show(plugin, problem=sentence(error.message), status=error.status)
        # A form of ours may not be answered with a redirect to another site.
        response = render(request, "billing/leave.html", {"url": url})
        response["Cache-Control"] = "no-store"
        return response

    def _show(self, plugin: Plugin, problem: str = "", status: int = 200) -> HttpResponse:
        version = plugin.current_version
        assert version is not None
        response = self.page(
            "plugin",
            status=status,
            plugin=self.shown(plugin),
            version=version,
            size=number_formats.size(version.size),
            hosts=version.manifest.get("hosts", []),
            license=version.manifest["license"],
            homepage=version.manifest.get("homepage", ""),
            agent=_agent_in_words(version.manifest.get("agent")),
            permissions=[said(PERMISSIONS[name]) for name in version.permissions],
            history=catalogue.history(plugin),
            problem=problem,
            is_theirs=self.me is not None and buying.may_have(self.me, plugin),
            **self._after_payment(plugin),
        )
        if self.request.GET or problem:
            response["Cache-Control"] = "no-store"
        return response

    def _after_payment(self, plugin: Plugin) -> dict[str, Any]:
        """Return the state of a payment for a user back from Stripe's page, which looks again while it is unknown."""
        looks, bought = self.request.GET.get("looks", "0"), self.request.GET.get("bought", "")
        count = int(looks) if looks.isascii() and looks.isdecimal() and len(looks) < 3 else _MOST_LOOKS
        try:
            purchase = UUID(bought)
        except ValueError:
            return {}
        if self.me is None:
            return {}
        if buying.is_bought(user_id=self.me, purchase_id=purchase):
            return {"said": "bought"}
        again = f"?bought={purchase}&looks={count + 1}" if count < _MOST_LOOKS else ""
        return {"said": "waiting", "again": again, "seconds": _LOOK_AGAIN_S}


def _listed(slug: str) -> Plugin:
    try:
        return catalogue.by_slug(slug)
    except NoSuchPlugin:
        raise Http404 from None


def _agent_in_words(template: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an agent template's offer, as the page shows it."""
    if template is None:
        return None
    cron, filters = template.get("schedule_cron", ""), template.get("filters", {})
    return {
        **template,
        "tables": [ngettext(*NOUNS[table], 2) for table in template["data_types"]],
        "schedule": schedule_words.describe(cron) if cron else "",
        "labels": filters.get("labels", []),
        "senders": filters.get("senders", []),
        "days": filters.get("date_range", {}),
    }


class ReportPage(LoginRequiredMixin, Page):
    """The page on which people tell staff that something is wrong with a plugin."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        return self._show(_listed(slug), ReportForm())

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        plugin, form = _listed(slug), ReportForm(request.POST)
        if not form.is_valid():
            form.focus()
            return self._show(plugin, form, status=400)
        ratings_and_reports.report(user_id=cast(UUID, self.me), plugin_id=plugin.pk, **form.cleaned_data)
        return redirect(f"{request.path}?done=sent")

    def _show(self, plugin: Plugin, form: ReportForm, status: int = 200) -> HttpResponse:
        is_sent = self.request.GET.get("done") == "sent"
        response = self.page("report", plugin=plugin, form=form, is_sent=is_sent, status=status)
        response["Cache-Control"] = "no-store"
        return response


class DeveloperPage(Page):
    """A developer, and their plugins."""

    def get(self, request: HttpRequest, handle: str) -> HttpResponse:
        developer = Developer.objects.filter(handle=handle.lower(), state=Developer.State.ACTIVE).first()
        if developer is None:
            raise Http404
        rows = Plugin.objects.listed().filter(developer=developer)
        rows = rows.select_related("developer", "current_version").order_by("-score", "id")
        return self.page("developer", developer=developer, plugins=[self.shown(plugin) for plugin in rows])


def _shown(plugin: Plugin, locale: str) -> dict[str, Any]:
    price = number_formats.money(plugin.price_cents * 10_000, plugin.currency, locale)
    return {
        "slug": plugin.slug,
        "name": plugin.name,
        "summary": plugin.summary,
        "kind": _KINDS.get(plugin.kind, plugin.kind),
        "category": plugin.get_category_display(),
        "developer": plugin.developer,
        "price": price if plugin.price_cents else "",
        "rating": catalogue.average(plugin),
        "ratings": plugin.ratings,
        "installs": plugin.installs,
        "version": plugin.current_version.version if plugin.current_version is not None else "",
    }
