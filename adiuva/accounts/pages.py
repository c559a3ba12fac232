"""Pages for people, at the addresses in mails and beside them. They work without scripts and store nothing.

A page that a link of a mail opens only shows a form: programs that look at links before their owner does must not use
them up. The form sends the link's token in its body, so that it stands in no further address.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters

from adiuva.accounts import recovery
from adiuva.accounts.forms import AskResetForm, LinkForm, ResetForm
from adiuva.accounts.mail_links import LinkInvalid, Purpose, is_valid
from adiuva.accounts.models import User
from adiuva.accounts.throttles import client_address, count_attempt
from adiuva.core.errors import AdiuvaError


def page(request: HttpRequest, name: str, *, status: int = 200, **context: Any) -> HttpResponse:
    """A page that no cache keeps, and that tells no other site where the browser came from."""
    response = render(request, f"accounts/{name}.html", context, status=status)
    response["Cache-Control"] = "no-store"
    response["Referrer-Policy"] = "no-referrer"
    response["X-Robots-Tag"] = "noindex"
    return response


def add_errors(form: forms.Form, error: AdiuvaError) -> None:
    """Show a refusal at the fields that it names, else above the form."""
    for name, problems in (error.fields or {}).items():
        form.add_error(name if name in form.fields else None, problems)
    if not error.fields:
        form.add_error(None, f"{error.message[:1].upper()}{error.message[1:]}.")


def throttle(form: forms.Form, *counters: tuple[str, ...]) -> bool:
    """Count an attempt; each counter is a scope and who. False, with an error in the form, if it is not allowed."""
    waits = [wait for scope, *who in counters if (wait := count_attempt(scope, *who)) is not None]
    if waits:
        form.add_error(None, f"Too many tries. The next is possible in {math.ceil(max(waits))} s.")
    return not waits


@method_decorator([csrf_protect, sensitive_post_parameters()], name="dispatch")
class _LinkPage(View):
    """What a link of a mail opens. Subclasses say what it is for."""

    http_method_names = ["get", "post"]
    purpose: Purpose
    template: str
    form_class: type[forms.Form] = LinkForm
    act: Callable[..., User]

    def get(self, request: HttpRequest) -> HttpResponse:
        token = request.GET.get("token", "")
        if not is_valid(self.purpose, token):
            return page(request, "link_invalid", status=400, purpose=self.purpose.name)
        return page(request, self.template, form=self.form_class(initial={"token": token}))

    def post(self, request: HttpRequest) -> HttpResponse:
        form = self.form_class(request.POST)
        allowed = throttle(form, ("login_address", client_address(request)))
        if allowed and form.is_valid():
            try:
                user = type(self).act(**form.cleaned_data)
            except LinkInvalid:
                return page(request, "link_invalid", status=400, purpose=self.purpose.name)
            except AdiuvaError as error:
                add_errors(form, error)
            else:
                return page(request, f"{self.template}_done", account=user)
        return page(request, self.template, form=form, status=400)


class VerifyPage(_LinkPage):
    purpose, template = Purpose.VERIFY, "verify"
    act = staticmethod(recovery.verify_address)


class ConfirmAddressPage(_LinkPage):
    purpose, template = Purpose.NEW_ADDRESS, "confirm_address"
    act = staticmethod(recovery.confirm_address_change)


class ResetPage(_LinkPage):
    purpose, template, form_class = Purpose.RESET, "reset", ResetForm
    act = staticmethod(recovery.reset_password)


@method_decorator(csrf_protect, name="dispatch")
class AskResetPage(View):
    """Asks for a mail with a link to set a new password."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        return page(request, "ask_reset", form=AskResetForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        form = AskResetForm(request.POST)
        if form.is_valid():
            email, here = form.cleaned_data["email"], client_address(request)
            if throttle(form, ("mail", here, User.normalize_username(email)), ("login_address", here)):
                try:
                    recovery.ask_password_reset(email=email)
                    return page(request, "ask_reset_done", email=email)
                except AdiuvaError as error:
                    add_errors(form, error)
        return page(request, "ask_reset", form=form, status=400)
