"""Base of the HTML pages of accounts. They work without scripts, except for passkeys."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from adiuva.accounts.forms import too_many_tries
from adiuva.accounts.throttles import count_attempts
from adiuva.core.errors import AdiuvaError
from adiuva.core.language import said


def page(request: HttpRequest, name: str, *, status: int = 200, **context: Any) -> HttpResponse:
    """Return a page that no cache keeps, and that tells nobody its address."""
    response = render(request, f"accounts/{name}.html", context, status=status)
    response["Cache-Control"] = "no-store"
    # Addresses of mails' links hold tokens. "no-referrer" would make browsers send forms as from an unknown origin.
    response["Referrer-Policy"] = "strict-origin"
    response["X-Robots-Tag"] = "noindex"
    return response


def add_errors(form: forms.Form, error: AdiuvaError) -> None:
    """Show a refusal at the fields that it names, else above the form."""
    for name, problems in (error.fields or {}).items():
        form.add_error(name if name in form.fields else None, [said(problem) for problem in problems])
    if not error.fields:
        words = said(error.message)
        form.add_error(None, f"{words[:1].upper()}{words[1:]}.")


def throttle(form: forms.Form, *counters: tuple[str, ...]) -> bool:
    """Count an attempt; each counter is a scope and a client. Returns False, with an error in the form, if refused."""
    wait = count_attempts(*counters)
    if wait is not None:
        form.add_error(None, too_many_tries(wait))
    return wait is None
