"""Forms of account pages: sign-in, with the throttle of the REST login, and the pages that mailed links open."""

from __future__ import annotations

import math
from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm, UsernameField
from django.core.exceptions import PermissionDenied, ValidationError
from django.utils.translation import gettext, gettext_lazy

from adiuva.accounts import services
from adiuva.accounts.models import User
from adiuva.accounts.throttles import client_address, count_attempts
from adiuva.core.errors import AdiuvaError


def too_many_tries(wait_s: float) -> str:
    text = gettext("Too many tries. The next is possible in {seconds} s.")
    return text.format(seconds=math.ceil(wait_s))


class _ThrottledSignInForm(AuthenticationForm):
    username = UsernameField(
        label=gettext_lazy("E-mail address"), widget=forms.TextInput(attrs={"autofocus": True})
    )

    def clean(self) -> dict[str, Any]:
        assert self.request is not None
        address = client_address(self.request)
        email = User.normalize_username(self.cleaned_data.get("username", ""))
        wait = count_attempts(("login_address", address), ("login", address, email))
        if wait is not None:
            raise ValidationError(too_many_tries(wait), code="throttled")
        return super().clean()


class SignInForm(_ThrottledSignInForm):
    """Sign-in form of pages, the browsable API and the admin. The next page asks for the second factor."""

    error_messages = {"invalid_login": gettext_lazy("The e-mail address or the password is wrong.")}


class NewUserForm(forms.ModelForm):  # type: ignore[type-arg]
    """Form for an account without a password: its owner gets a link to set one."""

    class Meta:
        model = User
        fields = ("email",)

    def save(self, commit: bool = True) -> User:
        user: User = super().save(commit=False)
        user.email = User.normalize_username(user.email)
        user.set_unusable_password()
        if commit:
            user.save()
        return user


class OwnPasswordForm(PasswordChangeForm):
    """Form in which staff change their own password in the admin. It signs them out everywhere, like any user."""

    def save(self, commit: bool = True) -> User:
        user: User = self.user
        try:
            services.set_password(user=user, password=self.cleaned_data["new_password1"])
        except AdiuvaError as error:  # the password was changed, or the account deleted, in another tab
            raise PermissionDenied(error.message) from None
        return user


class LinkForm(forms.Form):
    token = forms.CharField(widget=forms.HiddenInput)


class ResetForm(LinkForm):
    new_password = forms.CharField(
        label=gettext_lazy("New password"),
        strip=False,
        max_length=services.MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "autofocus": True}),
        help_text=gettext_lazy("At least eight characters. A few words are better than a few signs."),
    )


class AskResetForm(forms.Form):
    email = forms.EmailField(
        label=gettext_lazy("E-mail address"),
        widget=forms.EmailInput(attrs={"autocomplete": "email", "autofocus": True}),
    )


class ConfirmationForm(forms.Form):
    """Form with the fields that ask for the password again. They come last."""

    password = forms.CharField(
        label=gettext_lazy("Your password"),
        strip=False,
        max_length=services.MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )


class RemoveFactorsForm(LinkForm, ConfirmationForm):
    field_order = ["token", "password"]


class AddressForm(ConfirmationForm):
    email = forms.EmailField(
        label=gettext_lazy("New address"), widget=forms.EmailInput(attrs={"autocomplete": "email"})
    )
    field_order = ["email", "password"]


class PasswordForm(ConfirmationForm):
    new_password = forms.CharField(
        label=gettext_lazy("New password"),
        strip=False,
        max_length=services.MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text=gettext_lazy("At least eight characters. A few words are better than a few signs."),
    )
    field_order = ["password", "new_password"]


class CodeForm(forms.Form):
    code = forms.CharField(
        label=gettext_lazy("The code that the app shows"),
        max_length=20,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "inputmode": "numeric"}),
    )


class SecondStepForm(forms.Form):
    code = forms.CharField(
        label=gettext_lazy("Code of your app, or a recovery code"),
        max_length=60,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "autofocus": True}),
    )


class PasskeyForm(forms.Form):
    """Form with the field that the browser's script fills in."""

    handle = forms.CharField(max_length=200, widget=forms.HiddenInput)
    credential = forms.JSONField(widget=forms.HiddenInput)

    def clean_credential(self) -> dict[str, Any]:
        found = self.cleaned_data["credential"]
        if not isinstance(found, dict):
            raise ValidationError(gettext("This is not what a browser says."))
        return found


class NewPasskeyForm(PasskeyForm):
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=60,
        help_text=gettext_lazy("So that you know it later: the device, or the password manager."),
    )
