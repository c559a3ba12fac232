"""Sign-in to pages, the browsable API and the admin: by password and second factor, or by a passkey."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import auth
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, resolve_url
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext
from django.views import View
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters

from adiuva.accounts import passkeys, second_factors, services
from adiuva.accounts.forms import PasskeyForm, SecondStepForm, SignInForm
from adiuva.accounts.models import User
from adiuva.accounts.pages.base import add_errors, page, throttle
from adiuva.accounts.passkeys import Assertion
from adiuva.accounts.second_factors import Proof, SecondFactorRefused
from adiuva.accounts.sign_in_rules import Way
from adiuva.accounts.throttles import client_address
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import in_their_language, sentence

_TICKET: Final = "second_factor_ticket"  # key in the browser's session, between the two steps


def passkey_form(challenge: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the template passkey_form.html needs to ask the browser for a passkey."""
    handle, options = challenge
    return {"passkey": PasskeyForm(initial={"handle": handle}), "options": json.dumps(options)}


@method_decorator([in_their_language, csrf_protect, sensitive_post_parameters()], name="dispatch")
class SignInPage(View):
    """Sign-in page. `landing` names the page to go on to if the address names none."""

    http_method_names = ["get", "post"]
    landing = "account"

    def get(self, request: HttpRequest) -> HttpResponse:
        return _sign_in_page(request, SignInForm(request))

    def post(self, request: HttpRequest) -> HttpResponse:
        if "handle" in request.POST:
            return self._with_passkey(request)
        form = SignInForm(request, request.POST)
        if not form.is_valid():
            return _sign_in_page(request, form, status=400)
        user = form.get_user()
        if second_factors.methods_of(user):
            request.session.cycle_key()
            request.session[_TICKET] = second_factors.make_ticket(user)
            wanted = {"next": request.GET.get("next") or resolve_url(self.landing)}
            return redirect(f"{resolve_url('second-step')}?{urlencode(wanted)}")
        return signed_in(request, user, self.landing)

    def _with_passkey(self, request: HttpRequest) -> HttpResponse:
        form, answer = SignInForm(request), PasskeyForm(request.POST)
        allowed = throttle(form, ("login_address", client_address(request)))
        if allowed and answer.is_valid():
            if user := passkeys.user_of(Assertion(**answer.cleaned_data)):
                return signed_in(request, user, self.landing, way="passkey")
            problem = gettext("This passkey does not open an account here.")
        else:
            problem = gettext("That did not work. Please try again.")
        return _sign_in_page(request, form, status=400, problem=problem)


def _sign_in_page(request: HttpRequest, form: SignInForm, *, status: int = 200, **more: Any) -> HttpResponse:
    context = {"form": form, **passkey_form(passkeys.challenge("sign in", None)), **more}
    return page(request, "sign_in", status=status, next=request.GET.get("next", ""), **context)


@method_decorator([in_their_language, csrf_protect, sensitive_post_parameters()], name="dispatch")
class SecondStepPage(View):
    """Page for the second factor, after the right password."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._page(request, SecondStepForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        user = self._user(request)
        if user is None:
            return redirect("sign-in")
        form, proof = SecondStepForm(request.POST), Proof()
        if "handle" in request.POST:
            answer = PasskeyForm(request.POST)
            proof = Proof(passkey=Assertion(**answer.cleaned_data)) if answer.is_valid() else proof
            form = SecondStepForm({"code": "-"})
        elif form.is_valid():
            typed = form.cleaned_data["code"]
            digits = "".join(typed.split()).isdigit()
            proof = Proof(code=typed) if digits else Proof(recovery_code=typed)
        here = client_address(request)
        if proof != Proof() and throttle(
            form, ("second_factor", "user", str(user.pk)), ("login_address", here)
        ):
            try:
                second_factors.require(user, proof)
                return signed_in(request, user)
            except SecondFactorRefused as error:
                add_errors(form, error)
        return self._page(request, form)

    def _user(self, request: HttpRequest) -> User | None:
        try:
            return second_factors.user_of_ticket(request.session.get(_TICKET, ""))
        except SecondFactorRefused:
            return None

    def _page(self, request: HttpRequest, form: SecondStepForm) -> HttpResponse:
        user = self._user(request)
        if user is None:
            return redirect("sign-in")
        methods = second_factors.methods_of(user)
        more = passkey_form(passkeys.challenge("second factor", user)) if "passkey" in methods else {}
        return page(
            request, "second_step", status=400 if form.is_bound else 200, form=form, methods=methods, **more
        )


class SignOutPage(View):
    http_method_names = ["post"]

    @method_decorator(csrf_protect)
    def post(self, request: HttpRequest) -> HttpResponse:
        auth.logout(request)
        return redirect("sign-in")


def signed_in(
    request: HttpRequest,
    user: User,
    landing: str = "account",
    *,
    way: Way = "password",
    wanted: str | None = None,
) -> HttpResponse:
    """Open the browser's session and go on to the page it wanted, if that is on this server."""
    request.session.pop(_TICKET, None)
    request.sign_in_way = way  # type: ignore[attr-defined]  # read by receivers of Django's signal of the sign-in
    try:
        auth.login(request, user, backend=settings.AUTHENTICATION_BACKENDS[0])
    except services.InvalidCredentials:  # the password changed between the steps
        request.session.flush()
        return redirect("sign-in")
    except AdiuvaError as error:  # a rule forbids this way of signing in
        request.session.flush()
        request.user = AnonymousUser()
        return _sign_in_page(
            request, SignInForm(request), status=error.status, problem=sentence(error.message)
        )
    wanted = request.GET.get("next", "") if wanted is None else wanted
    safe = url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return redirect(wanted if safe else resolve_url(landing))
