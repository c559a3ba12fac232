"""A fake Stripe on loopback: the calls that the product makes, with Stripe's rules, and pages for a customer.

    with Stripe() as stripe:                             # runs in a thread; any process may call it
        StripeClient("sk_test_x", base_addresses={"api": stripe.url, …}, stripe_version=API_VERSION)
        stripe.fault("POST /v1/transfers", Fail(500, done=True), Cut(), times=2)
        stripe.now_and_then(0.1, "POST", Fail(500), Fail(500, done=True), Cut(done=True), seed=3)
        stripe.deliveries.url = "http://127.0.0.1:…/api/v1/billing/webhook"
        stripe.pay(session_id); stripe.card(customer_id, DECLINES); stripe.advance(days=31)

As at Stripe, a POST with an `Idempotency-Key` is carried out once: its status and body are kept and given again, errors
500 included; the same key with other parameters is refused, and `forget_keys` drops what was kept. A fault is one of:
    Fail(status, done, code, retry_after)   an error; with `done` the call was carried out all the same
    Cut(done)                               the connection breaks, before or after the call is carried out
    Slow(seconds, done)                     the correct answer, later; with `done` it was made at once
    Raw(body)                               200 with these bytes, after the call was carried out

`python -m tests.fakes.stripe --port 8090 --webhook URL --state FILE` runs it alone, with a start page for people.
"""

from tests.fakes.stripe.delivery import Deliveries, signed
from tests.fakes.stripe.money import ASKS, DECLINES, LATER, WORKS
from tests.fakes.stripe.server import Call, Cut, Fail, Raw, Slow, Stripe
from tests.fakes.stripe.world import API_VERSION, DAY_S

__all__ = [
    "API_VERSION",
    "ASKS",
    "DAY_S",
    "DECLINES",
    "LATER",
    "WORKS",
    "Call",
    "Cut",
    "Deliveries",
    "Fail",
    "Raw",
    "Slow",
    "Stripe",
    "signed",
]
