"""Thoughts without a beginning: taken out of a stream however it is cut, and noticed where none was expected."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adiuva.llm.thoughts import ThoughtFilter, ends_unopened_thought
from adiuva.llm.types import Delta, Finish, Text, Usage

_END = Finish("stop", Usage())
_WORDS = st.text(alphabet="ab <>/\n", max_size=30).filter(
    lambda text: "</think" not in text and "<think" not in text
)


def shown(filter_: ThoughtFilter, text: str, cuts: set[int]) -> list[str]:
    """What is shown of a text that arrives in pieces, one item a piece, and one for what comes with the finish."""
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces: list[list[Delta]] = [[Text(text[a:b])] for a, b in pairwise(places)]
    found = [filter_.feed(piece) for piece in [*pieces, [_END]]]
    assert found[-1][-1] == _END
    return ["".join(delta.text for delta in deltas if isinstance(delta, Text)) for deltas in found]


@given(_WORDS, st.sampled_from(["</think>", "</thinking>"]), _WORDS, st.sets(st.integers(0, 99), max_size=8))
def test_an_expected_thought_is_never_shown(thought: str, end: str, answer: str, cuts: set[int]) -> None:
    filter_ = ThoughtFilter(is_expected=True)
    assert "".join(shown(filter_, thought + end + answer, cuts)) == answer.lstrip()
    assert filter_.is_unopened and filter_.has_text


@given(_WORDS, st.sets(st.integers(0, 99), max_size=8))
def test_an_answer_without_the_expected_thought_is_shown_at_its_end(answer: str, cuts: set[int]) -> None:
    filter_ = ThoughtFilter(is_expected=True)
    *before, last = shown(filter_, answer, cuts)
    assert "".join(before) == "" and last == answer and not filter_.is_unopened


@given(
    _WORDS,
    st.sampled_from(["", "</think>", "<think>b</think>"]),
    _WORDS,
    st.sets(st.integers(0, 99), max_size=8),
)
def test_where_none_is_expected_everything_is_shown_at_once(
    before: str, tag: str, after: str, cuts: set[int]
) -> None:
    filter_, text = ThoughtFilter(is_expected=False), before + tag + after
    assert "".join(shown(filter_, text, cuts)[:-1]) == text
    assert filter_.is_unopened == (tag == "</think>") == ends_unopened_thought(text)


def test_what_is_cut_off_is_a_thought_only_where_the_model_is_known_for_them() -> None:
    for is_certain, expected in ((True, []), (False, [Text("Hm, the user")])):
        filter_ = ThoughtFilter(is_expected=True, is_certain=is_certain)
        finish = Finish("length", Usage())
        assert [*filter_.feed([Text("Hm, the user")]), *filter_.feed([finish])] == [*expected, finish]
        assert filter_.is_cut_off


def test_a_thought_with_a_beginning_is_left_to_the_sanitizer() -> None:
    filter_ = ThoughtFilter(is_expected=True)
    assert shown(filter_, "<think>a</think>Yes", {3, 8}) == ["", "<think>a"[:8], "</think>Yes", ""]
    assert not filter_.is_unopened


@pytest.mark.parametrize("text", ["Yes.", "<think>a</think>Yes.", "The tag <think> ends with </think>."])
def test_these_do_not_begin_within_a_thought(text: str) -> None:
    assert not ends_unopened_thought(text)
