"""Pages on which users see and change how they sign in. Every change asks for the password again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import segno
from django import forms
from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, resolve_url
from django.utils.decorators import method_decorator
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from django.views import View
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters

from adiuva.accounts import mail_link_actions, passkeys, reauthentication, second_factors, services
from adiuva.accounts.forms import (
    AddressForm,
    CodeForm,
    ConfirmationForm,
    NewPasskeyForm,
    PasswordForm,
)
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import Passkey, User
from adiuva.accounts.pages.base import add_errors, page, throttle
from adiuva.accounts.passkeys import Assertion
from adiuva.accounts.throttles import count_attempt
from adiuva.core.errors import AdiuvaError, Invalid
from adiuva.core.language import in_their_language

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise


@method_decorator([in_their_language, csrf_protect, sensitive_post_parameters()], name="dispatch")
class _SignedInPage(LoginRequiredMixin, View):
    http_method_names = ["get", "post"]

    @property
    def me(self) -> User:
        return cast(User, self.request.user)


class SecurityPage(_SignedInPage):
    """Overview of an account's security. Each thing is changed on a page of its own."""

    http_method_names = ["get"]

    def get(self, request: HttpRequest) -> HttpResponse:
        rows = Passkey.objects.filter(user=self.me).order_by("created_at", "id")
        cipher = cipher_for(self.me.pk)
        named = [{"row": row, "name": Passkey.name.unseal_from(cipher, row)} for row in rows]
        return page(
            request,
            "security",
            account=self.me,
            methods=second_factors.methods_of(self.me),
            passkeys=named,
            codes_left=second_factors.recovery_codes_left(self.me),
            said=request.GET.get("done", ""),
        )


class _Change(_SignedInPage):
    """Page of one change, behind the password. Subclasses say which change, and what is shown afterwards."""

    template = "change"
    form_class: type[forms.Form] = ConfirmationForm
    title: StrOrPromise
    text: StrOrPromise = ""
    button: StrOrPromise

    def act(self, data: dict[str, Any]) -> HttpResponse:
        raise NotImplementedError

    def get(self, request: HttpRequest, **_: Any) -> HttpResponse:
        return self.show(self.form_class())

    def post(self, request: HttpRequest, **_: Any) -> HttpResponse:
        form = self.form_class(request.POST)
        if form.is_valid() and throttle(form, ("login", "user", str(self.me.pk))):
            data = dict(form.cleaned_data)
            try:
                if "password" in form.fields:
                    reauthentication.require(user=self.me, password=data.pop("password"))
                return self.act(data)
            except AdiuvaError as error:
                add_errors(form, error)
        return self.show(form)

    def show(self, form: forms.Form, **more: Any) -> HttpResponse:
        context = {"title": self.title, "text": self.text, "button": self.button, **more}
        return page(self.request, self.template, status=400 if form.is_bound else 200, form=form, **context)

    def codes(self, codes: list[str], done: str) -> HttpResponse:
        """Show new recovery codes once; if there are none, go back."""
        return page(self.request, "recovery_codes", codes=codes) if codes else back(done)


def back(done: str) -> HttpResponse:
    response = redirect("account")
    response["Location"] += f"?done={done}"
    return response


class ChangeAddressPage(_Change):
    form_class = AddressForm
    title, button = gettext_lazy("Change your e-mail address"), gettext_lazy("Send the mail")
    text = gettext_lazy("A mail goes to the new address. When you follow its link, the address is changed.")

    def act(self, data: dict[str, Any]) -> HttpResponse:
        if count_attempt("mail", "user", str(self.me.pk)) is not None:
            raise Invalid("too many mails were asked for: try again in an hour")
        mail_link_actions.ask_address_change(user=self.me, **data)
        return back("address")


class ChangePasswordPage(_Change):
    form_class = PasswordForm
    title, button = gettext_lazy("Change your password"), gettext_lazy("Change it")
    text = gettext_lazy("All other devices are signed out.")

    def act(self, data: dict[str, Any]) -> HttpResponse:
        services.check_password_rules(data["new_password"], self.me, field="new_password")
        here = self.request.browser_session  # type: ignore[attr-defined]  # set by middleware
        services.set_password(user=self.me, password=data["new_password"], keep=here)
        update_session_auth_hash(self.request, self.me)
        return back("password")


class AddAppPage(_Change):
    title, button = gettext_lazy("Add an authenticator app"), gettext_lazy("Go on")
    text = gettext_lazy(
        "Such an app shows a new code every 30 seconds. You need one on your phone or computer."
    )

    def act(self, data: dict[str, Any]) -> HttpResponse:
        second_factors.start_totp(user=self.me)
        return redirect("confirm-app")


class ConfirmAppPage(_Change):
    template, form_class = "confirm_app", CodeForm
    title, button = gettext_lazy("Scan this with your app"), gettext_lazy("Confirm")

    def act(self, data: dict[str, Any]) -> HttpResponse:
        return self.codes(second_factors.confirm_totp(user=self.me, **data), "app")

    def show(self, form: forms.Form, **more: Any) -> HttpResponse:
        secret = second_factors.pending_totp(self.me)
        if secret is None:
            return redirect("account")
        image = segno.make(second_factors.address_of(self.me, secret)).svg_inline(omitsize=True, border=2)
        spaced = " ".join(secret[at : at + 4] for at in range(0, len(secret), 4))
        # segno draws the picture as paths from the address alone.
        return super().show(form, image=mark_safe(image), secret=spaced)  # noqa: S308


class RemoveAppPage(_Change):
    title, button = gettext_lazy("Remove the authenticator app"), gettext_lazy("Remove it")

    def act(self, data: dict[str, Any]) -> HttpResponse:
        second_factors.remove_totp(user=self.me)
        return back("removed")


class AddPasskeyPage(_Change):
    title, button = gettext_lazy("Add a passkey"), gettext_lazy("Go on")
    text = gettext_lazy(
        "A passkey is kept by your device or its password manager, and opened with a finger, your face or a PIN."
    )

    def act(self, data: dict[str, Any]) -> HttpResponse:
        handle, options = passkeys.challenge_to_register(self.me)
        form = NewPasskeyForm(initial={"handle": handle, "name": "Passkey"})
        where = resolve_url("make-passkey")
        return page(self.request, "make_passkey", passkey=form, options=json.dumps(options), make_url=where)


class MakePasskeyPage(_Change):
    """Page that takes the passkey that the browser made. It answers a challenge given out behind the password."""

    form_class = NewPasskeyForm
    title, button = gettext_lazy("Add a passkey"), gettext_lazy("Go on")
    text = gettext_lazy("That did not work. Go back and try again.")

    def get(self, request: HttpRequest, **_: Any) -> HttpResponse:
        return redirect("add-passkey")

    def act(self, data: dict[str, Any]) -> HttpResponse:
        name = data.pop("name")
        _, codes = second_factors.add_passkey(user=self.me, attestation=Assertion(**data), name=name)
        return self.codes(codes, "passkey")

    def show(self, form: forms.Form, **more: Any) -> HttpResponse:
        problem = " ".join(map(str, form.non_field_errors())) or str(self.text)
        return page(self.request, "problem", status=400, title=self.title, problem=problem)


class RemovePasskeyPage(_Change):
    title, button = gettext_lazy("Remove this passkey"), gettext_lazy("Remove it")
    text = gettext_lazy(
        "Remove it also where it is kept: a passkey that is offered there would be refused here."
    )

    def act(self, data: dict[str, Any]) -> HttpResponse:
        second_factors.remove_passkey(user=self.me, passkey_id=cast(UUID, self.kwargs["id"]))
        return back("removed")


class NewCodesPage(_Change):
    title, button = gettext_lazy("Make new recovery codes"), gettext_lazy("Make them")
    text = gettext_lazy("The codes that you have now stop working.")

    def act(self, data: dict[str, Any]) -> HttpResponse:
        return self.codes(second_factors.new_recovery_codes(user=self.me), "codes")
