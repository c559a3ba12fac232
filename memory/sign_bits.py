"""Sign bits of vectors, which find the candidates for the nearest vectors before these are compared.

A vector is rotated at random in two ways, the same for all, and only the sign of each component is kept. The more signs
of two vectors differ, the larger is the angle between them. Without the rotation, vectors made from words would have no
signs to compare: most of their components are zero.

The small components of a question say little, since their signs are nearly chance. So a question has two rows of bits,
which differ in these: the sum of the differences from both counts the large components twice and the small ones alike
for all. This halves the number of vectors to compare for the same nearest.
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
# Components below this share of the average say little: two in five.
_SMALL: Final = 0.65


def sign_bits(vector: Sequence[float]) -> str:
    """Return BITS zeros and ones, which depend on the vector's direction and number of dimensions alone."""
    return "".join(["1" if value > 0 else "0" for value in _turned(vector)])


def question_bits(vector: Sequence[float]) -> tuple[str, str]:
    """Return the sign bits of a question, and once more with the bits of its small components inverted."""
    values = _turned(vector)
    small = _SMALL * sum(map(abs, values)) / BITS
    inverted = ["1" if value > small or -small < value <= 0 else "0" for value in values]
    return "".join(["1" if value > 0 else "0" for value in values]), "".join(inverted)


def _turned(vector: Sequence[float]) -> list[float]:
    """Return BITS components of a vector, half of them from one rotation and half from another."""
    half = BITS // 2
    size = max(half, 1 << max(0, len(vector) - 1).bit_length())
    # A random sign for each component, then a Walsh-Hadamard transform: a rotation that takes only additions. Both
    # rotations are computed at once, as the parts of complex numbers.
    values = list(map(mul, _signs(size), [*vector, *[0.0] * (size - len(vector))]))
    for _ in range(size.bit_length() - 1):
        even, odd = values[::2], values[1::2]
        values = [*map(add, even, odd), *map(sub, even, odd)]
    return [value.real for value in values[:half]] + [value.imag for value in values[:half]]


@lru_cache(maxsize=8)
def _signs(size: int) -> list[complex]:
    """Return signs that are the same in every process, for ever: bits in the database were made with them."""
    drawn = random.Random(size).getrandbits(2 * size)
    signs = [1.0 if drawn >> place & 1 else -1.0 for place in range(2 * size)]
    return list(map(complex, signs[:size], signs[size:]))


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
    """Return the components with the database's precision: where they cancel out, rounding decides the sign."""
    return HalfVector(vector).to_list()
