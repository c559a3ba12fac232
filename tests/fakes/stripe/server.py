"""The HTTP server of the fake Stripe: keys, idempotency, faults, and the answers of `routes` and `pages`."""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Self, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web

from tests.fakes.stripe import checkout, money, pages, subscriptions
from tests.fakes.stripe.delivery import Deliveries
from tests.fakes.stripe.forms import read_form
from tests.fakes.stripe.routes import call
from tests.fakes.stripe.world import API_VERSION, DAY_S, Row, StripeError, World

T = TypeVar("T")
WAIT_S = 60.0


@dataclass
class Fail:
    status: int = 500
    done: bool = False
    code: str = ""
    retry_after: int | str | None = None


@dataclass
class Cut:
    done: bool = False


@dataclass
class Slow:
    seconds: float
    done: bool = False


@dataclass
class Raw:
    body: bytes = b"<html>no JSON</html>"


Fault = Fail | Cut | Slow | Raw


@dataclass
class Call:
    """A call that was received, and the status that was answered (0: the connection was broken)."""

    method: str
    path: str
    params: Row
    key: str
    status: int = 0
    replayed: bool = False


@dataclass
class _Kept:
    """What is kept for an idempotency key; no status: it is being carried out."""

    asked: tuple[str, str, str]
    status: int = 0
    body: Row = field(default_factory=dict)


class Stripe:
    """`calls` holds all calls so far. `world` belongs to the server's thread: reach it through `do`."""

    url: str

    def __init__(self, *, port: int = 0, state: Path | None = None, public_url: str = "") -> None:
        self.world = World(state)
        self.deliveries = Deliveries(self.world)
        self.world.on_event = self.deliveries.take
        self.calls: list[Call] = []
        self._port, self._public_url = port, public_url
        self._kept: dict[str, _Kept] = {}
        self._faults: list[tuple[str, list[Fault]]] = []
        self._chances: list[tuple[float, str, tuple[Fault, ...], random.Random]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), name="stripe", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)

    # ── What a test orders ──────────────────────────────────────────────────────────────────────────────

    def do(self, act: Callable[[World], T]) -> T:
        """Call `act` in the server's thread."""

        async def run() -> T:
            result = act(self.world)
            self.world.save()
            return result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def fault(self, part: str, *steps: Fault, times: int = 1) -> None:
        """The next calls whose method and path contain `part` take these steps."""
        self._faults.append((part, list(steps) * times))

    def now_and_then(self, share: float, part: str, *steps: Fault, seed: int) -> None:
        """One of the steps for a share of the calls whose method and path contain `part`."""
        self._chances.append((share, part, steps, random.Random(seed)))

    def no_faults(self) -> None:
        self._faults.clear()
        self._chances.clear()

    def forget_keys(self) -> None:
        """As Stripe does after a day."""
        self._kept.clear()

    def pay(self, session_id: str) -> str:
        """Pay a checkout session. Returns the address that the customer is sent to."""
        return self.do(lambda world: checkout.complete(world, world.get("checkout.session", session_id)))

    def card(self, customer_id: str, card: str) -> None:
        """How the customer's card answers from now on."""
        self.do(lambda world: world.get("customer", customer_id).update(_card=card))

    def advance(self, *, days: float) -> None:
        """Move the clock; renewals, retries and expiries happen on the way."""
        self.do(lambda world: subscriptions.advance(world, int(days * DAY_S)))

    def dispute(self, charge_id: str, cents: int | None = None) -> Row:
        return self.do(lambda world: money.dispute(world, charge_id, cents))

    def decide(self, dispute_id: str, *, won: bool) -> Row:
        return self.do(lambda world: money.decide(world, dispute_id, won=won))

    def onboard(self, account_id: str) -> Row:
        return self.do(lambda world: money.onboard(world, account_id))

    def restrict(self, account_id: str) -> Row:
        return self.do(lambda world: money.restrict(world, account_id))

    def pay_out(self, account_id: str) -> Row:
        return self.do(lambda world: money.pay_out(world, account_id))

    def count(self, part: str) -> int:
        """How many calls so far have `part` in method and path."""
        return sum(part in f"{each.method} {each.path}" for each in self.calls)

    # ── The server ──────────────────────────────────────────────────────────────────────────────────────

    async def serve(self) -> None:
        """Serve until the process or the `with` block ends."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", self._api)
        pages.add_to(app.router, self.world)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.world.serve_at(self._public_url or self.url)
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _api(self, http: web.Request) -> web.StreamResponse:
        form = await http.text() if http.method == "POST" else ""
        pairs = [*http.query.items(), *parse_qsl(form, keep_blank_values=True)]
        params = read_form(pairs)
        call = Call(http.method, http.path, params, http.headers.get("Idempotency-Key", ""))
        self.calls.append(call)
        # What is only given again takes no fault, so that each step meets a call that can be carried out.
        fault = None if call.key in self._kept else self._next_fault(f"{call.method} {call.path}")
        if isinstance(fault, Slow) and not fault.done:
            await asyncio.sleep(fault.seconds)
        if isinstance(fault, Cut) and not fault.done:
            _break_off(http)
        headers = {"Request-Id": f"req_{secrets.token_hex(7)}"}
        try:
            self._check(http)
            status, body = self._once(call, repr(sorted(pairs)), fault)
        except StripeError as error:
            status, body = error.status, {"error": error.body}
        if isinstance(fault, Cut):
            _break_off(http)
        if isinstance(fault, Slow) and fault.done:
            await asyncio.sleep(fault.seconds)
        call.status = status
        if isinstance(fault, Raw):
            return web.Response(body=fault.body, headers=headers)
        if isinstance(fault, Fail) and fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        if call.key:
            headers["Idempotency-Key"] = call.key
        if call.replayed:
            headers["Idempotent-Replayed"] = "true"
        return web.json_response(body, status=status, headers=headers)

    def _check(self, http: web.Request) -> None:
        kind, _, given = http.headers.get("Authorization", "").partition(" ")
        key = b64decode(given).decode().partition(":")[0] if kind == "Basic" else given
        if not key.startswith("sk_test_"):
            raise StripeError(401, "Invalid API Key provided.")
        version = http.headers.get("Stripe-Version", "")
        if version != API_VERSION:
            raise StripeError(400, f"Invalid Stripe API version: {version or 'none'}")

    def _once(self, call: Call, asked: str, fault: Fault | None) -> tuple[int, Row]:
        """Carry a call out, or give again what is kept for its key."""
        if call.method != "POST" or not call.key:
            return self._carry_out(call, fault)
        mine = (call.method, call.path, asked)
        if (kept := self._kept.get(call.key)) is not None:
            if kept.asked != mine:
                raise StripeError(
                    400,
                    "Keys for idempotent requests can only be used with the same parameters they were first used with.",
                    kind="idempotency_error",
                )
            call.replayed = True
            return kept.status, kept.body
        status, body = self._carry_out(call, fault)
        # As at Stripe, nothing is kept of a call that was refused before it was carried out.
        if (
            status not in (409, 429)
            and body.get("error", {}).get("code", "").partition("_")[0] != "parameter"
        ):
            self._kept[call.key] = _Kept(mine, status, body)
        return status, body

    def _carry_out(self, call_: Call, fault: Fault | None) -> tuple[int, Row]:
        if isinstance(fault, Fail) and not fault.done:
            return fault.status, _error_of(fault)
        try:
            status, body = 200, call(self.world, call_.method, call_.path, dict(call_.params))
        except StripeError as error:
            status, body = error.status, {"error": error.body}
        self.world.save()
        if isinstance(fault, Fail):
            return fault.status, _error_of(fault)
        return status, body

    def _next_fault(self, called: str) -> Fault | None:
        for part, steps in self._faults:
            if steps and part in called:
                return steps.pop(0)
        for share, part, choices, chance in self._chances:
            if part in called and chance.random() < share:
                return chance.choice(choices)
        return None


def _error_of(fault: Fail) -> Row:
    kind = "rate_limit_error" if fault.status == 429 else "api_error"
    error: Row = {"type": kind, "message": "An error on order."}
    return {"error": error | ({"code": fault.code} if fault.code else {})}


def _break_off(http: web.Request) -> NoReturn:
    assert http.transport is not None
    http.transport.abort()
    raise ConnectionResetError
