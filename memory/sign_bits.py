"""Sign bits of vectors, by which the nearest of many are looked for before their vectors are compared.

A vector is rotated at random, the same way for all, and of each component only the sign is kept. The more signs of two
vectors differ, the larger is the angle between them. Without the rotation, vectors made from words, most of whose
components are zero, would have no signs to compare.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from operator import add, mul, sub
from typing import Any, Final

from django.db import models
from pgvector import HalfVector
from pgvector.django import BitField

BITS: Final = 1_024


def sign_bits(vector: Sequence[float]) -> str:
    """BITS zeros and ones. The length of the vector does not matter, but its direction and number of dimensions do."""
    size = 1 << max(0, len(vector) - 1).bit_length()
    signs = _signs(max(size, BITS))
    # A random sign for each component, then a Walsh-Hadamard transform: a rotation for which additions are enough. A
    # short vector is repeated with other signs, which gives further components of it.
    values = [*vector, *[0.0] * (size - len(vector))] * (len(signs) // size)
    values = list(map(mul, signs, values))
    for _ in range(len(signs).bit_length() - 1):
        even, odd = values[::2], values[1::2]
        values = [*map(add, even, odd), *map(sub, even, odd)]
    return "".join(["1" if value > 0 else "0" for value in values[:BITS]])


@lru_cache(maxsize=8)
def _signs(size: int) -> list[float]:
    """The same in every process, and for ever: bits in the database were made with them."""
    drawn = random.Random(size).getrandbits(size)
    return [1.0 if drawn >> place & 1 else -1.0 for place in range(size)]


class SignBitsField(BitField):
    """The sign bits of the vector in another field, which are computed when the row is saved."""

    def __init__(self, *args: Any, of: str, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "length": BITS, "editable": False})
        self.of = of

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        del kwargs["length"], kwargs["editable"]
        return name, path, args, kwargs | {"of": self.of}

    def pre_save(self, model_instance: models.Model, add: bool) -> str:
        bits = sign_bits(_components(getattr(model_instance, self.of)))
        setattr(model_instance, self.attname, bits)
        return bits


def _components(vector: list[float]) -> list[float]:
    """As the database keeps them: where components cancel each other out, rounding decides the sign."""
    return HalfVector(vector).to_list()
