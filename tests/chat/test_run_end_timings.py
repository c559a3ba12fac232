"""A run that ends while a turn of its conversation runs is told once. `bench.run_end_timings` tries a thousand."""

from __future__ import annotations

import random

import pytest
from django.conf import settings

from adiuva import llm
from adiuva.core import db
from tests.chat.run_end_timings import KINDS, Model, Timing, count, try_timings
from tests.factories import Person
from tests.fakes.provider import Provider
from tests.sampling import few


async def test_a_run_that_ends_at_any_moment_of_a_turn_is_told_once(
    provider: Provider, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random()
    provider.default = Model(chance)
    monkeypatch.setattr(settings, "MODEL", {**settings.MODEL, **provider.settings()})
    timings = [await db.run(Timing, person, kind, chance) for kind in few(KINDS, 4)]
    await try_timings(timings, chance, at_once=4)
    await llm.aclose()
    told = await db.run(count, timings)
    assert not told["twice"] and not told["never"] and not told["open"], [
        (one.kind, one.name) for one in timings
    ]
