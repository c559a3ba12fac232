"""Payments, refunds, disputes, and transfers to connected accounts, in whole cents."""

from __future__ import annotations

from typing import Any, Final

from tests.fakes.stripe.world import DAY_S, Row, StripeError, World, missing

# How a customer's card answers.
WORKS: Final = "works"
DECLINES: Final = "declines"
ASKS: Final = "asks"  # for 3-D Secure
LATER: Final = "later"  # no card: a debit, whose money comes or fails in days
_DISPUTE_FEE_CENTS: Final = 1500


def declined() -> StripeError:
    return StripeError(402, "Your card was declined.", code="card_declined", kind="card_error")


def charge(
    world: World, *, customer: str | None, cents: int, currency: str, card: str = WORKS, **fields: Any
) -> Row:
    """A payment intent, and its charge if the card works. The intent's status says what came of it."""
    status = {
        WORKS: "succeeded",
        DECLINES: "requires_payment_method",
        ASKS: "requires_action",
        LATER: "processing",
    }[card]
    intent = world.make(
        "payment_intent",
        "pi",
        amount=cents,
        amount_received=cents if card == WORKS else 0,
        currency=currency,
        customer=customer,
        status=status,
        latest_charge=None,
        metadata=fields.get("metadata") or {},
        transfer_group=fields.get("transfer_group"),
    )
    if card == WORKS:
        paid(world, intent)
    return intent


def paid(world: World, intent: Row) -> Row:
    """Make the charge of an intent."""
    intent |= {"status": "succeeded", "amount_received": intent["amount"]}
    row = world.make(
        "charge",
        "ch",
        amount=intent["amount"],
        amount_captured=intent["amount"],
        amount_refunded=0,
        balance_transaction=None,
        captured=True,
        currency=intent["currency"],
        customer=intent["customer"],
        disputed=False,
        metadata=dict(intent["metadata"]),
        paid=True,
        payment_intent=intent["id"],
        refunded=False,
        status="succeeded",
        transfer_group=intent["transfer_group"],
    )
    intent["latest_charge"] = row["id"]
    fee = round(row["amount"] * 29 / 1000) + 30 if row["amount"] else 0
    row["balance_transaction"] = move(world, "charge", row["id"], row["amount"], row["currency"], fee)["id"]
    world.emit("payment_intent.succeeded", intent)
    world.emit("charge.succeeded", row)
    return row


def move(world: World, kind: str, source: str, cents: int, currency: str, fee: int = 0) -> Row:
    """A change of the platform's balance."""
    return world.make(
        "balance_transaction",
        "txn",
        type=kind,
        source=source,
        amount=cents,
        fee=fee,
        net=cents - fee,
        currency=currency,
        status="available",
    )


def balance(world: World) -> Row:
    sums: dict[str, int] = {}
    for row in world.of("balance_transaction"):
        sums[row["currency"]] = sums.get(row["currency"], 0) + row["net"]
    available = [{"amount": cents, "currency": currency} for currency, cents in sums.items()]
    return {"object": "balance", "available": available, "pending": [], "livemode": False}


def refund(world: World, params: Row) -> Row:
    row = _charge_of(world, params)
    left = row["amount"] - row["amount_refunded"]
    if any(each["status"] not in ("won", "warning_closed") for each in world.of("dispute", charge=row["id"])):
        raise StripeError(400, f"Charge {row['id']} has been charged back.", code="charge_disputed")
    cents = int(params.get("amount", left))
    if row["refunded"]:
        raise StripeError(
            400, f"Charge {row['id']} has already been refunded.", code="charge_already_refunded"
        )
    if not 0 < cents <= left:
        raise StripeError(
            400, f"Refund amount ({cents}) is greater than unrefunded amount on charge ({left})"
        )
    row["amount_refunded"] += cents
    row["refunded"] = row["amount_refunded"] == row["amount"]
    made = world.make(
        "refund",
        "re",
        amount=cents,
        charge=row["id"],
        currency=row["currency"],
        metadata=params.get("metadata") or {},
        payment_intent=row["payment_intent"],
        reason=params.get("reason"),
        status="succeeded",
    )
    made["balance_transaction"] = move(world, "refund", made["id"], -cents, row["currency"])["id"]
    world.emit("refund.created", made)
    world.emit("charge.refunded", row)
    return made


def fail_refund(world: World, refund_id: str) -> Row:
    """The customer's bank sends the money back: nothing was refunded."""
    row = world.get("refund", refund_id)
    row |= {"status": "failed", "failure_reason": "expired_or_canceled_card"}
    paid_in = world.get("charge", row["charge"])
    paid_in["amount_refunded"] -= row["amount"]
    paid_in["refunded"] = False
    move(world, "refund_failure", row["id"], row["amount"], row["currency"])
    world.emit("refund.failed", row)
    return row


def _charge_of(world: World, params: Row) -> Row:
    if "charge" in params:
        return world.get("charge", params["charge"])
    if "payment_intent" not in params:
        raise StripeError(400, "One of the following params should be provided: charge, payment_intent.")
    intent = world.get("payment_intent", params["payment_intent"])
    if intent["latest_charge"] is None:
        raise StripeError(400, f"This PaymentIntent ({intent['id']}) does not have a successful charge.")
    return world.get("charge", intent["latest_charge"])


def account(world: World, params: Row) -> Row:
    return world.make(
        "account",
        "acct",
        capabilities={"transfers": "inactive"},
        charges_enabled=False,
        country=params.get("country", "IT"),
        details_submitted=False,
        email=params.get("email"),
        metadata=params.get("metadata") or {},
        payouts_enabled=False,
        requirements={"currently_due": ["individual.verification.document"], "disabled_reason": None},
        type=params.get("type", "express"),
        _balance={},
    )


def onboard(world: World, account_id: str) -> Row:
    """What the account's owner does on Stripe's pages."""
    row = world.get("account", account_id)
    row |= {"charges_enabled": True, "details_submitted": True, "payouts_enabled": True}
    row["capabilities"] = {"transfers": "active"}
    row["requirements"] = {"currently_due": [], "disabled_reason": None}
    world.emit("account.updated", row)
    return row


def restrict(world: World, account_id: str) -> Row:
    """Stripe wants to know more of the account's owner, and pays nothing out until then."""
    row = world.get("account", account_id)
    row |= {"charges_enabled": False, "payouts_enabled": False}
    row["capabilities"] = {"transfers": "inactive"}
    row["requirements"] = {
        "currently_due": ["individual.id_number"],
        "disabled_reason": "requirements.past_due",
    }
    world.emit("account.updated", row)
    return row


def pay_out(world: World, account_id: str) -> Row:
    """All that is on a connected account goes to its bank, so that nothing can be taken back from it."""
    row = world.get("account", account_id)
    row["_balance"] = {}
    return row


def transfer(world: World, params: Row) -> Row:
    cents, currency = int(params["amount"]), params["currency"]
    to = world.rows.get(params["destination"])
    if to is None or to["object"] != "account":
        raise missing("destination", params["destination"])
    if to["capabilities"]["transfers"] != "active":
        raise StripeError(
            400,
            "Your destination account needs to have at least one of the following capabilities enabled: transfers",
            code="insufficient_capabilities_for_transfer",
        )
    if cents <= 0:
        raise StripeError(
            400, "This value must be greater than or equal to 1.", code="parameter_invalid_integer"
        )
    source = params.get("source_transaction")
    if source is not None:
        paid_in = world.get("charge", source)
        sent = sum(row["amount"] for row in world.of("transfer", source_transaction=source))
        if sent + cents > paid_in["amount"]:
            raise StripeError(400, "Cannot create transfers of more than the source charge's amount.")
    elif cents > _available(world, currency):
        raise StripeError(400, "You have insufficient available funds.", code="balance_insufficient")
    made = world.make(
        "transfer",
        "tr",
        amount=cents,
        amount_reversed=0,
        currency=currency,
        description=params.get("description"),
        destination=to["id"],
        metadata=params.get("metadata") or {},
        reversals={"object": "list", "data": [], "has_more": False},
        reversed=False,
        source_transaction=source,
        transfer_group=params.get("transfer_group"),
    )
    to["_balance"][currency] = to["_balance"].get(currency, 0) + cents
    made["balance_transaction"] = move(world, "transfer", made["id"], -cents, currency)["id"]
    world.emit("transfer.created", made)
    return made


def _available(world: World, currency: str) -> int:
    return sum(each["amount"] for each in balance(world)["available"] if each["currency"] == currency)


def reverse(world: World, params: Row, transfer_id: str) -> Row:
    row = world.get("transfer", transfer_id)
    left = row["amount"] - row["amount_reversed"]
    cents = int(params.get("amount", left))
    if not 0 < cents <= left:
        raise StripeError(400, f"Amount to reverse ({cents}) is greater than what is left ({left})")
    there = world.get("account", row["destination"])["_balance"]
    if there.get(row["currency"], 0) < cents:
        raise StripeError(
            400, "The connected account does not have enough to reverse this.", code="balance_insufficient"
        )
    there[row["currency"]] -= cents
    row["amount_reversed"] += cents
    row["reversed"] = row["amount_reversed"] == row["amount"]
    made = world.make(
        "transfer_reversal",
        "trr",
        amount=cents,
        currency=row["currency"],
        metadata=params.get("metadata") or {},
        transfer=row["id"],
    )
    move(world, "transfer_refund", made["id"], cents, row["currency"])
    row["reversals"]["data"].insert(0, {name: made[name] for name in made})
    world.emit("transfer.reversed", row)
    return made


def dispute(world: World, charge_id: str, cents: int | None = None) -> Row:
    """What a card's holder does at their bank. The money and a fee are taken at once."""
    row = world.get("charge", charge_id)
    row["disputed"] = True
    made = world.make(
        "dispute",
        "dp",
        amount=row["amount"] - row["amount_refunded"] if cents is None else cents,
        charge=row["id"],
        currency=row["currency"],
        metadata={},
        payment_intent=row["payment_intent"],
        evidence_details={"due_by": world.now() + 7 * DAY_S},
        reason="fraudulent",
        status="needs_response",
    )
    move(world, "adjustment", made["id"], -made["amount"], row["currency"], _DISPUTE_FEE_CENTS)
    world.emit("charge.dispute.created", made)
    world.emit("charge.dispute.funds_withdrawn", made)
    return made


def decide(world: World, dispute_id: str, *, won: bool) -> Row:
    row = world.get("dispute", dispute_id)
    row["status"] = "won" if won else "lost"
    if won:
        move(world, "adjustment", row["id"], row["amount"], row["currency"])
        world.emit("charge.dispute.funds_reinstated", row)
    world.emit("charge.dispute.closed", row)
    return row
