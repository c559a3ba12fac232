"""The user's profile, as the model that reads documents gets it."""

from __future__ import annotations

import uuid

import pytest

from adiuva import llm
from memory import entries
from memory.entries import BY_HAND
from memory.models import Memory, Receipt, Tier
from memory.profile import read_profile
from tests.factories import somebody
from tests.fakes.provider import Provider

pytestmark = pytest.mark.django_db


@pytest.fixture
def user() -> uuid.UUID:
    return somebody().id


def test_it_holds_what_names_the_user_and_leaves_a_receipt(user: uuid.UUID, provider: Provider) -> None:
    model = llm.chat_model(provider.settings())
    assert read_profile(user, model) == ""
    for key, content in (("Name", "Ada\nRossi"), ("company", "Rossi Design"), ("hourly rate", "80 euros")):
        entries.remember(user_id=user, tier=Tier.CORE, key=key, content=content, source=BY_HAND)
    assert read_profile(user, model) == "name: Ada Rossi\ncompany: Rossi Design"
    [receipt] = Receipt.objects.filter(user_id=user)
    assert (receipt.purpose, len(receipt.entries)) == ("extract", 2)


def test_a_model_that_may_not_read_the_tier_is_told_nothing(user: uuid.UUID, provider: Provider) -> None:
    entries.remember(user_id=user, tier=Tier.CORE, key="name", content="Ada", source=BY_HAND)
    Memory.objects.update_or_create(pk=user, defaults={"policy": {"core": []}})
    assert read_profile(user, llm.chat_model(provider.settings())) == ""
    Memory.objects.filter(pk=user).update(policy={}, enabled=False)
    assert read_profile(user, llm.chat_model(provider.settings())) == ""
    assert not Receipt.objects.filter(user_id=user).exists()
