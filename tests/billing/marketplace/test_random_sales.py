"""Whatever is sold, refunded and disputed in whatever order, all ends exact (SALES_STEPS: how much of it)."""

from __future__ import annotations

import os
import random

from bench.payments import sales
from tests.fakes.stripe import Stripe


def test_whatever_happens_the_ledger_and_each_developer_are_right_to_the_cent(stripe: Stripe) -> None:
    steps, seed = int(os.environ.get("SALES_STEPS", "12")), random.randrange(10**6)
    some = max(2, steps // 100)  # each time, all sales of a developer are compared with Stripe's
    done = sales.run(stripe, steps, seed=seed, developers=some, buyers=some + 1)
    assert not any(done.wrong.values()), (seed, done)
