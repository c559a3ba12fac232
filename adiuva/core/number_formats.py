"""Figures as people read them: amounts of money by the account's locale, sizes and counts in its language."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal

from babel import Locale, UnknownLocaleError
from babel.numbers import format_currency
from babel.units import format_unit
from django.utils.formats import number_format
from django.utils.translation import get_language

_MICRO: Final = 1_000_000
_CENT: Final = 10_000


def money(micro: int, currency: str, locale: str) -> str:
    """Return an amount, given in millionths of a currency, as text. Below a cent it gets as many places as it needs not
    to look free."""
    amount, known = Decimal(micro) / _MICRO, _locale(locale)
    if 0 < abs(micro) < _CENT:
        pattern = known.currency_formats["standard"].pattern.replace("0.00", "0.00####")
        return str(format_currency(amount, currency.upper(), pattern, locale=known, currency_digits=False))
    return str(format_currency(amount, currency.upper(), locale=known))


def count(number: int) -> str:
    """Return a whole number with the language's separators."""
    return str(number_format(number, decimal_pos=0, use_l10n=True, force_grouping=True))


def size(count_of_bytes: int) -> str:
    """Return bytes in the unit that suits, such as 5 GB, in the current language.

    A GB is 10⁹ bytes, as in the plans. Django's own filter divides by 1024, and would show 4.7 GB for 5.
    """
    unit, amount = "byte", Decimal(count_of_bytes)
    for larger in ("kilobyte", "megabyte", "gigabyte", "terabyte"):
        if abs(amount) < 1000:
            break
        unit, amount = larger, amount / 1000
    known = _locale(get_language() or "en")
    length: Literal["long", "short"] = "long" if unit == "byte" else "short"
    return format_unit(amount, f"digital-{unit}", length, format="#,##0.#", locale=known)


@lru_cache(64)
def _locale(tag: str) -> Locale:
    for name in (tag, tag.partition("-")[0], "en"):
        try:
            return Locale.parse(name, sep="-")
        except (ValueError, UnknownLocaleError):
            continue
    raise AssertionError("unreachable: English is there")
