"""Forms of pages: signing in, with the throttle of the REST login, and what links of mails open."""

from __future__ import annotations

import math
from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm
from django.core.exceptions import ValidationError

from adiuva.accounts import services
from adiuva.accounts.models import User
from adiuva.accounts.throttles import client_address, count_attempt


class _ThrottledSignInForm(AuthenticationForm):
    def clean(self) -> dict[str, Any]:
        assert self.request is not None
        address = client_address(self.request)
        email = User.normalize_username(self.cleaned_data.get("username", ""))
        waits = [count_attempt("login_address", address), count_attempt("login", address, email)]
        if any(waits):
            seconds = math.ceil(max(wait or 0 for wait in waits))
            raise ValidationError(f"Too many tries. The next is possible in {seconds} s.", code="throttled")
        return super().clean()


class SignInForm(_ThrottledSignInForm):
    """For pages, the browsable API and the admin. The second factor is asked for on the next page."""

    error_messages = {"invalid_login": "The e-mail address or the password is wrong."}


class NewUserForm(forms.ModelForm):  # type: ignore[type-arg]
    """An account without a password: its owner gets a link to set one."""

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
    """Staff change their own password in the admin, which signs them out everywhere, like any user."""

    def save(self, commit: bool = True) -> User:
        user: User = self.user
        services.set_password(user=user, password=self.cleaned_data["new_password1"])
        return user


class LinkForm(forms.Form):
    token = forms.CharField(widget=forms.HiddenInput)


class ResetForm(LinkForm):
    new_password = forms.CharField(
        strip=False,
        max_length=services.MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "autofocus": True}),
        help_text="At least eight characters. A few words are better than a few signs.",
    )


class AskResetForm(forms.Form):
    email = forms.EmailField(
        label="E-mail address", widget=forms.EmailInput(attrs={"autocomplete": "email", "autofocus": True})
    )


class ConfirmationForm(forms.Form):
    """What asks for the password again. It comes last."""

    password = forms.CharField(
        label="Your password",
        strip=False,
        max_length=services.MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )


class RemoveFactorsForm(LinkForm, ConfirmationForm):
    field_order = ["token", "password"]


class AddressForm(ConfirmationForm):
    email = forms.EmailField(label="New address", widget=forms.EmailInput(attrs={"autocomplete": "email"}))
    field_order = ["email", "password"]


class PasswordForm(ConfirmationForm):
    new_password = forms.CharField(
        strip=False,
        max_length=services.MAX_PASSWORD_CHARS,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="At least eight characters. A few words are better than a few signs.",
    )
    field_order = ["password", "new_password"]


class CodeForm(forms.Form):
    code = forms.CharField(
        label="The code that the app shows",
        max_length=20,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "inputmode": "numeric"}),
    )


class SecondStepForm(forms.Form):
    code = forms.CharField(
        label="Code of your app, or a recovery code",
        max_length=60,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "autofocus": True}),
    )


class PasskeyForm(forms.Form):
    """What the browser's script fills in."""

    handle = forms.CharField(max_length=200, widget=forms.HiddenInput)
    credential = forms.JSONField(widget=forms.HiddenInput)

    def clean_credential(self) -> dict[str, Any]:
        found = self.cleaned_data["credential"]
        if not isinstance(found, dict):
            raise ValidationError("This is not what a browser says.")
        return found


class NewPasskeyForm(PasskeyForm):
    name = forms.CharField(
        max_length=60, help_text="So that you know it later: the device, or the password manager."
    )
