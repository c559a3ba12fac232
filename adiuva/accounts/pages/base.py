"""What the pages for people share. They work without scripts, except for passkeys."""

from __future__ import annotations

import math
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adiuva.accounts.throttles import count_attempt
from adiuva.core.errors import AdiuvaError


def page(request: HttpRequest, name: str, *, status: int = 200, **context: Any) -> HttpResponse:
    """A page that no cache keeps, and whose address is told to nobody."""
    response = render(request, f"accounts/{name}.html", context, status=status)
    response["Cache-Control"] = "no-store"
    # Addresses of mails' links hold tokens. With "no-referrer" browsers send forms as from an unknown origin.
    response["Referrer-Policy"] = "strict-origin"
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
