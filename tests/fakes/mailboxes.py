"""The base of the fake Gmail and the fake Microsoft Graph: mailboxes on one HTTP server, and scripted faults.

    box.fault("/messages/", Fail(503), Fail(429, retry_after=0.2))    # the next two requests for a message
    box.fault("/messages", Change(lambda answer: {**answer, "nextPageToken": "again"}), times=99)
    box.every(7, "", Fail(500))                                        # every seventh request
    box.now_and_then(0.1, "", Fail(500), Cut(), seed=3)                # one of these, for a tenth of the requests
    box.when(300, box.forget)                                          # just before the 300th request

A request's bearer token selects the box: either the box's own token or, with `Google(identity)`, one that the Identity
issued for the account of the same name. A box records `peak`, the largest number of requests at the same time; `early`,
requests that came before the time that a Retry-After had named; and `asked`, the paths.
A fault is one of:
    Fail(status, reason, retry_after)   an error; retry_after is in seconds, or sent as a date with dated=True
    Slow(seconds)                       the correct answer, later
    Cut(share)                          the connection breaks after this share of the correct body
    Clip(share)                         the first part of the correct body, sent as if complete
    Bytes(body)                         200 with these bytes
    Change(function)                    the correct answer, changed
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, NoReturn, Self

import orjson
from aiohttp import web

from tests.fakes.identity import Identity

WAIT_S = 10.0
# A request over another connection may have been sent when the answer with the Retry-After was still under way.
_ON_THE_WAY_S = 1.2


@dataclass
class Fail:
    status: int = 500
    reason: str = ""
    retry_after: float | str | None = None
    dated: bool = False


@dataclass
class Slow:
    seconds: float


@dataclass
class Cut:
    share: float | None = None  # None: not even a status


@dataclass
class Clip:
    share: float = 0.5


@dataclass
class Bytes:
    body: bytes = b"no JSON"


@dataclass
class Change:
    function: Callable[[dict[str, Any]], dict[str, Any]]


Fault = Fail | Slow | Cut | Clip | Bytes | Change


@dataclass
class _Rule:
    part: str
    steps: list[Fault]


@dataclass
class _Every:
    number: int
    part: str
    step: Fault
    seen: int = 0


@dataclass
class _NowAndThen:
    share: float
    part: str
    steps: tuple[Fault, ...]
    chance: random.Random


@dataclass
class Box:
    """One account's mailbox. `access` is the token it accepts; `rejected` lists the tokens that it refused."""

    name: str
    access: str = ""
    latency_s: float = 0.0
    page: int = 0  # how many a page holds at most; 0: as many as are asked for
    overlap: int = 0  # how many of a page the next one has again
    blanks: bool = False  # before each page but the first comes an empty one
    asked: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    peak: int = 0
    running: int = 0
    _rules: list[_Rule] = field(default_factory=list)
    _everies: list[_Every] = field(default_factory=list)
    _chances: list[_NowAndThen] = field(default_factory=list)
    _whens: dict[int, Callable[[], object]] = field(default_factory=dict)
    _held: list[tuple[object, float, float]] = field(default_factory=list)  # connection, begin, end

    def __post_init__(self) -> None:
        self.access = self.access or f"{self.name}:1"

    def expire(self) -> None:
        """Make the current token invalid."""
        self.access = f"{self.name}:{int(self.access.rpartition(':')[2]) + 1}"

    async def token(self, rejected: str | None) -> str:
        """The current token, as the product's token callback returns it."""
        if rejected is not None:
            self.rejected.append(rejected)
        return self.access

    def fault(self, part: str, *steps: Fault, times: int = 1) -> None:
        """The next requests whose path contains `part` take these steps."""
        self._rules.append(_Rule(part, list(steps) * times))

    def every(self, number: int, part: str, step: Fault) -> None:
        self._everies.append(_Every(number, part, step))

    def now_and_then(self, share: float, part: str, *steps: Fault, seed: int) -> None:
        self._chances.append(_NowAndThen(share, part, steps, random.Random(seed)))

    def when(self, number: int, act: Callable[[], object]) -> None:
        """Call `act` when the request of this number arrives."""
        self._whens[number] = act

    def span(self, token: str, size: int) -> tuple[int, int]:
        """The start and end of the page that a token names."""
        if token.startswith("blank"):
            start = int(token.removeprefix("blank"))
            return start, start
        start = int(token or 0)
        return max(0, start - self.overlap), start + min(size, self.page or size)

    def following(self, token: str, end: int) -> str:
        """The token of the page after one that ends at `end`."""
        return f"blank{end}" if self.blanks and not token.startswith("blank") else str(end)

    def next_fault(self, path: str) -> Fault | None:
        for rule in self._rules:
            if rule.steps and rule.part in path:
                return rule.steps.pop(0)
        for every in self._everies:
            if every.part in path:
                every.seen += 1
                if every.seen % every.number == 0:
                    return every.step
        for each in self._chances:
            if each.part in path and each.chance.random() < each.share:
                return each.chance.choice(each.steps)
        return None

    def note(self, path: str, connection: object, on_the_way_s: float) -> None:
        self.asked.append(path)
        if act := self._whens.pop(len(self.asked), None):
            act()
        now = time.monotonic()
        self._held = [held for held in self._held if now < held[2]]
        if any(connection is told or now > begins + on_the_way_s for told, begins, _ in self._held):
            self.early.append(path)

    def held(self, seconds: float, connection: object) -> None:
        now = time.monotonic()
        self._held.append((connection, now, now + seconds))


class NotHere(Exception):
    """An error that the provider's own rules demand."""

    def __init__(self, status: int = 404, reason: str = "notFound") -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Server:
    """A fake provider on loopback. It runs in a thread."""

    url: str
    on_the_way_s = _ON_THE_WAY_S

    def __init__(self, identity: Identity | None = None) -> None:
        self.boxes: dict[str, Any] = {}
        self._identity = identity
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        access = http.headers.get("Authorization", "").removeprefix("Bearer ")
        box = self._box_of(access)
        if box is None:
            return web.json_response(self.error(401, "authError"), status=401)
        box.note(http.path_qs, http.transport, self.on_the_way_s)
        box.running += 1
        box.peak = max(box.peak, box.running)
        try:
            response = await self._respond(box, http, access)
            # Sent while it counts: to the caller, it is under way until then.
            await response.prepare(http)
            await response.write_eof()
            return response
        finally:
            box.running -= 1

    def _box_of(self, access: str) -> Any:
        name = access.rpartition(":")[0]
        if self._identity is not None:
            name = self._identity.given_to(access).partition("@")[0]
        return self.boxes.get(name)

    def _accepts(self, box: Box, access: str) -> bool:
        return self._identity.accepts(access) if self._identity is not None else access == box.access

    async def _respond(self, box: Box, http: web.Request, access: str) -> web.StreamResponse:
        if not self._accepts(box, access):
            return web.json_response(self.error(401, "authError"), status=401)
        if box.latency_s:
            await asyncio.sleep(box.latency_s)
        change: Callable[[Any], Any] | None = None
        cut = clip = None
        match box.next_fault(http.path_qs):
            case Fail(status, reason, retry_after, dated):
                if isinstance(retry_after, int | float):
                    at = time.time() + retry_after
                    if dated:  # in whole seconds
                        at = math.ceil(at)
                        retry_after = formatdate(at, usegmt=True)
                    box.held(at - time.time(), http.transport)
                headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
                return web.json_response(self.error(status, reason), status=status, headers=headers)
            case Cut(share):
                if share is None:
                    self._break_off(http)
                cut = share
            case Clip(share):
                clip = share
            case Bytes(body):
                return web.Response(body=body, content_type="application/json")
            case Slow(seconds):
                await asyncio.sleep(seconds)
            case Change(function):
                change = function
        try:
            answer = self.answer(box, http)
        except NotHere as error:
            return web.json_response(self.error(error.status, error.reason), status=error.status)
        kind = "message/rfc822" if isinstance(answer, bytes) else "application/json"
        body = answer if isinstance(answer, bytes) else orjson.dumps(change(answer) if change else answer)
        if cut is not None:
            begun = web.StreamResponse(headers={"Content-Type": kind, "Content-Length": str(len(body))})
            await begun.prepare(http)
            await begun.write(body[: int(len(body) * cut)])
            self._break_off(http)
        return web.Response(body=body if clip is None else body[: int(len(body) * clip)], content_type=kind)

    def _break_off(self, http: web.Request) -> NoReturn:
        assert http.transport is not None
        http.transport.abort()
        raise ConnectionResetError

    def error(self, status: int, reason: str) -> dict[str, Any]:
        raise NotImplementedError

    def answer(self, box: Any, http: web.Request) -> Any:
        raise NotImplementedError
