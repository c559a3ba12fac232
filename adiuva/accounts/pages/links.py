"""Pages at the addresses in mails, and the one that asks for such a mail.

A page that a mailed link opens only shows a form, so that programs that open links before their owner does not use them
up. The form sends the link's token in its body, to keep it out of further addresses.
"""

from __future__ import annotations

from collections.abc import Callable

from django import forms
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters

from adiuva.accounts import mail_link_actions
from adiuva.accounts.forms import AskResetForm, LinkForm, RemoveFactorsForm, ResetForm
from adiuva.accounts.mail_links import LinkInvalid, Purpose, is_valid
from adiuva.accounts.models import User
from adiuva.accounts.pages.base import add_errors, page, throttle
from adiuva.accounts.throttles import client_address
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import in_their_language


@method_decorator([in_their_language, csrf_protect, sensitive_post_parameters()], name="dispatch")
class _LinkPage(View):
    """Page that a link in a mail opens. Subclasses say what it is for."""

    http_method_names = ["get", "post"]
    purpose: Purpose
    template: str
    form_class: type[forms.Form] = LinkForm
    act: Callable[..., User]

    def counters(self, request: HttpRequest) -> list[tuple[str, ...]]:
        """Return what else counts as an attempt: a scope and a client."""
        return []

    def get(self, request: HttpRequest) -> HttpResponse:
        token = request.GET.get("token", "")
        if not is_valid(self.purpose, token):
            return page(request, "link_invalid", status=400, purpose=self.purpose.name)
        return page(request, self.template, form=self.form_class(initial={"token": token}))

    def post(self, request: HttpRequest) -> HttpResponse:
        form = self.form_class(request.POST)
        allowed = throttle(form, ("login_address", client_address(request)), *self.counters(request))
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
    act = staticmethod(mail_link_actions.verify_address)


class ConfirmAddressPage(_LinkPage):
    purpose, template = Purpose.NEW_ADDRESS, "confirm_address"
    act = staticmethod(mail_link_actions.confirm_address_change)


class ResetPage(_LinkPage):
    purpose, template, form_class = Purpose.RESET, "reset", ResetForm
    act = staticmethod(mail_link_actions.reset_password)


class RemoveFactorsPage(_LinkPage):
    purpose, template, form_class = Purpose.FACTORS, "remove_factors", RemoveFactorsForm
    act = staticmethod(mail_link_actions.remove_factors)

    def counters(self, request: HttpRequest) -> list[tuple[str, ...]]:
        return [("login", "link", request.POST.get("token", ""))]  # counts guesses of the password


@method_decorator([in_their_language, csrf_protect], name="dispatch")
class AskResetPage(View):
    """Page that asks for a mail with a link to set a new password."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        return page(request, "ask_reset", form=AskResetForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        form = AskResetForm(request.POST)
        if form.is_valid():
            email, here = form.cleaned_data["email"], client_address(request)
            if throttle(form, ("mail", here, User.normalize_username(email)), ("login_address", here)):
                try:
                    mail_link_actions.ask_password_reset(email=email)
                    return page(request, "ask_reset_done", email=email)
                except AdiuvaError as error:
                    add_errors(form, error)
        return page(request, "ask_reset", form=form, status=400)
