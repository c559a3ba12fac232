"""Shares of a plugin's price: exact to the cent, in whatever parts it is refunded."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from billing.payments import shares


@given(st.integers(0, 100_000), st.integers(0, 30), st.lists(st.integers(0, 100_000), max_size=8))
def test_whatever_goes_back_in_whatever_parts_all_is_given_back_in_the_end(
    total: int, tax_percent: int, parts: list[int]
) -> None:
    tax = total * tax_percent // (100 + tax_percent)
    share = shares.share_of(total=total, tax=tax)
    levels = [0, *sorted(min(part, total) for part in parts), total]
    due = [shares.due_of(total=total, tax=tax, gone=level) for level in levels]
    assert due[0] == share
    assert due[-1] == 0
    assert due == sorted(due, reverse=True)  # nobody gains by a refund
    back = [before - after for before, after in itertools.pairwise(due)]
    assert sum(back) == share
    assert all(cents >= 0 for cents in back)


def test_a_sale_is_shared_70_to_30_after_tax() -> None:
    assert shares.share_of(total=1000, tax=0) == 700
    assert shares.share_of(total=1220, tax=220) == 700
    assert shares.share_of(total=1, tax=0) == 0  # a zero share is never sent
    assert shares.due_of(total=1220, tax=220, gone=610) == 350
