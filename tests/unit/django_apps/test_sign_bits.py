"""Sign bits of vectors: the same for ever, and alike for vectors that are alike."""

from __future__ import annotations

import random
from hashlib import sha256
from operator import ne

import pytest

from memory.sign_bits import BITS, question_bits, sign_bits


def differing(one: list[float], other: list[float]) -> int:
    return sum(a != b for a, b in zip(sign_bits(one), sign_bits(other), strict=True))


def drawn(dimensions: int, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(0, 1) for _ in range(dimensions)]


@pytest.mark.parametrize("dimensions", [1, 2, 3, 384, 512, 768, 1_024, 1_536, 3_072])
def test_vectors_of_any_length_give_as_many_bits_of_which_about_half_are_set(dimensions: int) -> None:
    bits = sign_bits(drawn(dimensions))
    assert len(bits) == BITS and set(bits) <= {"0", "1"}
    assert dimensions < 64 or 0.4 < bits.count("1") / BITS < 0.6


@pytest.mark.parametrize("dimensions", [384, 512, 768, 1_536])
def test_bits_differ_as_the_angle_between_vectors_does(dimensions: int) -> None:
    one, other = drawn(dimensions), drawn(dimensions, seed=2)
    near = [a + 0.2 * b for a, b in zip(one, other, strict=True)]  # 11 degrees away
    assert differing(one, [3 * a for a in one]) == 0
    assert 0.03 < differing(one, near) / BITS < 0.1
    assert 0.4 < differing(one, other) / BITS < 0.6
    assert differing(one, [-a for a in one]) > 0.99 * BITS


def test_vectors_of_which_most_components_are_zero_are_told_apart() -> None:
    one, other = [0.0] * 512, [0.0] * 512
    one[3] = one[200] = one[400] = other[4] = other[201] = other[401] = 0.5
    assert 0.3 < differing(one, other) / BITS < 0.7


@pytest.mark.parametrize("dimensions", [1, 384, 512, 1_536])
def test_a_vector_along_one_axis_is_like_its_neighbours(dimensions: int) -> None:
    """So are those of texts of one word, where meaning is told by words."""
    for place in range(0, dimensions, 13):
        for component in (1.0, -1.0):
            along, beside = [0.0] * dimensions, [0.01] * dimensions
            along[place] = beside[place] = component
            assert differing(along, beside) / BITS < 0.2
            assert differing(along, [-value for value in along]) > 0.99 * BITS


def test_bits_are_those_that_are_in_databases_already() -> None:
    digest = sha256(sign_bits([place % 7 - 3.0 for place in range(512)]).encode()).hexdigest()
    assert digest[:16] == "ffd1c98cb3623b51"


def test_a_question_has_a_second_row_of_bits_in_which_small_components_are_inverted() -> None:
    asked = drawn(700)
    signs, inverted = question_bits(asked)
    assert signs == sign_bits(asked)
    assert 0.3 < sum(map(ne, signs, inverted)) / BITS < 0.5
    near = [a + 0.5 * b for a, b in zip(asked, drawn(700, seed=2), strict=True)]
    wrong = [place for place, (a, b) in enumerate(zip(signs, sign_bits(near), strict=True)) if a != b]
    assert sum(signs[place] != inverted[place] for place in wrong) > 0.7 * len(wrong)
