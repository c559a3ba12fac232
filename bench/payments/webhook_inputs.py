"""Random inputs of the webhook: events, forgeries and garbage, the same for a seed.

An event that is signed may claim anything; nothing of it may be believed, since it is only a reason to ask Stripe.
"""

from __future__ import annotations

import copy
import json
import random
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.fakes.stripe import signed

_OTHER_SECRET: Final = "whsec_of_somebody_else"
_STATES: Final = ("active", "trialing", "past_due", "canceled", "unpaid", "paused", "from_the_future")
_TYPES: Final = (
    "checkout.session.completed",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.updated",
    "invoice.paid",
    "invoice.payment_failed",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.closed",
    "account.updated",
    "from.the.future",
)
_ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, 2**53, 2**63, -(2**70), 1e300, "", "x" * 300, "\0", "a\0b", "\ud83d\ude00",
    "sub_1' OR '1'='1", "../../etc/passwd", "\u202e", [], {}, [[]], {"id": {}}, [None] * 50, {"object": []},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Input:
    """`sign` makes the header when it is sent: what is stamped 400 s ahead earlier than that may be right by then."""

    body: bytes
    sign: Callable[[], bytes]
    is_signed: bool


def some_input(
    chance: random.Random, subscriptions: Sequence[str], customers: Sequence[str], secret: str
) -> Input:
    body, seed = chance.choice(_BODIES)(chance, subscriptions, customers), chance.getrandbits(64)
    make, is_signed = chance.choice(_SIGNATURES)
    return Input(body, lambda: make(random.Random(seed), body, secret), is_signed)


# ── Bodies ──────────────────────────────────────────────────────────────────────────────────────────────


def _claim(chance: random.Random, subscriptions: Sequence[str], customers: Sequence[str]) -> dict[str, Any]:
    """An event as Stripe makes them, which says what is not so."""
    subscription = chance.choice([*subscriptions, f"sub_{chance.getrandbits(64):x}"])
    kind = chance.choice(_TYPES)
    about: dict[str, Any] = {
        "id": subscription,
        "object": "subscription",
        "customer": chance.choice(customers),
        "status": chance.choice(_STATES),
        "cancel_at_period_end": chance.random() < 0.5,
        "items": {
            "data": [{"quantity": 400, "price": {"id": "price_x", "metadata": {"adiuva_tier": "team"}}}]
        },
    }
    if kind.startswith("invoice."):
        parent = {"subscription_details": {"subscription": subscription}}
        about = {"id": f"in_{chance.getrandbits(64):x}", "object": "invoice", "parent": parent}
    elif kind.startswith("checkout."):
        about = {
            "id": f"cs_{chance.getrandbits(64):x}",
            "object": "checkout.session",
            "subscription": subscription,
        }
    elif kind.startswith("charge.dispute."):
        about = {"id": f"dp_{chance.getrandbits(64):x}", "object": "dispute", "status": "lost", "amount": 1}
    return {
        "id": f"evt_{chance.getrandbits(64):x}",
        "object": "event",
        "type": kind,
        "created": int(time.time()) - chance.randint(-9999, 9999),
        "livemode": chance.random() < 0.1,
        "api_version": chance.choice(("2026-10-28.endive", "2019-01-01", None)),
        "data": {"object": about},
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each container within, with each of its keys."""
    items = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [(value, key) for key, _ in items] + [place for _, each in items for place in _places(each)]


def _odd(chance: random.Random, subscriptions: Sequence[str], customers: Sequence[str]) -> bytes:
    """An event with odd values in some places, or without some."""
    event = _claim(chance, subscriptions, customers)
    for _ in range(chance.randint(1, 3)):
        places = _places(event)
        if places:
            container, key = chance.choice(places)
            if chance.random() < 0.3:
                del container[key]
            else:
                container[key] = copy.deepcopy(chance.choice(_ODD))
    return _json(event)


def _broken(chance: random.Random, subscriptions: Sequence[str], customers: Sequence[str]) -> bytes:
    body = bytearray(_json(_claim(chance, subscriptions, customers)))
    if chance.random() < 0.5:
        return bytes(body[: chance.randrange(len(body))])
    for _ in range(chance.randint(1, 8)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body)


_BODIES: Final[tuple[Callable[..., bytes], ...]] = (
    lambda *known: _json(_claim(*known)),
    lambda *known: _json(_claim(*known)),
    _odd,
    _odd,
    _broken,
    lambda chance, *_: chance.randbytes(chance.randint(0, 2000)),
    lambda chance, *_: _json(chance.choice(_ODD)),
    lambda chance, *_: b"[" * chance.choice((100, 2000, 100_000)),
    lambda chance, *_: b'{"id":"evt_x","data":' * chance.choice((5, 600)),
    lambda chance, *_: chance.choice(
        (b"", b"null", b"{}", b"NaN", b'"\\ud800"', b"\xef\xbb\xbf{}", b"\xff\xfe{}")
    ),
)


# ── Signatures ──────────────────────────────────────────────────────────────────────────────────────────


def _right(body: bytes, secret: str, at: float = 0.0) -> str:
    return signed(body, secret, int(time.time() + at))["Stripe-Signature"]


def _right_header(chance: random.Random, body: bytes, secret: str) -> bytes:
    header = _right(body, secret, chance.randint(-200, 200))
    other = f"v1={chance.getrandbits(256):064x}"
    spelled = chance.choice(
        (header, f"{header},{other}", f"v0=00, {header}", header.replace(",", f",{other},"))
    )
    return spelled.encode()


def _wrong_header(chance: random.Random, body: bytes, secret: str) -> bytes:
    header, now = _right(body, secret), int(time.time())
    spelled = chance.choice(
        (
            _right(body, _OTHER_SECRET),
            _right(body, secret, -400),
            _right(body, secret, 400),
            _right(body + b" ", secret),
            header.replace("v1=", "v0="),
            header.replace("t=", "t=1,t="),
            header.replace(f"t={now}", f"t={now + 1}") if f"t={now}" in header else "",
            header[:-1],
            header.upper(),
            "",
            "t=,v1=",
            f"t={now}",
            f"t=-{now},v1=00",
            f"t={'9' * 30},v1=00",
            f"t={now}.0,v1=00",
            "," * 3000,
        )
    )
    return spelled.encode()


def _garbage_header(chance: random.Random, body: bytes, secret: str) -> bytes:
    letters = string.printable.replace("\r", "").replace("\n", "").replace("\x0b", "").replace("\x0c", "")
    if chance.random() < 0.3:
        return bytes(chance.randrange(0x80, 0x100) for _ in range(chance.randint(1, 80)))
    return "".join(chance.choice(letters) for _ in range(chance.randint(0, 200))).strip().encode()


_SIGNATURES: Final[tuple[tuple[Callable[..., bytes], bool], ...]] = (
    (_right_header, True),
    (_right_header, True),
    (_right_header, True),
    (_wrong_header, False),
    (_wrong_header, False),
    (_garbage_header, False),
)
