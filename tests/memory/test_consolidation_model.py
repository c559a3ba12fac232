"""Whatever is said, forgotten and found in whatever order, against a simple model of what must then be known.

The scripted model is the worst there is for keeping secrets: it writes all that it reads into every summary and
pattern. So a text that no source says any more must be in no row at all, however it was retold.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from typing import Any

from django.conf import LazySettings
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from memory import forgetting
from memory.models import Embedding, Entry, Memory, SourceKind, Tier
from tests.factories import somebody
from tests.fakes.provider import Provider, Request
from tests.memory.factories import (
    asked_for,
    condensed,
    days_pass,
    episode,
    labelled,
    place,
    says,
    seen,
    snapshot,
    visit,
)

PLACES = [f"place {number}" for number in range(4)]
TEXTS = [f"word{number}" for number in range(6)]
TODAY = dt.datetime.now(dt.UTC)


class Remembering(RuleBasedStateMachine):
    provider: Provider

    @initialize()
    def begin(self) -> None:
        Memory.objects.update(consolidate_at=None, consolidated_at=None, lease_until=None)
        self.user = somebody().id
        self.said: dict[tuple[Tier, str], set[str]] = defaultdict(set)  # by text, the places that say it
        self.claims: list[Any] = []
        self.provider.default = self.answer

    def answer(self, request: Request) -> Any:
        if asked_for(request) == "condensed":
            return condensed(request)
        evidence = labelled(request, "entries")

        def claim(name: str, what: str, labels: list[str]) -> dict[str, Any]:
            return {name: what, "evidence": labels}

        new, confirmed, contradicted = self.claims
        return {
            "new": [
                claim("content", " & ".join(sorted(evidence.get(it, "") for it in labels)), labels)
                for labels in new
            ],
            "confirmed": [claim("pattern", pattern, labels) for pattern, labels in confirmed],
            "contradicted": [claim("pattern", pattern, labels) for pattern, labels in contradicted],
        }

    @rule(text=st.sampled_from(TEXTS), where=st.sampled_from(PLACES), seq=st.integers(1, 2))
    def say(self, text: str, where: str, seq: int) -> None:
        seen(self.user, text, where, seq)
        self.said[Tier.ASSOCIATIVE, text].add(where)

    @rule(where=st.lists(st.sampled_from(PLACES), min_size=3, max_size=4), weeks=st.integers(3, 4))
    def have_a_week(self, where: list[str], weeks: int) -> None:
        monday = TODAY - dt.timedelta(days=TODAY.weekday() + 7 * weeks)
        for day, each in enumerate(where):
            text = f"met-{weeks}-{day}-{each.replace(' ', '')}."
            episode(self.user, text, each, monday + dt.timedelta(days=day))
            self.said[Tier.EPISODIC, text].add(each)

    @rule(days=st.integers(1, 10))
    def wait(self, days: int) -> None:
        days_pass(self.user, days)

    labels = st.lists(st.sampled_from(["e1", "e2", "e3", "e4", "e9", "p1"]), max_size=4)
    claimed = st.lists(st.tuples(st.sampled_from(["p1", "p2", "p7"]), labels), max_size=2)

    @rule(claims=st.tuples(st.lists(labels, max_size=2), claimed, claimed))
    def consolidate(self, claims: Any) -> None:
        if not Memory.objects.filter(pk=self.user).exists():
            return
        self.claims = list(claims)
        visit(self.user)
        once = snapshot(self.user)
        visit(self.user)
        assert snapshot(self.user) == once

    @rule(where=st.sampled_from(PLACES))
    def forget(self, where: str) -> None:
        forgetting.forget_source(user_id=self.user, kind=SourceKind.CONVERSATION, source_id=place(where))
        for places in self.said.values():
            places.discard(where)

    @invariant()
    def all_is_known_and_nothing_else(self) -> None:
        rows = [(entry, says(entry)) for entry in Entry.objects.of(self.user).prefetch_related("sources")]
        holding = [(entry, text) for entry, text in rows if entry.valid_to is None]
        for entry, _ in holding:
            assert entry.sources.all(), "nothing is known from nowhere"
            assert entry.confidence is None or 0 < entry.confidence < 1
        for (tier, text), places in self.said.items():
            if not places:
                assert not [said for _, said in rows if text in said], "what is forgotten is told nowhere"
                continue
            told = [entry for entry, said in holding if entry.tier == tier and text in said]
            assert len(told) == 1 or tier == Tier.EPISODIC, (
                "only what was condensed may be said anew beside it"
            )
            sources = {it.source_id for entry in told for it in entry.sources.all()}
            assert sources >= {place(where) for where in places}, "and nothing else is lost"
        forgotten = {place(where) for where in PLACES} - {
            place(where) for places in self.said.values() for where in places
        }
        assert not [entry for entry, _ in rows for it in entry.sources.all() if it.source_id in forgotten]
        ended = {entry.pk for entry, _ in rows if entry.valid_to is not None}
        assert not Embedding.objects.filter(pk__in=ended).exists()


def test_consolidation_keeps_its_promises_in_any_order(
    committed_db: str, provider: Provider, settings: LazySettings
) -> None:
    settings.MODEL = provider.settings()
    Remembering.provider = provider
    run_state_machine_as_test(
        Remembering,
        settings=bounds(max_examples=10, stateful_step_count=10, deadline=None, database=None),
    )
    Memory.objects.update(consolidate_at=None, consolidated_at=None, lease_until=None)
