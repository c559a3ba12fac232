"""Operations on entries of the memory: kept once, changed with history, forgotten whole."""

from __future__ import annotations

import uuid

import pytest

from adiuva.accounts.keys import cipher_for
from adiuva.core.errors import AdiuvaError
from memory import entries, entry_content, exchanges, forgetting
from memory.entries import BY_HAND, EntryDetails, RememberOutcome, SourceRef
from memory.models import Embedding, Entry, EntrySource, Exchange, SourceKind, Tier
from tests.factories import somebody

pytestmark = pytest.mark.django_db(transaction=False)


@pytest.fixture
def user() -> uuid.UUID:
    return somebody().id


def said(place: uuid.UUID, seq: int = 1) -> SourceRef:
    return SourceRef(SourceKind.CONVERSATION, place, seq)


def core(user: uuid.UUID, key: str, content: str, origin: SourceRef = BY_HAND) -> entries.Remembered:
    return entries.remember(user_id=user, tier=Tier.CORE, key=key, content=content, source=origin)


def seen(user: uuid.UUID, content: str, origin: SourceRef = BY_HAND, **more: object) -> entries.Remembered:
    return entries.remember(
        user_id=user,
        tier=Tier.ASSOCIATIVE,
        content=content,
        source=origin,
        details=EntryDetails(**more),  # type: ignore[arg-type]
    )


def says(entry: Entry) -> str:
    return entry_content.unseal_entry(entry, cipher_for(entry.user_id)).content


def test_a_core_key_has_one_value_and_a_history(user: uuid.UUID) -> None:
    first = core(user, "Favourite drink", "coffee")
    assert core(user, "favourite  DRINK", "Coffee").outcome is RememberOutcome.KNOWN
    changed = core(user, "favourite drink", "tea")
    assert changed.outcome is RememberOutcome.CHANGED
    assert changed.entry.pk == first.entry.pk
    core(user, "favourite drink", "water")
    (now,) = Entry.objects.of(user).current()
    assert says(now) == "water"
    past = list(entries.history_of(now))
    assert [says(entry) for entry in past] == ["tea", "coffee"]
    assert all(entry.valid_to is not None for entry in past)
    assert past[1].valid_to == past[0].valid_from
    assert Embedding.objects.filter(user_id=user).count() == 1


def test_a_former_value_can_become_current_again(user: uuid.UUID) -> None:
    for value in ("coffee", "tea", "coffee"):
        core(user, "drink", value)
    (now,) = Entry.objects.of(user).current()
    assert says(now) == "coffee"
    assert entries.history_of(now).count() == 2


def test_nothing_is_remembered_twice(user: uuid.UUID) -> None:
    here, there = uuid.uuid4(), uuid.uuid4()
    kept = seen(user, "Anna moves to Turin in March.", said(here))
    again = seen(user, "anna  moves to Turin in march.", said(there))
    assert (again.outcome, again.entry.pk) == (RememberOutcome.KNOWN, kept.entry.pk)
    assert seen(user, "Anna moves to Turin in March.", said(here)).outcome is RememberOutcome.KNOWN
    assert {source.source_id for source in kept.entry.sources.all()} == {here, there}


def test_entries_with_only_one_source_are_forgotten_with_it(user: uuid.UUID) -> None:
    here, there = uuid.uuid4(), uuid.uuid4()
    seen(user, "only here", said(here))
    both = seen(user, "in both places", said(here)).entry
    seen(user, "in both places", said(there, 4))
    made = seen(user, "made of both", said(here), more_sources=[said(there)], derived=True)
    gone = forgetting.forget_source(user_id=user, kind=SourceKind.CONVERSATION, source_id=here)
    assert gone == 2
    assert [entry.pk for entry in Entry.objects.of(user)] == [both.pk]
    assert not Embedding.objects.filter(pk=made.entry.pk).exists()
    assert list(EntrySource.objects.filter(entry__user_id=user).values_list("source_id", "seq")) == [
        (there, 4)
    ]


def test_a_text_goes_with_the_only_place_that_said_it_wherever_it_was_ended(user: uuid.UUID) -> None:
    here, there, elsewhere = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    said_once = seen(user, "Anna moves to Turin.", said(here)).entry
    said_twice = seen(user, "Bob likes sailing.", said(here)).entry
    seen(user, "Bob likes sailing.", said(elsewhere))
    entries.end_validity(user_id=user, ids=[said_once.pk, said_twice.pk], source=said(there))
    assert forgetting.forget_source(user_id=user, kind=SourceKind.CONVERSATION, source_id=here) == 1
    assert Entry.objects.of(user).get().pk == said_twice.pk
    assert forgetting.forget_source(user_id=user, kind=SourceKind.CONVERSATION, source_id=there) == 0
    assert said_twice.sources.get().source_id == elsewhere


def test_forgetting_a_source_keeps_former_values_from_other_sources_as_history(user: uuid.UUID) -> None:
    here, there = uuid.uuid4(), uuid.uuid4()
    core(user, "drink", "coffee", said(here))
    core(user, "drink", "tea", said(there))
    assert forgetting.forget_source(user_id=user, kind=SourceKind.CONVERSATION, source_id=there) == 1
    (left,) = Entry.objects.of(user)
    assert says(left) == "coffee"
    assert left.valid_to is not None


def test_forgetting_an_entry_deletes_its_history(user: uuid.UUID) -> None:
    core(user, "drink", "coffee")
    entry = core(user, "drink", "tea").entry
    assert forgetting.forget(user_id=user, ids=[entry.pk]) == 1
    assert not Entry.objects.of(user).exists()
    assert not Embedding.objects.filter(user_id=user).exists()


def test_forgetting_an_entry_deletes_exchanges_and_patterns_of_its_sources(user: uuid.UUID) -> None:
    here = uuid.uuid4()
    for seq in (1, 3):
        exchanges.store(
            user_id=user, cipher=cipher_for(user), kind=SourceKind.CONVERSATION, source_id=here, seq=seq,
            said=["My PIN is 1234"], answer="Noted.",
        )  # fmt: skip
    entry = core(user, "PIN", "1234", said(here, 1)).entry
    core(user, "PIN", "4321", said(uuid.uuid4()))
    patterns = [
        entries.remember(
            user_id=user, tier=Tier.PROACTIVE, content=f"Seen in {seq}", source=said(here, seq),
            details=EntryDetails(more_sources=[said(uuid.uuid4())], confidence=0.5, derived=True),
        ).entry
        for seq in (1, 3)
    ]  # fmt: skip
    assert forgetting.forget(user_id=user, ids=[entry.pk]) == 1
    assert [row.seq for row in Exchange.objects.filter(user_id=user)] == [3]
    assert list(Entry.objects.of(user)) == patterns[1:]
    other = seen(user, "said with it", said(here, 3)).entry
    forgetting.forget(user_id=user, ids=[patterns[1].pk])  # it was said nowhere: what it was found in stays
    assert list(Entry.objects.of(user)) == [other]
    assert Exchange.objects.filter(user_id=user).exists()


def test_a_pattern_that_the_user_also_states_is_no_longer_derived(user: uuid.UUID) -> None:
    here = uuid.uuid4()
    pattern = {"user_id": user, "tier": Tier.PROACTIVE, "content": "Plans on Mondays"}
    found = entries.remember(**pattern, source=said(here), details=EntryDetails(confidence=0.4, derived=True))  # type: ignore[arg-type]
    entries.remember(**pattern, source=BY_HAND, details=EntryDetails(confidence=0.9))  # type: ignore[arg-type]
    forgetting.forget_source(user_id=user, kind=SourceKind.CONVERSATION, source_id=here)
    (left,) = Entry.objects.of(user)
    assert (left.pk, left.derived, left.confidence) == (found.entry.pk, False, 0.9)


def test_entries_of_another_user_cannot_be_reached(user: uuid.UUID) -> None:
    other = somebody().id
    entry = core(user, "drink", "coffee").entry
    assert forgetting.forget(user_id=other, ids=[entry.pk]) == 0
    assert entries.end_validity(user_id=other, ids=[entry.pk]) == 0
    with pytest.raises(entries.EntryNotFound):
        entries.get_entry(other, entry.pk)
    assert core(other, "drink", "coffee").outcome is RememberOutcome.NEW


def test_a_corrected_entry_keeps_its_id(user: uuid.UUID) -> None:
    entry = seen(user, "Anna moves to Turin", said(uuid.uuid4())).entry
    corrected = entries.correct(entry=entry, content="Anna moves to Milan", source=BY_HAND)
    assert corrected.pk == entry.pk
    assert says(corrected) == "Anna moves to Milan"
    (past,) = entries.history_of(corrected)
    assert [source.kind for source in past.sources.all()] == [SourceKind.CONVERSATION]
    assert [source.kind for source in corrected.sources.all()] == [SourceKind.USER]
    with pytest.raises(entries.EntryIsHistory):
        entries.correct(entry=past, content="Anna moves to Rome", source=BY_HAND)


def test_a_correction_to_an_existing_content_or_key_is_refused(user: uuid.UUID) -> None:
    seen(user, "Anna moves to Milan")
    entry = seen(user, "Anna moves to Turin").entry
    with pytest.raises(entries.DuplicateEntry):
        entries.correct(entry=entry, content="Anna moves to Milan", source=BY_HAND)
    core(user, "drink", "tea")
    food = core(user, "food", "pasta").entry
    with pytest.raises(entries.DuplicateEntry):
        entries.correct(entry=food, key="Drink", source=BY_HAND)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tier": Tier.CORE, "content": "x"}, "key"),
        ({"tier": Tier.CORE, "content": "x", "key": "k" * 101}, "key"),
        ({"tier": Tier.CORE, "content": " ", "key": "k"}, "content"),
        ({"tier": Tier.ASSOCIATIVE, "content": "x" * 4001}, "content"),
        ({"tier": Tier.ASSOCIATIVE, "content": "a\0b"}, "content"),
        ({"tier": Tier.EPISODIC, "content": "x", "key": "k"}, "key"),
    ],
)
def test_an_invalid_entry_is_refused_with_the_name_of_its_field(
    user: uuid.UUID, given: dict, field: str
) -> None:
    with pytest.raises(AdiuvaError) as refused:
        entries.remember(user_id=user, source=BY_HAND, **given)
    assert list(refused.value.fields or {}) == [field]


def test_ended_entries_are_history_and_can_be_remembered_again(user: uuid.UUID) -> None:
    entry = seen(user, "Anna lives in Turin").entry
    assert entries.end_validity(user_id=user, ids=[entry.pk]) == 1
    assert entries.end_validity(user_id=user, ids=[entry.pk]) == 0
    assert seen(user, "Anna lives in Turin").outcome is RememberOutcome.NEW
