"""Random sales, refunds and disputes of plugins at a double of Stripe: the ledger, and each developer to the cent.

    SALES_STEPS=10000 make check T=tests/billing/marketplace/test_random_sales.py

`run` needs a database and a Stripe, which that test has; without SALES_STEPS it does 12. After all holds are over, it
checks:
  - all entries of the ledger sum to zero, and what Stripe keeps for us is what the ledger says
  - of each sale, the developer has 70 % without tax of what did not go back; of each developer, so have all of them
  - what buyers paid is what developers, the state and we have, and what went back
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from billing.models import PluginPurchase


@dataclass
class Done:
    """How often what was done, and by how many cents what differs differs; all of them are 0 if all is well."""

    steps: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)

    def count(self, step: str) -> None:
        self.steps[step] = self.steps.get(step, 0) + 1


def run(
    stripe: Any, steps: int, *, seed: int, developers: int = 5, buyers: int = 20, tell_every: int = 25
) -> Done:
    """Do so many random steps, with all that a worker does after each `tell_every` of them."""
    from adiuva.core.errors import AdiuvaError
    from billing.marketplace import buying
    from tests.billing.marketplace.factories import a_listed_plugin
    from tests.billing.marketplace.shops import Buyer, Shop

    chance, done = random.Random(seed), Done()
    stripe.do(lambda world: setattr(world, "tax", True))
    shops = [Shop(stripe, price_cents=chance.choice([200, 299, 999, 12345])) for _ in range(developers)]
    people = [Buyer(stripe) for _ in range(buyers)]
    open_disputes: list[str] = []

    def sale_of(shop: Shop) -> PluginPurchase | None:
        sales = list(shop.developer.sales.filter(state="paid"))
        return chance.choice(sales) if sales else None

    for number in range(steps):
        shop = chance.choice(shops)
        step = chance.choices(
            ["sale", "refund", "dispute", "decide", "hold_over", "paid_out"], [50, 20, 8, 8, 8, 6]
        )[0]
        if step == "sale":
            plugin = a_listed_plugin(shop.developer, price_cents=chance.randint(200, 5000))
            buyer = chance.choice(people)
            url = buying.check_out(user_id=buyer.person.id, plugin=plugin)
            stripe.pay(url.rpartition("/")[2])
        elif step == "refund" and (sale := sale_of(shop)) is not None:
            left = sale.total_cents - sale.gone_cents
            try:
                buying.refund(purchase=sale, cents=chance.choice([left, chance.randint(1, left)]))
            except AdiuvaError:
                step = "refund_refused"  # another one is on its way
        elif step == "dispute" and (sale := sale_of(shop)) is not None:
            paid_in = stripe.do(lambda world, charge=sale.charge: world.get("charge", charge))
            if not paid_in["disputed"] and not paid_in["refunded"]:
                open_disputes.append(stripe.dispute(sale.charge)["id"])
        elif step == "decide" and open_disputes:
            stripe.decide(open_disputes.pop(chance.randrange(len(open_disputes))), won=chance.random() < 0.5)
        elif step == "hold_over":
            shop.over()
        elif step == "paid_out":
            stripe.pay_out(shop.account)
        done.count(step)
        if number % tell_every == tell_every - 1:
            shop.tell()
    for dispute in open_disputes:
        stripe.decide(dispute, won=True)
    _settle(shops)
    done.wrong = _compare(stripe, shops)
    return done


def _settle(shops: list[Any]) -> None:
    for _ in range(3):  # a debt may be repaid by what its own settling sets free
        for shop in shops:
            shop.tell()
            shop.over()


def _compare(stripe: Any, shops: list[Any]) -> dict[str, int]:
    from billing.payments import money_api, shares

    wrong = {"stripe": 0, "developers": 0, "sales": 0, "owed": 0}
    books = shops[0].on_accounts()  # each entry sums to zero, or this fails
    wrong["stripe"] = books.get("stripe", 0) - money_api.balance().get("eur", 0)
    owed = 0
    for shop in shops:
        due = debt = 0
        for sale in shop.developer.sales.exclude(state="open"):
            charge = stripe.do(lambda world, charge=sale.charge: world.get("charge", charge))
            lost = stripe.do(
                lambda world, charge=sale.charge: sum(
                    row["amount"] for row in world.of("dispute", charge=charge, status="lost")
                )
            )
            gone = charge["amount_refunded"] + lost
            right = shares.due_of(total=charge["amount"], tax=sale.tax_cents, gone=gone)
            wrong["sales"] += abs(right - sale.due_cents)
            due += right
            debt += sale.settled_cents - sale.due_cents
        wrong["developers"] += abs(shop.at_stripe() - due - debt)
        owed += debt
    wrong["owed"] = books.get("shares", 0) + books.get("transfers", 0) - owed
    return wrong
