"""Prices of a model's tokens: from ADIUVA_MODEL_PRICE, or else from LiteLLM's list.

All sums are whole numbers: a price is billionths of a micro-unit of the currency (1e-12 of it) a token, and a call
costs whole micro-units, rounded up, so that many small calls never come to nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Final

from django.conf import settings

from adiuva.llm.litellm_models import listed_entry
from adiuva.llm.types import Usage

_PICO: Final = 10**12
_PICO_A_MICRO: Final = 10**6
# A price for a million tokens, divided by this, is the price of one token.
_MILLION: Final = 10**6
_ABOVE: Final = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one token each: of the input, of its cached part, of its part written to the cache, of output."""

    input: int
    output: int
    cached: int
    written: int

    def cost_micro(self, usage: Usage) -> int:
        cached = min(usage.cached_tokens, usage.input_tokens)
        written = min(usage.written_tokens, usage.input_tokens - cached)
        pico = (
            (usage.input_tokens - cached - written) * self.input
            + cached * self.cached
            + written * self.written
            + usage.output_tokens * self.output
        )
        return -(-pico // _PICO_A_MICRO)


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a model. `above`: rates for a whole call with an input of more tokens than a number, largest first."""

    rates: Rates
    above: tuple[tuple[int, Rates], ...] = ()

    def cost_micro(self, usage: Usage) -> int:
        """Return what a call costs, in micro-units of the currency."""
        return self._rates_for(usage.input_tokens).cost_micro(usage)

    def most_micro(self, input_tokens: int, output_tokens: int) -> int:
        """Return the most that a call may cost: no input is cached, and all of it may be written to the cache."""
        rates = self._rates_for(input_tokens)
        pico = input_tokens * max(rates.input, rates.written) + output_tokens * rates.output
        return -(-pico // _PICO_A_MICRO)

    def _rates_for(self, input_tokens: int) -> Rates:
        return next((rates for limit, rates in self.above if input_tokens > limit), self.rates)


async def find_price(model: str, *, is_chat: bool = True) -> Price | None:
    """Return the price of a model by its configured name; None if unknown. The first time it reads a file, in a
    thread."""
    key = (model, is_chat, str(settings.MODEL_PRICE), str(settings.BUDGET_RATE))
    if key in _found:
        return _found[key]
    return await asyncio.to_thread(price_of, model, is_chat=is_chat)


def price_of(model: str, *, is_chat: bool = True) -> Price | None:
    """Return the price as `find_price` does, blocking. Call it where nobody waits for the event loop."""
    key = (model, is_chat, str(settings.MODEL_PRICE), str(settings.BUDGET_RATE))
    if key not in _found:
        configured = configured_prices(settings.MODEL_PRICE)
        _found[key] = (
            configured.get(model)
            or (configured.get("") if is_chat else None)
            or _listed_price(model, str(settings.BUDGET_RATE))
        )
    return _found[key]


_found: dict[tuple[str, bool, str, str], Price | None] = {}


@cache
def configured_prices(text: str) -> Mapping[str, Price]:
    """Return the prices that a setting gives: `[model=]in,out[,cached]` a million tokens, separated by `;`. "" stands
    for any chat model that is not named. Raises ValueError."""
    found: dict[str, Price] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        model, named, numbers = entry.rpartition("=")
        try:
            given = [Decimal(number.strip()) for number in numbers.split(",")]
        except InvalidOperation:
            raise ValueError(f"has a price that is no number: {entry}") from None
        if len(given) not in (2, 3) or any(not each.is_finite() or each < 0 for each in given):
            raise ValueError(f"must be input,output[,cached] a million tokens: {entry}")
        if named and not model.strip():
            raise ValueError(f"names no model: {entry}")
        rates = [int(each * _PICO / _MILLION) for each in given]
        found[model.strip()] = Price(
            Rates(rates[0], rates[1], rates[-1] if len(rates) == 3 else rates[0], rates[0])
        )
    return found


def _listed_price(model: str, currency_rate: str) -> Price | None:
    entry = listed_entry(model)

    def rate(name: str, otherwise: int | None = None) -> int | None:
        value = entry.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return otherwise
        return int(Decimal(str(value)) * Decimal(currency_rate) * _PICO)

    def rates(suffix: str, below: Rates | None = None) -> Rates | None:
        given = rate(f"input_cost_per_token{suffix}", below.input if below else None)
        if given is None:
            return None
        return Rates(
            given,
            rate(f"output_cost_per_token{suffix}", below.output if below else 0) or 0,
            rate(f"cache_read_input_token_cost{suffix}", below.cached if below else given) or 0,
            rate(f"cache_creation_input_token_cost{suffix}", below.written if below else given) or 0,
        )

    base = rates("")
    if base is None:
        return None
    limits = sorted({int(found[1]) for name in entry if (found := _ABOVE.fullmatch(name))}, reverse=True)
    above: list[tuple[int, Any]] = [
        (1_000 * limit, rates(f"_above_{limit}k_tokens", base)) for limit in limits
    ]
    return Price(base, tuple(above))
