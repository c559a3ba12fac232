"""The panels of the staff pages, for the admin's templates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import template

from adiuva.accounts.models import User
from adiuva.staff import account_page, start_page
from adiuva.staff.panels import Panel

register = template.Library()


@register.simple_tag
def start_panels(viewer: Any) -> Iterable[Panel]:
    return list(start_page.panels(viewer))


@register.simple_tag
def account_panels(account: User, viewer: Any) -> Iterable[Panel]:
    return list(account_page.panels(account, viewer))
