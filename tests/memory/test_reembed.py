"""`manage.py reembed`: after a change of the embedding model, all that holds gets a vector of the new one."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command

from adiuva.llm import transport
from memory import entries, entry_content
from memory.entries import BY_HAND
from memory.models import Embedding, Entry, Memory, Receipt, Tier
from tests.factories import somebody
from tests.fakes.provider import Provider
from tests.memory.factories import says, seen

NEW = "openai/new-vectors"


@pytest.fixture(autouse=True)
def model(
    committed_db: str, provider: Provider, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Provider]:
    """The lexical model made the vectors until now. Other tests' entries are gone."""
    Entry.objects.all().delete()
    Embedding.objects.all().delete()
    monkeypatch.setattr(transport, "FIRST_BACKOFF_S", 0.0)
    yield provider
    monkeypatch.undo()


@pytest.fixture
def users() -> list[uuid.UUID]:
    """Three, with five entries each of which one is core, and a piece of history, which has no vector."""
    found = [somebody().id for _ in range(3)]
    for user in found:
        entries.remember(user_id=user, tier=Tier.CORE, key="drink", content="coffee", source=BY_HAND)
        entries.remember(user_id=user, tier=Tier.CORE, key="drink", content="tea", source=BY_HAND)
        for number in range(5):
            seen(user, f"secret {number}", "here")
        ended = Entry.objects.of(user).current().filter(tier=Tier.ASSOCIATIVE).first()
        assert ended
        entries.end_validity(user_id=user, ids=[ended.pk])
    return found


def reembed(*options: str) -> str:
    out = io.StringIO()
    call_command("reembed", *options, stdout=out)
    return out.getvalue()


def models(*users: uuid.UUID) -> set[tuple[str, bool]]:
    """Of the vectors: the model, and whether what they are of holds."""
    rows = Embedding.objects.filter(user_id__in=users)
    return {(model, over is None) for model, over in rows.values_list("embedding_model", "entry__valid_to")}


def use_new(provider: Provider, settings: LazySettings) -> None:
    settings.EMBEDDING_MODEL = provider.settings("new-vectors")


def test_every_current_entry_gets_a_vector_of_the_new_model(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings
) -> None:
    assert models(*users) == {("lexical", True)}
    use_new(provider, settings)
    said = reembed("--batch", "4")
    assert models(*users) == {(NEW, True)}
    for row in Embedding.objects.filter(user_id__in=users).select_related("entry"):
        text = entry_content.unseal_entry(row.entry, entries.cipher_for(row.user_id)).searchable_text
        assert row.vector == pytest.approx(provider.vector(text))
    assert Embedding.objects.count() == 15
    assert max(len(call.body["input"]) for call in provider.calls) == 4
    assert "15 entries of all users have no vector" in said
    assert "15 entries embedded, 0 left" in said
    assert "secret" not in said and "tea" not in said
    asked = len(provider.calls)
    reembed()
    assert len(provider.calls) == asked
    assert set(Receipt.objects.filter(user_id__in=users).values_list("purpose", "model")) == {
        (Receipt.Purpose.EMBED, NEW)
    }


def test_only_the_named_user_is_embedded(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings
) -> None:
    use_new(provider, settings)
    reembed("--user", str(users[1]))
    assert models(users[1]) == {(NEW, True)}
    assert models(users[0], users[2]) == {("lexical", True)}


def test_an_interrupted_reembed_continues(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_new(provider, settings)
    vector, given = provider.vector, 0

    def fails_after_seven(text: str) -> list[float]:
        nonlocal given
        given += 1
        if given > 7:
            raise RuntimeError
        return vector(text)

    with monkeypatch.context() as patched:
        patched.setattr(provider, "vector", fails_after_seven)
        with pytest.raises(CommandError, match=r"failed \(model_unavailable\).* 10 are left") as failed:
            reembed("--batch", "3")
    assert failed.value.returncode != 0
    assert Embedding.objects.filter(embedding_model=NEW).count() == 5
    # Meanwhile both spaces are there, and each row says which one it is in.
    assert {name for name, _ in models(*users)} == {"lexical", NEW}
    texts = sum(len(call.body["input"]) for call in provider.calls)
    reembed("--batch", "3")
    assert models(*users) == {(NEW, True)}
    assert sum(len(call.body["input"]) for call in provider.calls) == texts + 10


def test_withheld_entries_get_no_vector(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings
) -> None:
    use_new(provider, settings)
    Memory.objects.filter(pk=users[0]).update(policy={"core": ["elsewhere"]})
    said = reembed()
    assert "14 entries of all users" in said
    assert "1 more get none" in said
    kept = Embedding.objects.get(user_id=users[0], entry__tier=Tier.CORE)
    assert (says(kept.entry), kept.embedding_model) == ("tea", "lexical")


def test_a_broken_entry_of_one_user_does_not_stop_the_others(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings
) -> None:
    use_new(provider, settings)
    Entry.objects.of(users[0]).update(sealed=b"broken")
    with pytest.raises(CommandError, match=f"Entries of 1 users could not be unsealed: {users[0]}"):
        reembed()
    assert models(*users[1:]) == {(NEW, True)}


def test_a_broken_entry_does_not_stop_the_others_of_its_user(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings
) -> None:
    use_new(provider, settings)
    ids = list(Entry.objects.of(users[0]).current().order_by("created_at").values_list("pk", flat=True))
    Entry.objects.filter(pk__in=ids[:3]).update(sealed=b"broken")
    with pytest.raises(CommandError, match=f"Entries of 1 users could not be unsealed: {users[0]}"):
        reembed("--batch", "2")
    embedded = Embedding.objects.filter(user_id=users[0], embedding_model=NEW)
    assert set(embedded.values_list("pk", flat=True)) == set(ids[3:])
    assert models(*users[1:]) == {(NEW, True)}


def test_a_receipt_is_written_even_if_the_model_does_not_answer(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_new(provider, settings)

    def fails(text: str) -> list[float]:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(provider, "vector", fails)
        with pytest.raises(CommandError):
            reembed("--user", str(users[0]))
    (receipt,) = Receipt.objects.filter(user_id=users[0])
    assert (receipt.purpose, len(receipt.entries)) == ("embed", 5)


def test_entries_are_not_sent_while_the_memory_is_off(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings
) -> None:
    use_new(provider, settings)
    Memory.objects.filter(pk__in=users).update(enabled=False)
    reembed()
    assert provider.calls == []
    Memory.objects.filter(pk=users[0]).update(enabled=True)
    reembed()
    assert models(*users) == {(NEW, True), ("lexical", True)}


def test_reembed_can_return_to_the_lexical_model(
    users: list[uuid.UUID], provider: Provider, settings: LazySettings
) -> None:
    use_new(provider, settings)
    reembed()
    settings.EMBEDDING_MODEL = {"model": ""}
    asked = len(provider.calls)
    reembed()
    assert models(*users) == {("lexical", True)}
    assert len(provider.calls) == asked


@pytest.mark.parametrize("batch", ["0", "-1", "many"])
def test_a_batch_size_must_be_a_positive_whole_number(batch: str) -> None:
    with pytest.raises(CommandError, match="must be a whole number"):
        reembed("--batch", batch)
