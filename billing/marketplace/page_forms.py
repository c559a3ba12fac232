"""Forms of the pages on which people publish plugins and report one."""

from __future__ import annotations

from typing import Final

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext, gettext_lazy

from billing.marketplace.models import MIN_PRICE_CENTS, Plugin
from billing.marketplace.user_models import PluginReport

_REASONS: Final = {
    PluginReport.Reason.MALICIOUS: gettext_lazy("It does harm, or does other things than it says"),
    PluginReport.Reason.BROKEN: gettext_lazy("It does not work"),
    PluginReport.Reason.IMITATION: gettext_lazy("It pretends to be somebody else's"),
    PluginReport.Reason.CONTENT: gettext_lazy("Its texts or pictures are offensive or not allowed"),
    PluginReport.Reason.OTHER: gettext_lazy("Something else"),
}
_TEXT_CHARS: Final = 2000
_IDENTIFIER: Final = {"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}


class FocusedForm(forms.Form):
    def focus(self) -> None:
        """Focus the first wrong field of a refused form."""
        wrong = next((name for name in self.fields if name in self.errors), None)
        if wrong is not None:
            self.fields[wrong].widget.attrs["autofocus"] = True


class HandleForm(FocusedForm):
    handle = forms.CharField(
        label=gettext_lazy("Developer's handle"),
        min_length=3,
        max_length=39,
        help_text=gettext_lazy(
            "Small letters, digits and single hyphens. It stays yours and cannot be changed."
        ),
        widget=forms.TextInput(attrs=_IDENTIFIER),
    )
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=100,
        help_text=gettext_lazy("Everybody sees it beside your plugins."),
    )


class NewPluginForm(FocusedForm):
    slug = forms.CharField(
        label=gettext_lazy("Id"),
        min_length=3,
        max_length=50,
        help_text=gettext_lazy(
            "As in the manifest of its packages: small letters, digits and single hyphens."
        ),
        widget=forms.TextInput(attrs=_IDENTIFIER),
    )
    name = forms.CharField(label=gettext_lazy("Name"), max_length=200)
    category = forms.ChoiceField(label=gettext_lazy("Category"), choices=Plugin.Category.choices)
    price = forms.DecimalField(
        label=gettext_lazy("Price in euros"),
        min_value=0,
        max_value=9_999,
        decimal_places=2,
        initial=0,
        help_text=gettext_lazy("0 if it is free of charge; else 2 at least."),
    )

    def clean_price(self) -> int:
        """Return the price in cents."""
        cents = int(self.cleaned_data["price"] * 100)
        if 0 < cents < MIN_PRICE_CENTS:
            raise ValidationError(gettext("0 if it is free of charge; else 2 at least."))
        return cents


class PackageForm(FocusedForm):
    package = forms.FileField(
        label=gettext_lazy("Package (a ZIP file of at most 20 MiB)"),
        widget=forms.FileInput(attrs={"accept": ".zip,application/zip"}),
    )


class GiveForm(FocusedForm):
    handle = forms.CharField(
        label=gettext_lazy("Handle of the other developer"),
        max_length=50,
        widget=forms.TextInput(attrs=_IDENTIFIER),
    )


class ReportForm(FocusedForm):
    reason = forms.ChoiceField(
        label=gettext_lazy("What is wrong"),
        choices=[("", gettext_lazy("Choose")), *((reason.value, said) for reason, said in _REASONS.items())],
    )
    text = forms.CharField(
        label=gettext_lazy("More about it (if you like)"),
        required=False,
        max_length=_TEXT_CHARS,
        widget=forms.Textarea(attrs={"rows": 5}),
    )
