"""Validators of time zones and locales."""

from __future__ import annotations

import re
import zoneinfo
from functools import cache

from django.core.exceptions import ValidationError
from django.utils.translation import gettext

# Language, then script, region and variants: the syntax of RFC 5646, without its registry.
_LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")


# Files beside the names of zones: the machine's zone, and a placeholder for "not set".
_NO_ZONES = frozenset({"localtime", "Factory"})


@cache
def timezones() -> frozenset[str]:
    """Return the names of the IANA database that users may choose."""
    return frozenset(zoneinfo.available_timezones()) - _NO_ZONES


def validate_timezone(value: str) -> None:
    if value not in timezones():
        raise ValidationError(gettext("This is not a time zone of the IANA database, such as Europe/Rome."))


def validate_locale(value: str) -> None:
    if not _LOCALE.fullmatch(value):
        raise ValidationError(gettext("This is not a language tag, such as en or pt-BR."))
