"""The lines of a movement of money, whatever it is, sum to zero, and its parts give back what the whole took."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from billing.payments.ledger import lines_of
from billing.payments.money_api import Movement, Paid

KINDS = [
    "charge",
    "refund",
    "refund_failure",
    "adjustment",
    "payout",
    "stripe_fee",
    "transfer",
    "new_of_stripe",
]
cents = st.integers(1, 10**9)


def movement(kind: str, amount: int, fee: int = 0, source: str = "charge") -> Movement:
    return Movement(
        "txn", kind, amount, fee, "eur", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), source, "ch", "pi"
    )


@given(
    st.sampled_from(KINDS),
    st.integers(-(10**9), 10**9),
    st.integers(-(10**6), 10**6),
    st.sampled_from(["", "charge", "dispute"]),
    cents,
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_lines_sum_to_zero(
    kind: str, amount: int, fee: int, source: str, total: int, tax: int, before: int
) -> None:
    paid = Paid("in", "sub", "cus", total, min(tax, total))
    lines = lines_of(movement(kind, amount, fee, source), paid, refunded_before=before)
    assert sum(lines.values()) == 0
    assert lines["stripe"] == amount - fee


@given(st.lists(cents, min_size=1, max_size=8), st.integers(0, 100))
def test_refunds_in_parts_give_back_the_tax_of_the_whole(parts: list[int], percent: int) -> None:
    total = sum(parts)
    paid = Paid("in", "sub", "cus", total, total * percent // 100)
    sums = dict(lines_of(movement("charge", total), paid))
    before = 0
    for part in parts:
        for account, change in lines_of(movement("refund", -part), paid, refunded_before=before).items():
            sums[account] = sums.get(account, 0) + change
        before += part
    assert sums["tax"] == 0 and sums["stripe"] == 0 and sums["refunds"] == -sums["sales"]
