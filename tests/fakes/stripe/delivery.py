"""Webhook deliveries: signed, tried again, and as badly as a test wants them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
from dataclasses import dataclass, field

import aiohttp

from tests.fakes.stripe.world import Row, World

_TRIES_AFTER_S = (0.2, 1.0, 5.0, 30.0, 300.0)


def signed(body: bytes, secret: str, at: int) -> dict[str, str]:
    """The headers of a delivery."""
    signature = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={at},v1={signature}", "Content-Type": "application/json; charset=utf-8"}


@dataclass
class Deliveries:
    """Sends each event to `url`, if there is one.

    `copies` of each event are sent, each up to `late_s` late, so that they come out of order. `lost` is the share of
    events that never come. `api_version` replaces the event's. While `held` is set, events wait; `missed` are those
    that were lost, and `sent` has each delivery's event id and status (0: no answer).
    """

    world: World
    url: str = ""
    secret: str = "whsec_of_the_tests"
    copies: int = 1
    late_s: float = 0.0
    lost: float = 0.0
    api_version: str = ""
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    sent: list[tuple[str, int]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    held: bool = False
    _waiting: list[Row] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def take(self, event: Row) -> None:
        """Runs in the server's loop."""
        if not self.url:
            return
        if self.held:
            self._waiting.append(event)
        elif self.chance.random() < self.lost:
            self.missed.append(event["id"])
        else:
            for _ in range(self.copies):
                task = asyncio.ensure_future(self._deliver(event, self.chance.random() * self.late_s))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def release(self) -> None:
        self.held = False
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self.take(event)

    @property
    def under_way(self) -> int:
        return len(self._tasks) + len(self._waiting)

    async def _deliver(self, event: Row, after_s: float) -> None:
        await asyncio.sleep(after_s)
        shown = {**event, "pending_webhooks": 1}
        if self.api_version:
            shown["api_version"] = self.api_version
        body = json.dumps(shown, indent=2).encode()
        for wait_s in (*_TRIES_AFTER_S, None):
            status = await self._post(body)
            self.sent.append((event["id"], status))
            if 200 <= status < 300 or wait_s is None:
                return
            await asyncio.sleep(wait_s)

    async def _post(self, body: bytes) -> int:
        headers = signed(body, self.secret, self.world.now() - self.world.clock_offset_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20), trust_env=False) as session,
                session.post(self.url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0
