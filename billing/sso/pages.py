"""Pages to sign in through an organisation, and those on which an owner sets that up. They work without scripts."""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import urlencode
from uuid import UUID

import structlog
from django import forms
from django.conf import settings
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy
from django.views import View
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters

from adiuva.accounts import reauthentication, services
from adiuva.accounts.browser_sessions import session_id_of
from adiuva.accounts.forms import ConfirmationForm, too_many_tries
from adiuva.accounts.models import Session, User
from adiuva.accounts.pages.base import add_errors, throttle
from adiuva.accounts.pages.sign_in import signed_in
from adiuva.accounts.second_factors import Proof
from adiuva.accounts.throttles import client_address, count_attempts
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import in_their_language, sentence
from billing.sso import configuration, signing_in
from billing.sso.models import SsoEvent
from billing.sso.signing_in import ForApp, PasswordWanted, Recognised

_KEPT: Final = "sso_word"  # in the browser's session, while it is at the provider's page
_WANTED: Final = "sso_next"
_MAX_EVENTS: Final = 20

log = structlog.get_logger(__name__)


def _page(request: HttpRequest, name: str, *, status: int = 200, **context: Any) -> HttpResponse:
    response = render(request, f"billing/sso/{name}.html", context, status=status)
    response["Cache-Control"] = "no-store"
    response["Referrer-Policy"] = "strict-origin"  # addresses here hold words that are used once
    response["X-Robots-Tag"] = "noindex"
    return response


# ── Signing in ──────────────────────────────────────────────────────────────────────────────────────────


class AddressForm(forms.Form):
    email = forms.EmailField(
        label=gettext_lazy("E-mail address at your organisation"),
        widget=forms.EmailInput(attrs={"autocomplete": "email", "autofocus": True}),
    )


class LinkForm(forms.Form):
    word = forms.CharField(max_length=200, widget=forms.HiddenInput)
    password = forms.CharField(
        label=gettext_lazy("Password of the account"),
        strip=False,
        required=False,
        max_length=services.MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )
    code = forms.CharField(
        label=gettext_lazy("Code of your app, or a recovery code"),
        max_length=60,
        required=False,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code"}),
        help_text=gettext_lazy("If the account asks for a second factor."),
    )

    def proof(self) -> Proof:
        typed = self.cleaned_data["code"]
        return Proof(code=typed) if "".join(typed.split()).isdigit() else Proof(recovery_code=typed)


@method_decorator([in_their_language, csrf_protect], name="dispatch")
class BeginPage(View):
    """Asks for the address, and leads to the organisation's page."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        return _page(request, "begin", form=AddressForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        form = AddressForm(request.POST)
        if form.is_valid():
            email, here = form.cleaned_data["email"], client_address(request)
            counters = (("login_address", here), ("login", here, User.normalize_username(email)))
            if throttle(form, *counters):
                try:
                    url, word = signing_in.begin(email=email)
                except AdiuvaError as error:
                    add_errors(form, error)
                else:
                    request.session[_KEPT], request.session[_WANTED] = word, request.GET.get("next", "")
                    # A form of ours may not be answered with a redirect to another site.
                    return _page(request, "leave", url=url)
        return _page(request, "begin", form=form, status=400)


@method_decorator(in_their_language, name="dispatch")
class CallbackPage(View):
    """The page to which a provider sends the browser back."""

    http_method_names = ["get"]  # no HEAD: a link preview must not use up the word

    def get(self, request: HttpRequest) -> HttpResponse:
        kept = request.session.pop(_KEPT, "")
        try:
            done = signing_in.come_back(request.GET.dict(), kept=kept)
        except AdiuvaError as error:
            return _page(request, "problem", status=error.status, problem=sentence(error.message))
        return _go_on(request, done)


@method_decorator([in_their_language, csrf_protect, sensitive_post_parameters()], name="dispatch")
class LinkPage(View):
    """Takes the password of an account that has the address already."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest) -> HttpResponse:
        form, as_new = LinkForm(request.POST), "new" in request.POST
        if not form.is_valid():
            return redirect("sso")
        word = form.cleaned_data["word"]
        try:
            wanted = signing_in.waiting(word)
            here = client_address(request)
            wait = count_attempts(("login_address", here), ("login", here, wanted.address))
            if wait is not None:
                form.add_error(None, too_many_tries(wait))
                return _link_page(request, wanted, form, 429)
        except AdiuvaError as error:
            return _page(request, "problem", status=error.status, problem=sentence(error.message))
        try:
            password = form.cleaned_data["password"]
            done = signing_in.link(word=word, password=password, proof=form.proof(), as_new=as_new)
        except AdiuvaError as error:
            add_errors(form, error)
            return _link_page(request, wanted, form, error.status)
        return _go_on(request, done)


def _link_page(
    request: HttpRequest, wanted: PasswordWanted, form: LinkForm, status: int = 200
) -> HttpResponse:
    return _page(request, "link", status=status, wanted=wanted, form=form)


def _go_on(request: HttpRequest, done: Recognised | PasswordWanted | ForApp) -> HttpResponse:
    if isinstance(done, PasswordWanted):
        return _link_page(request, done, LinkForm(initial={"word": done.word}))
    if isinstance(done, ForApp):
        return _page(request, "to_app", back=f"{settings.APP_LINK}sso?{urlencode({'code': done.code})}")
    wanted = request.session.pop(_WANTED, "")
    response = signed_in(request, done.user, way="sso", wanted=wanted)
    if (session_id := session_id_of(request)) is not None:
        signing_in.vouch(done, session_id)
        Session.objects.filter(pk=session_id).update(expires_at=timezone.now() + settings.SSO_LIFE)
        request.session.set_expiry(int(settings.SSO_LIFE.total_seconds()))
    return response


# ── Setting it up ─────────────────────────────────────────────────────────────────────────────────────────


class ProviderForm(ConfirmationForm):
    issuer = forms.CharField(
        label=gettext_lazy("Issuer"),
        max_length=500,
        widget=forms.URLInput(attrs={"placeholder": "https://login.example.com"}),
        help_text=gettext_lazy("The address that your provider calls its issuer."),
    )
    client_id = forms.CharField(label=gettext_lazy("Client id"), max_length=255)
    secret = forms.CharField(
        label=gettext_lazy("Client secret"),
        max_length=255,
        strip=False,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=gettext_lazy("It is never shown. Leave it empty to keep the present one."),
    )
    field_order = ["issuer", "client_id", "secret", "password"]


class DomainForm(forms.Form):
    name = forms.CharField(
        label=gettext_lazy("Domain"),
        max_length=253,
        widget=forms.TextInput(attrs={"placeholder": "example.com"}),
    )


@method_decorator([in_their_language, csrf_protect, sensitive_post_parameters()], name="dispatch")
class TeamSsoPage(LoginRequiredMixin, View):
    """The sign-in of the owner's team."""

    http_method_names = ["get", "post"]

    @property
    def me(self) -> User:
        return cast(User, self.request.user)

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show()

    def post(self, request: HttpRequest) -> HttpResponse:
        act, mine = request.POST.get("act", ""), self.me.pk
        form: forms.Form
        if act == "add":
            form = DomainForm(request.POST)
        elif act == "set":
            form = ProviderForm(request.POST)
        else:
            form = ConfirmationForm(request.POST) if act in _CONFIRMED else forms.Form(request.POST)
        if form.is_valid():
            try:
                data = dict(form.cleaned_data)
                if "password" in data:
                    wait = count_attempts(("login", "user", str(mine)))
                    if wait is not None:
                        form.add_error(None, too_many_tries(wait))
                        return self._show(act, form)
                    reauthentication.require(user=self.me, password=data.pop("password"))
                self._act(act, mine, data)
                return redirect(f"{request.path}?done={act}")
            except AdiuvaError as error:
                add_errors(form, error)
        return self._show(act, form)

    def _act(self, act: str, mine: UUID, data: dict[str, Any]) -> None:
        if act == "set":
            configuration.set_provider(owner_id=mine, **data)
        elif act == "add":
            configuration.add_domain(owner_id=mine, **data)
        elif act in ("require", "allow"):
            configuration.require(owner_id=mine, is_required=act == "require")
        elif act == "remove":
            configuration.remove_provider(owner_id=mine)
        elif act in ("prove", "drop"):
            verb = configuration.prove_domain if act == "prove" else configuration.remove_domain
            verb(owner_id=mine, domain_id=_uuid(self.request.POST.get("domain", "")))

    def _show(self, act: str = "", failed: forms.Form | None = None) -> HttpResponse:
        try:
            team_id = configuration.of_owner(self.me.pk).team_id
            found = configuration.describe(self.me.pk)
            events = list(SsoEvent.objects.filter(team_id=team_id)[:_MAX_EVENTS])
        except configuration.NoProvider:
            found, events = None, []
        initial = {"issuer": found["issuer"], "client_id": found["client_id"]} if found else {}
        problems = failed.non_field_errors() if failed is not None and act not in ("set", "add") else []
        if failed is not None and act in _CONFIRMED and "password" in failed.errors:
            problems = [*problems, *failed.errors["password"]]
        return _page(
            self.request,
            "team",
            status=400 if failed is not None else 200,
            sso=found,
            redirect_uri=configuration.redirect_uri(),
            provider_form=failed if act == "set" else ProviderForm(initial=initial),
            domain_form=failed if act == "add" else DomainForm(),
            confirm_form=ConfirmationForm(auto_id="confirm_%s"),
            problems=problems,
            done=self.request.GET.get("done", "") if failed is None else "",
            events=[{"at": each.at, "said": each.get_kind_display(), "code": each.code} for each in events],
        )


_CONFIRMED: Final = ("require", "allow", "remove")


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return UUID(int=0)
