"""The envelope of what processes send each other: any messages, in any batch, and anything that is no batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.core.channel_envelope import pack, pack_batch, unpack_batch
from tests.sampling import fewer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.dictionaries(TEXT.filter(lambda key: key != "body"), JSON, max_size=4)
FRAME = st.binary(max_size=2_000) | TEXT.map(lambda text: f'{{"type":"{text}"}}'.encode())
NUMBER = st.integers(0, 2**64 - 1)
ITEM = st.tuples(TEXT, MESSAGE, FRAME, NUMBER)


@settings(max_examples=fewer(200), deadline=None)
@given(TEXT, st.lists(ITEM, max_size=8))
def test_what_is_packed_is_what_is_unpacked(sender: str, items: list[tuple[str, Any, bytes, int]]) -> None:
    batch = pack_batch(sender, [pack(*item) for item in items])
    found, messages = unpack_batch(batch)
    assert found == sender
    assert list(messages) == [
        (number, channel, {**message, **({"body": body} if body else {})})
        for channel, message, body, number in items
    ]


@settings(max_examples=fewer(200), deadline=None)
@given(TEXT, st.lists(ITEM, min_size=1, max_size=4), st.data())
def test_a_batch_that_is_cut_off_is_refused_and_what_came_before_is_whole(
    sender: str, items: list[tuple[str, Any, bytes, int]], data: st.DataObject
) -> None:
    packed = [pack(*item) for item in items]
    batch = pack_batch(sender, packed)
    ends = [len(pack_batch(sender, packed[:count])) for count in range(len(packed) + 1)]
    cut = data.draw(st.integers(0, len(batch) - 1).filter(lambda place: place not in ends))
    read = []
    with pytest.raises(ValueError):
        for number, channel, _ in unpack_batch(batch[:cut])[1]:
            read.append((channel, number))
        assert cut < ends[0]  # it was cut within the sender's name
        raise ValueError
    assert read == [(item[0], item[3]) for item in items[: len(read)]]


@settings(max_examples=fewer(300), deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_a_value_error(content: bytes) -> None:
    for given_bytes in (content, b"\x01\x00\x00" + content):
        try:
            for _, channel, message in unpack_batch(given_bytes)[1]:
                assert isinstance(channel, str) and message is not None
        except ValueError:
            continue


def test_a_batch_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        unpack_batch(b"\x02" + pack_batch("", [])[1:])
