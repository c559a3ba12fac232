"""Pages on which people see the plugins that they have, and publish some: a handle, the id of a plugin, its packages.

They work without scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, cast
from uuid import UUID

from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext, gettext_lazy

from adiuva.accounts.models import User
from adiuva.accounts.pages.base import add_errors
from adiuva.core import number_formats
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import said, sentence
from billing import request_limits
from billing.marketplace import (
    bodies,
    connected_accounts,
    developers,
    drafts,
    earnings,
    installs,
    own_plugins,
    ownership_transfers,
    publication,
    submissions,
)
from billing.marketplace.errors import PackageRefused
from billing.marketplace.models import Developer, Plugin, PluginVersion
from billing.marketplace.package import MAX_PACKAGE_BYTES
from billing.marketplace.page_forms import FocusedForm, GiveForm, HandleForm, NewPluginForm, PackageForm
from billing.marketplace.pages import Page
from billing.marketplace.states import NEXT

State = PluginVersion.State
_STATES: Final = {
    State.DRAFT: gettext_lazy("draft"),
    State.SUBMITTED: gettext_lazy("handed in"),
    State.CHECKING: gettext_lazy("being checked"),
    State.IN_REVIEW: gettext_lazy("in review"),
    State.CHANGES_ASKED: gettext_lazy("changes are asked for"),
    State.REJECTED: gettext_lazy("refused"),
    State.WITHDRAWN: gettext_lazy("withdrawn"),
    State.APPROVED: gettext_lazy("approved, on hold"),
    State.LISTED: gettext_lazy("in the catalogue"),
    State.YANKED: gettext_lazy("no longer offered"),
    State.REVOKED: gettext_lazy("revoked"),
}
_PLUGIN_STATES: Final = {
    Plugin.State.DRAFT: gettext_lazy("no version of it is in the catalogue"),
    Plugin.State.LISTED: gettext_lazy("in the catalogue"),
    Plugin.State.WITHDRAWN: gettext_lazy("taken out of the catalogue by you"),
    Plugin.State.SUSPENDED: gettext_lazy("taken down by staff"),
}
_ACCOUNTS: Final = {
    "none": gettext_lazy("You have no account at Stripe yet. Shares of what you sell wait for one."),
    "pending": gettext_lazy("Stripe does not know enough of you yet. Shares of what you sell wait."),
    "ready": gettext_lazy("Your shares are sent to your account at Stripe."),
    "restricted": gettext_lazy("Stripe wants to know more of you. Until then nothing is sold or sent."),
}
# A little more than the largest package, so that the page can refuse one that is slightly too large.
_MAX_FORM_BYTES: Final = MAX_PACKAGE_BYTES + (4 << 20)
_NOTES_CHARS, _REASON_CHARS = 2000, 500


class _OwnPage(LoginRequiredMixin, Page):
    http_method_names = ["get", "post"]

    @property
    def user(self) -> User:
        return cast(User, self.request.user)

    def private(self, name: str, **context: Any) -> HttpResponse:
        response = self.page(name, **context)
        response["Cache-Control"] = "no-store"
        return response


class OwnPluginsPage(_OwnPage):
    """The plugins that somebody has and publishes, and transfers to and from them."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show()

    def post(self, request: HttpRequest) -> HttpResponse:
        act = request.POST.get("act", "")
        try:
            if act == "payouts":
                url = connected_accounts.page_of(developer=developers.active(self.user.pk))
                # A form of ours may not be answered with a redirect to another site.
                return self.private("to_stripe", url=url)
            self._move(act, request.POST.get("transfer", ""))
        except AdiuvaError as error:
            return self._show(problem=sentence(error.message), status=error.status)
        return redirect(request.path)

    def _move(self, act: str, transfer: str) -> None:
        acts = {"accept": ownership_transfers.accept, "stop": ownership_transfers.cancel}
        try:
            which, do = UUID(transfer), acts[act]
        except (ValueError, KeyError):
            raise Http404 from None
        do(user_id=self.user.pk, transfer_id=which)

    def _show(self, problem: str = "", status: int = 200) -> HttpResponse:
        me = self.user.pk
        developer = Developer.objects.filter(user_id=me).first()
        handle = developer.handle if developer is not None else None
        transfers = [
            {
                **each,
                "is_offered": each["receiver"] == handle and each["state"] == ownership_transfers.State.ASKED,
            }
            for each in ownership_transfers.of_user(me)
        ]
        return self.private(
            "own",
            status=status,
            installed=installs.installed(me),
            published=[
                {"slug": each.slug, "name": each.name, "said": _PLUGIN_STATES[Plugin.State(each.state)]}
                for each in Plugin.objects.of(me).order_by("slug")
            ],
            transfers=transfers,
            developer=developer,
            account=_ACCOUNTS[developers.account_state(developer)] if developer is not None else "",
            earned=self._earned(developer) if developer is not None else [],
            problem=problem,
        )

    def _earned(self, developer: Developer) -> list[dict[str, str]]:
        """Return, by currency, what became of the shares."""

        def money(row: dict[str, Any], name: str) -> str:
            return number_formats.money(row[name] * 10_000, row["currency"], self.user.locale)

        return [
            {
                name: money(row, name)
                for name in ("share", "settled", "on_hold", "waiting", "debt")
                if row[name]
            }
            for row in earnings.earnings(developer)
        ]


class NewPluginPage(_OwnPage):
    """Takes the id of a new plugin; before the first, a developer's handle."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(self._form())

    def post(self, request: HttpRequest) -> HttpResponse:
        form = self._form(request.POST)
        if form.is_valid():
            given = form.cleaned_data
            try:
                if isinstance(form, HandleForm):
                    developers.become(user_id=self.user.pk, **given)
                    return redirect("new-plugin")
                price = given.pop("price")
                plugin = drafts.create(user_id=self.user.pk, price_cents=price, **given)
                return redirect("own-plugin", plugin.slug)
            except AdiuvaError as error:
                add_errors(form, error)
        return self._show(form, status=400)

    def _form(self, data: Any = None) -> FocusedForm:
        is_developer = Developer.objects.filter(user_id=self.user.pk).exists()
        return NewPluginForm(data) if is_developer else HandleForm(data)

    def _show(self, form: FocusedForm, status: int = 200) -> HttpResponse:
        form.focus()
        return self.private("new", form=form, is_first=isinstance(form, HandleForm), status=status)


class OwnPluginPage(_OwnPage):
    """One plugin of a developer: its versions, and each step that the developer can take."""

    max_form_bytes = _MAX_FORM_BYTES

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        return self._show(self._plugin(slug))

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        plugin, act = self._plugin(slug), request.POST.get("act", "")
        forms: dict[str, FocusedForm] = {}
        try:
            if act == "upload":
                upload = forms["upload"] = PackageForm(request.POST, request.FILES)
                done = self._upload(plugin, upload)
            elif act == "give":
                give = forms["give"] = GiveForm(request.POST)
                done = self._give(plugin, give)
            else:
                done = self._step(plugin, act)
        except PackageRefused as error:
            found = cast(list[dict[str, Any]], error.extra["findings"])
            findings = [{**each, "problem": said(each["problem"])} for each in found]
            problem = sentence(error.message)
            return self._show(plugin, status=400, problem=problem, findings=findings)
        except AdiuvaError as error:
            if act in forms and error.fields:
                add_errors(forms[act], error)
                return self._show(plugin, status=error.status, forms=forms)
            return self._show(plugin, status=error.status, problem=sentence(error.message))
        if done is None:
            return self._show(plugin, status=400, forms=forms)
        return redirect(f"{request.path}?done={done}")

    def _plugin(self, slug: str) -> Plugin:
        found = Plugin.objects.of(self.user.pk).filter(slug=slug).first()
        if found is None:
            raise Http404
        return found

    def _upload(self, plugin: Plugin, form: PackageForm) -> str | None:
        """Upload the package and return the message to show; None if the form is wrong. Raises AdiuvaError."""
        if not form.is_valid():
            return None
        request_limits.require(self.user.pk, self.user.tier)
        drafts.may_upload(user_id=self.user.pk, plugin_id=plugin.pk)
        body = bodies.PackageBody(self.user.pk, plugin.pk)
        try:
            for piece in form.cleaned_data["package"].chunks():
                body.write(piece)
            body.end()
        except BaseException as error:
            body.break_off(error)
            raise
        return "uploaded"

    def _give(self, plugin: Plugin, form: GiveForm) -> str | None:
        if not form.is_valid():
            return None
        ownership_transfers.ask(
            user_id=self.user.pk, plugin_id=plugin.pk, handle=form.cleaned_data["handle"].lower()
        )
        return "offered"

    def _step(self, plugin: Plugin, act: str) -> str:
        mine = {"user_id": self.user.pk, "plugin_id": plugin.pk}
        if act in ("take_out", "offer_again"):
            (publication.withdraw if act == "take_out" else publication.offer_again)(**mine)
            return "saved"
        words = self.request.POST.get("words", "").replace("\0", "").strip()
        steps: dict[str, tuple[Any, dict[str, str]]] = {
            "submit": (submissions.submit, {"notes": words[:_NOTES_CHARS]}),
            "withdraw": (submissions.withdraw, {}),
            "delete": (drafts.delete, {}),
            "yank": (publication.yank, {"reason": words[:_REASON_CHARS]}),
            "unyank": (publication.unyank, {}),
        }
        if act not in steps:
            raise Http404
        do, more = steps[act]
        do(**mine, version=self.request.POST.get("version", "").replace("\0", ""), **more)
        return "submitted" if act == "submit" else "saved"

    def _show(
        self,
        plugin: Plugin,
        *,
        status: int = 200,
        problem: str = "",
        findings: Sequence[dict[str, Any]] = (),
        forms: Mapping[str, FocusedForm] = MappingProxyType({}),
    ) -> HttpResponse:
        upload, give = forms.get("upload") or PackageForm(), forms.get("give") or GiveForm()
        for form in (upload, give):
            form.focus()
        return self.private(
            "own_plugin",
            status=status,
            plugin=plugin,
            said=_PLUGIN_STATES[Plugin.State(plugin.state)],
            versions=[_with_steps(each) for each in own_plugins.versions(self.user.pk, plugin.pk)],
            problem=problem,
            findings=findings,
            upload=upload,
            give=give,
            done=self._done(),
        )

    def _done(self) -> str:
        return {
            "uploaded": gettext("The package was checked and is a draft now. Hand it in when it is ready."),
            "submitted": gettext("It is handed in. It is checked once more, and then a person reads it."),
            "offered": gettext("The other developer is asked. You can stop it under your plugins."),
            "saved": gettext("It is done."),
        }.get(self.request.GET.get("done", ""), "")


def _with_steps(version: dict[str, Any]) -> dict[str, Any]:
    state = State(version["state"])
    return {
        **version,
        "said": _STATES[state],
        "may_submit": state in (State.DRAFT, State.CHANGES_ASKED),
        "may_withdraw": State.WITHDRAWN in NEXT[state],
    }
