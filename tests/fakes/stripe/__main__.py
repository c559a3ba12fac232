"""Run the fake Stripe alone: python -m tests.fakes.stripe --port 8090 --webhook URL --state FILE."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.fakes.stripe.server import Stripe


async def _serve(stripe: Stripe) -> None:
    serving = asyncio.ensure_future(stripe.serve())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fakes.stripe", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--webhook", default="", help="where events are sent")
    parser.add_argument("--state", type=Path, help="the file that keeps the objects over a restart")
    given = parser.parse_args()
    stripe = Stripe(port=given.port, state=given.state)
    stripe.deliveries.url = given.webhook
    # By the environment, as command lines can be read by others.
    stripe.deliveries.secret = os.environ.get("STRIPE_WEBHOOK_SECRET", stripe.deliveries.secret)
    asyncio.run(_serve(stripe))


if __name__ == "__main__":
    main()
