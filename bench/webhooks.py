"""Events that come in any form and any order: `python -m bench.webhooks [inputs]`

10,000 bodies and signatures come to the webhook of our ASGI application, as any server would hand them over: events,
such as are signed and claim what is not so, forgeries and garbage. Nothing may be answered with a 500, nothing that is
not signed be stored, and at the end all plans must be as Stripe has them. Then 150 subscriptions change four times
within 20 ms each, in three trials, and none may be stale once all is told; other ways are shown beside it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections import Counter
from typing import Any, Final

from bench.harness import bench_servers, record, show
from bench.payments import fast_changes
from bench.payments.subscribers import subscribers
from bench.payments.ways import SECRET, use_stripe_at
from bench.payments.webhook_inputs import Input, some_input
from tests.fakes.stripe import Stripe

INPUTS: Final = 10_000
AT_ONCE: Final = 20
SUBSCRIPTIONS: Final = 150
TRIALS: Final = 3


async def _post(application: Any, given: Input) -> int:
    """Returns the status; 0 if the application raised."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/api/v1/billing/webhook",
        "raw_path": b"/api/v1/billing/webhook",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(given.body)).encode()),
            (b"stripe-signature", given.sign()),
        ],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
    }
    status, is_sent, forever = 0, False, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            await forever.wait()
        is_sent = True
        return {"type": "http.request", "body": given.body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    try:
        await application(scope, receive, send)
    except Exception as error:
        print(f"  raised: {error!r} for {given.body[:200]!r}", flush=True)
        return 0
    return status


async def _post_all(application: Any, inputs: list[Input]) -> list[int]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(given: Input) -> int:
        async with turns:
            return await _post(application, given)

    return await asyncio.gather(*(one(each) for each in inputs))


def fuzz(stripe: Stripe, count: int) -> None:
    from adiuva.accounts.models import User
    from adiuva.asgi import application
    from billing.payments import sync, webhooks
    from billing.payments.models import Customer, Event, Subscription

    users = subscribers(stripe, 20)
    customers = list(Customer.objects.values_list("stripe_id", flat=True))
    chance, began = random.Random(1), time.perf_counter()
    inputs = [some_input(chance, [*users], customers, SECRET) for _ in range(count)]
    chance.shuffle(inputs)
    statuses = asyncio.run(_post_all(application, inputs))
    took_s = time.perf_counter() - began
    stored = Event.objects.count()
    webhooks.process()
    while sync.run():
        pass
    answers = Counter(statuses)
    believed = sum(
        status == 200 and not given.is_signed for status, given in zip(statuses, inputs, strict=True)
    )
    live = Subscription.objects.live().exclude(stripe_id__in=users)
    wrong = User.objects.filter(pk__in=users.values()).exclude(tier="pro").count() + live.count()
    print(f"{count:,} inputs, {took_s:.0f} s: {dict(sorted(answers.items()))}, {stored:,} events stored")
    other = sum(n for status, n in answers.items() if status not in (200, 400, 413))
    record("answers but 200, 400 and 413", other, most=0)
    record("taken, though not signed", believed, most=0)
    record("plans and subscriptions that are not as Stripe has them", wrong + webhooks.compare(), most=0)


def change_fast(stripe: Stripe) -> None:
    stale_of_ours = 0
    for trial in range(TRIALS):
        users, began = subscribers(stripe, SUBSCRIPTIONS), time.perf_counter()
        stale = fast_changes.play(stripe, [*users], secret=SECRET, seed=trial, with_others=True)
        print(f"{SUBSCRIPTIONS} subscriptions, trial {trial + 1}: {time.perf_counter() - began:.0f} s")
        for way, count in stale.items():
            show(f"stale: {way}", f"{count}", "" if way == "ours" else "aim: more than 0")
        stale_of_ours += stale["ours"]
    record("stale", stale_of_ours, most=0)


def main(count: int) -> None:
    logging.disable(logging.ERROR)  # each event that is signed and no event is logged as one
    with bench_servers(), Stripe() as stripe:
        from billing import plans
        from billing.payments import prices

        use_stripe_at(stripe.url)
        plans.create_missing()
        dict(prices.make_missing())
        fuzz(stripe, count)
        change_fast(stripe)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS)
