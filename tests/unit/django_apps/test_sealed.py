"""Sealed fields of all models, and sealed values in Redis: they open at their own place only."""

from __future__ import annotations

import uuid
from itertools import product
from typing import Any

import pytest
from django.apps import apps
from django.apps.registry import Apps
from django.db import models
from hypothesis import given
from hypothesis import strategies as st

from adiuva.core.crypto import Cipher, SealBroken, UserCipher, new_key
from adiuva.core.sealed import (
    SealedBytesField,
    SealedJSONField,
    SealedTextField,
    _SealedField,
    seal_for_redis,
    unseal_from_redis,
)

KEY = Cipher(new_key())
ADA, BOB = UserCipher("ada", KEY), UserCipher("bob", KEY)
VALUES: dict[type, Any] = {
    SealedTextField: "grüße \ud800",
    SealedJSONField: {"a": [1, "ü"]},
    SealedBytesField: b"\0x",
}


def fields() -> list[_SealedField[Any]]:
    found = (field for model in apps.get_models() for field in model._meta.concrete_fields)
    return [field for field in found if isinstance(field, _SealedField)]


def row_of(field: _SealedField[Any]) -> list[object]:
    return [uuid.uuid4() for _ in field.bound_to]


def test_the_server_seals_columns() -> None:
    assert fields()


def test_each_sealed_column_opens_at_its_own_place_only() -> None:
    for field in fields():
        row, value = row_of(field), VALUES[type(field)]
        sealed = field.seal(ADA, value, *row)
        assert field.unseal(ADA, memoryview(sealed), *row) == value
        with pytest.raises(SealBroken):
            field.unseal(BOB, sealed, *row)
        with pytest.raises(SealBroken):
            field.unseal(ADA, sealed, *row_of(field))
        with pytest.raises(SealBroken):
            field.unseal(ADA, sealed[:-1] + bytes([sealed[-1] ^ 1]), *row)
    for one, other in product(fields(), repeat=2):
        if one is not other and len(one.bound_to) == len(other.bound_to):
            row = row_of(one)
            with pytest.raises(SealBroken):
                other.unseal(ADA, one.seal(ADA, VALUES[type(one)], *row), *row)


def test_an_instance_is_sealed_and_unsealed_by_its_own_columns() -> None:
    for field in fields():
        instance = field.model()
        for name in field.bound_to:
            setattr(instance, name, uuid.uuid4())
        field.seal_into(ADA, instance, VALUES[type(field)])
        assert isinstance(getattr(instance, field.attname), bytes)
        assert field.unseal_from(ADA, instance) == VALUES[type(field)]
        setattr(instance, field.bound_to[0], uuid.uuid4())
        with pytest.raises(SealBroken):
            field.unseal_from(ADA, instance)


def test_a_row_that_is_not_fully_named_is_not_sealed() -> None:
    for field in fields():
        for row in ([], [None] * len(field.bound_to), [*row_of(field), 1]):
            with pytest.raises(ValueError, match="is bound to"):
                field.seal(ADA, VALUES[type(field)], *row)


def test_the_attribute_of_a_class_is_the_field_of_that_class() -> None:
    class Base(models.Model):
        text = SealedTextField(null=True)

        class Meta:
            abstract = True
            app_label = "tests"

    class Letter(Base):
        class Meta:
            app_label = "tests"
            db_table = "letters"
            apps = Apps()

    assert Letter.text is Letter._meta.get_field("text")
    assert Letter.text.bound_to == ("id",) and Letter().text is None
    assert Letter.text.unseal(ADA, ADA.cipher.seal(b"hi", ADA.place("letters", 7, "text")), 7) == "hi"


def test_a_field_bound_to_no_column_is_an_error() -> None:
    class Letter(models.Model):
        text = SealedTextField(bound_to=("nothing",))

        class Meta:
            app_label = "tests"
            apps = Apps()

    (error,) = Letter.text.check()
    assert "'nothing'" in error.msg


def test_migrations_see_a_plain_column() -> None:
    for field in fields():
        _, path, _, kwargs = field.deconstruct()
        assert path == "django.db.models.BinaryField" and "bound_to" not in kwargs


@given(st.text(max_size=20), st.integers(0, 99), st.text(max_size=20), st.integers(0, 99))
def test_a_value_in_redis_opens_under_its_own_key_and_part_only(
    key: str, part: int, other_key: str, other_part: int
) -> None:
    sealed = seal_for_redis(ADA, key, {"a": 1}, part=part)
    assert unseal_from_redis(ADA, key, sealed, part=part) == {"a": 1}
    with pytest.raises(SealBroken):
        unseal_from_redis(BOB, key, sealed, part=part)
    if (key, part) != (other_key, other_part):
        with pytest.raises(SealBroken):
            unseal_from_redis(ADA, other_key, sealed, part=other_part)
