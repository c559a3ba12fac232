"""Sign bits of vectors, which find the candidates for the nearest vectors before these are compared.

A vector is rotated at random in two ways, the same for all, and only the sign of each component is kept. The more signs
of two vectors differ, the larger is the angle between them. Without the rotation, vectors made from words would have no
signs to compare: most of their components are zero.

The small components of a question say little, since their signs are nearly chance. So a question has two rows of bits,
which differ in these: the sum of the differences from both counts the large components twice and the small ones alike
for all. This halves the number of vectors to compare for the same nearest.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from django.db import models
from pgvector import HalfVector
from pgvector.django import BitField

BITS: Final = 1_024
# Components below this share of the root mean square say little: two in five.
_SMALL: Final = 0.52

# Components are computed side by side, as fixed-point numbers in lanes of one large integer, which takes a third of the
# time that a list of floats takes. A lane holds a component plus an offset, so that it is never negative; in the end
# the offset is the lane's highest bit, which therefore is the sign.
_LANE_BITS: Final = 32
_SIGN: Final = _LANE_BITS - 1
_LANE: Final = (1 << _LANE_BITS) - 1


def _in_lanes(values: Sequence[int]) -> int:
    return int.from_bytes(array("I", values).tobytes(), "little")


_ONES: Final = _in_lanes([1] * BITS)
_DIGITS: Final = _ONES * ord("0")


def sign_bits(vector: Sequence[float]) -> str:
    """Return BITS zeros and ones, which depend on the vector's direction and number of dimensions alone.

    Raises ValueError or OverflowError for a component that is not finite.
    """
    return _signs(_turned(vector)[0])


def question_bits(vector: Sequence[float]) -> tuple[str, str]:
    """Return the sign bits of a question, and once more with the bits of its small components inverted. Raises as
    `sign_bits` does."""
    lanes, length = _turned(vector)
    small = int(_SMALL * length) * _ONES
    return _signs(lanes), _signs((lanes - small) | ((lanes + small) & ~lanes))


def _signs(lanes: int) -> str:
    return ((lanes >> _SIGN & _ONES) | _DIGITS).to_bytes(BITS * _LANE_BITS // 8, "little")[::4].decode()


def _turned(vector: Sequence[float]) -> tuple[int, int]:
    """Return lanes of BITS components, half from one rotation and half from another, and their root mean square."""
    half = BITS // 2
    size = max(half, 1 << max(0, len(vector) - 1).bit_length())
    turn = _turn(size)
    length = math.hypot(*vector)
    # A vector along one axis is a component as long as the vector, and must stay within its lane.
    scale = (turn.length - 1) / length if length else 0.0
    values = array("I", [int(value * scale) + turn.length for value in vector])
    values.extend([turn.length] * (size - len(vector)))
    # A random sign for each component, then a Walsh-Hadamard transform: a rotation that takes only additions. Both
    # rotations are computed at once, one above the other.
    lanes = int.from_bytes(values.tobytes() * 2, "little") ^ turn.inverted
    for shift, lower, offset in turn.steps:
        low = lanes & lower
        high = (lanes ^ low) >> shift
        lanes = low + high + ((low + offset - high) << shift)
    if size > half:
        first = (1 << half * _LANE_BITS) - 1
        lanes = (lanes & first) | (lanes >> size * _LANE_BITS & first) << half * _LANE_BITS
    return lanes, turn.length


class _Turn(NamedTuple):
    """What rotates vectors of one size: the length they are brought to, which is the first offset as well; the lanes
    to invert; and for each step the shift between lanes that are added, the lower of these, and twice the offset."""

    length: int
    inverted: int
    steps: list[tuple[int, int, int]]


@lru_cache(maxsize=8)
def _turn(size: int) -> _Turn:
    """Return the rotation of vectors of this size, the same in every process, for ever: bits in the database were made
    with it."""
    count = size.bit_length() - 1
    length = 1 << (_SIGN - count)  # each step doubles the offset
    drawn = random.Random(size).getrandbits(2 * size)
    inverted = [0 if drawn >> place & 1 else 2 * length - 1 for place in range(2 * size)]
    steps = []
    for step in range(count):
        lower = _in_lanes([0 if place >> step & 1 else 1 for place in range(2 * size)])
        steps.append((_LANE_BITS << step, lower * _LANE, lower * (2 * length << step)))
    return _Turn(length, _in_lanes(inverted), steps)


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
