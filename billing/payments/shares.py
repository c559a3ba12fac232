"""Splits the price of a plugin between developer and platform, in whole cents.

Every movement of money is the difference of two of these sums, so that any sequence of partial refunds ends exact.
"""

from __future__ import annotations

from typing import Final

DEVELOPER_PERCENT: Final = 70


def tax_of(cents: int, *, total: int, tax: int) -> int:
    """Return the tax in `cents`, a part of `total`, which contains `tax`."""
    return cents * tax // total if total > 0 else 0


def share_of(*, total: int, tax: int) -> int:
    """Return the developer's share of a price. We keep the rest, except the tax."""
    return (total - tax) * DEVELOPER_PERCENT // 100


def due_of(*, total: int, tax: int, gone: int) -> int:
    """Return the part of the share that is still the developer's when `gone` cents of the price went back."""
    gone_net = gone - tax_of(gone, total=total, tax=tax)
    return share_of(total=total, tax=tax) - gone_net * DEVELOPER_PERCENT // 100
