"""Fault scripts: what goes wrong with a mailbox while it is read. Each runs over a mailbox of its own.

A script fills its scenario's mailbox, schedules the faults, and states what must be on the device in the end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from bench.mail import sample_mails
from tests.fakes.google import GmailBox
from tests.fakes.graph import GraphBox
from tests.fakes.identity import Fail as TokenFail
from tests.fakes.identity import Identity, Lost
from tests.fakes.mailboxes import Bytes, Change, Clip, Cut, Fail, Slow

WAIT_S: Final = 2.0  # the value of Retry-After
PAGE: Final = 100
LATENCY_S: Final = 0.01  # delay of each answer, so that requests overlap
_FOLDERS: Final = ("id-inbox", "id-inbox", "id-archive", "id-Clients")
_CHANNELS: Final = (("Sales", "General"), ("Sales", "Offers"))


@dataclass
class Scenario:
    """A user's mailbox, and what must have become of its messages in the end.

    `expected`: titles the device must hold, once each. `listed`: ids of messages that the journal must list with a
    reason. `delivered_or_listed`: id → title of malformed messages, which are on the device once or listed. Anything
    else on the device is a fault.
    """

    name: str
    provider: str
    box: Any
    identity: Identity
    size: int
    seed: int = 0
    expected: Counter[str] = field(default_factory=Counter)
    listed: set[str] = field(default_factory=set)
    delivered_or_listed: dict[str, str] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)  # titles that may be on the device, once
    after_runs: list[Callable[[], object]] = field(
        default_factory=list
    )  # steps of the script, each done after a successful run
    may_need_reconnect: bool = False  # whether the account may be lost, and is then connected again
    _roots: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def account(self) -> str:
        return f"{self.box.name}@example.com"

    def when(self, number: int, act: Callable[[], object]) -> None:
        """Call `act` at about the request with this number, out of those for 2,000 messages."""
        self.box.when(max(1, number * self.size // 2_000), act)

    @property
    def rng(self) -> random.Random:
        return random.Random(f"{self.name} {self.seed}")

    def title(self, number: int) -> str:
        return f"{self.name}, message {number}"

    def fill(self, first: int = 0, last: int | None = None) -> list[str]:
        """Add messages; returns their ids. Outlook's go to three folders, Teams' to threads in two channels."""
        return [self.add(number) for number in range(first, self.size if last is None else last)]

    def add(self, number: int) -> str:
        title = self.title(number)
        self.expected[title] += 1
        return self.put(title, number)

    def put(self, title: str, number: int = 0) -> str:
        box = self.box
        if isinstance(box, GmailBox):
            return box.add(sample_mails.plain(title))
        assert isinstance(box, GraphBox)
        if self.provider == "outlook":
            if number % 2:
                return box.add(title, f"Hello,\n\ntask: {title}", folder=_FOLDERS[number % 4])
            page = f"<p>Hello,</p><p>task: {title}</p>"
            return box.add(title, page, kind="html", folder=_FOLDERS[number % 4])
        team, channel = _CHANNELS[number // 10 % 2]
        root = self._roots.get((team, channel), "") if number % 10 else ""
        key = box.post(team, channel, f"<p>Hello,</p><p>task: {title}</p>", reply_to=root)
        if not root:
            self._roots[team, channel] = key
        return f"t-{team}/19:{channel}@thread/{key}"


Script = Callable[[Scenario], None]


def no_faults(scenario: Scenario) -> None:
    scenario.fill()


def every_nth(number: int, fault: Any, part: str = "") -> Script:
    def script(scenario: Scenario) -> None:
        scenario.fill()
        scenario.box.every(number, part, fault)

    return script


def throttled(*, dated: bool = False, status: int = 429) -> Script:
    """Throttled at the first page, then occasionally, and once for several requests in a row."""

    def script(scenario: Scenario) -> None:
        scenario.fill()
        refusal = Fail(status, retry_after=WAIT_S, dated=dated)
        scenario.box.fault("", Change(dict), Change(dict), refusal)
        scenario.box.every(317, "", refusal)
        scenario.when(900, lambda: scenario.box.fault("", *[refusal] * 4))

    return script


def refused_tokens(scenario: Scenario) -> None:
    """Access tokens expire early, with four requests in flight; and an occasional 401 without cause."""
    scenario.fill()
    for number in range(150, 2_000, 190):
        scenario.when(number, lambda: scenario.identity.expire(scenario.account))
    scenario.box.every(431, "", Fail(401))


def rotating_refresh_tokens(scenario: Scenario) -> None:
    """Each refresh invalidates the previous refresh token; the provider's sign-in is briefly unavailable."""
    scenario.fill()
    scenario.identity.rotating.add(scenario.account)
    scenario.identity.script(None, TokenFail(503, retry_after=1), account=scenario.account)
    for number in range(100, 2_000, 120):
        scenario.when(number, lambda: scenario.identity.expire(scenario.account))


def revoked(scenario: Scenario) -> None:
    """The user revokes the permission twice on the way, and connects the account again."""
    scenario.fill()
    scenario.may_need_reconnect = True
    for number in (700, 1_500):
        scenario.when(number, lambda: scenario.identity.revoke(scenario.account))


def lost_rotation(scenario: Scenario) -> None:
    """The answer with the new refresh token is lost and the old one is invalid: the user has to connect again."""
    scenario.fill()
    scenario.may_need_reconnect = True
    scenario.identity.rotating.add(scenario.account)
    scenario.identity.script(None, Lost(), account=scenario.account)
    for number in (400, 800):
        scenario.when(number, lambda: scenario.identity.expire(scenario.account))


def repeat_items(answer: dict[str, Any]) -> dict[str, Any]:
    for name in ("messages", "value", "history"):
        if isinstance(answer.get(name), list):
            answer[name] = answer[name] + answer[name][::-1]
    return answer


def duplicate_items(scenario: Scenario) -> None:
    """Each page lists its items twice, and pages overlap."""
    scenario.fill()
    scenario.box.overlap = 17
    scenario.box.every(1, "", Change(repeat_items))


def looping(scenario: Scenario) -> None:
    """Page tokens lead back to the first page, in the first two reads."""
    scenario.fill()

    def loop(answer: dict[str, Any]) -> dict[str, Any]:
        if "messages" in answer:
            return {**answer, "nextPageToken": "0"}
        return answer

    scenario.box.fault("/messages?", *[Change(dict), Change(loop), Change(loop)] * 2)


def looping_links(scenario: Scenario) -> None:
    """The same for Graph: links to the page itself; once a link to another host."""
    scenario.fill()

    def away(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "@odata.nextLink": "http://169.254.169.254/latest"}

    def again_and_again(answer: dict[str, Any]) -> dict[str, Any]:
        link = answer.get("@odata.nextLink", "")
        return {**answer, "@odata.nextLink": link.replace("skiptoken=100", "skiptoken=0")}

    scenario.box.fault("/messages?", Change(away), *[Change(again_and_again)] * 4)


def empty_pages(scenario: Scenario) -> None:
    scenario.fill()
    scenario.box.blanks = True


def expired_cursor(scenario: Scenario) -> None:
    """The cursor of the last read has expired: between two reads, and while the third is listing."""
    half = scenario.size // 2
    scenario.fill(0, half)

    def more() -> None:
        scenario.fill(half, half + half // 2)
        scenario.box.forget()

    def rest() -> None:
        scenario.fill(half + half // 2, scenario.size)
        scenario.box.when(len(scenario.box.asked) + 3, scenario.box.forget)  # while the third is listing

    scenario.after_runs += [more, rest]


def deleted(scenario: Scenario) -> None:
    """Some messages were deleted before the listing, others between the listing and the request for them."""
    keys = scenario.fill()
    for number in range(0, scenario.size, 20):
        scenario.expected.pop(scenario.title(number))
        scenario.box.delete(keys[number])
    for place, number in enumerate(range(7, scenario.size, 100)):
        scenario.expected.pop(scenario.title(number))
        scenario.optional.add(scenario.title(number))
        scenario.when(300 + 60 * place, partial(scenario.box.delete, keys[number]))


def oversized_and_malformed(scenario: Scenario) -> None:
    """Very large and malformed messages among the others."""
    box, half = scenario.box, scenario.size // 2
    large, bad = (f"{scenario.name}, {what} message" for what in ("a large", "a malformed"))
    scenario.fill(0, half)
    if isinstance(box, GmailBox):
        for title, raw in sample_mails.large(large):
            box.add(raw)
            scenario.expected[title] += 1
        scenario.delivered_or_listed = {box.add(raw): title for title, raw in sample_mails.malformed(bad)}
        scenario.listed.add(box.add(sample_mails.oversized()))
    else:
        for title, raw in sample_mails.large(large)[:2]:
            box.add("Long", raw.decode())
            scenario.expected[title] += 1
        scenario.delivered_or_listed = {
            box.add(**row): title for title, row in sample_mails.malformed_rows(bad)
        }
        scenario.listed.add(box.add("Endless", sample_mails.filler(25 << 20)))
    scenario.fill(half)


def unreadable_messages(scenario: Scenario) -> None:
    """The provider never returns some messages, and returns others only as truncated JSON."""
    keys = scenario.fill()
    for place, fault in (
        (100, Fail(400, "badRequest")),
        (900, Bytes()),
        (1_500, Fail(400, "failedPrecondition")),
    ):
        number = place * scenario.size // 2_000
        scenario.expected.pop(scenario.title(number))
        scenario.listed.add(keys[number])
        scenario.box.every(1, f"/{keys[number]}?", fault)


def arriving_mail(scenario: Scenario) -> None:
    """Mail arrives during the read, so pages shift."""
    new = scenario.size // 10
    scenario.fill(0, scenario.size - new)
    scenario.box.overlap = 3
    for place, number in enumerate(range(scenario.size - new, scenario.size)):
        scenario.when(20 + 1_600 * place // new, partial(scenario.add, number))


def random_faults(scenario: Scenario) -> None:
    """A random mix of faults, drawn from the seed."""
    rng, box = scenario.rng, scenario.box
    new = scenario.size * rng.randint(3, 15) // 100
    scenario.fill(0, scenario.size - new)
    box.overlap, box.blanks = rng.choice((0, 9)), rng.random() < 0.5
    kinds = [
        Fail(500), Fail(502), Fail(503), Fail(429), Cut(), Cut(0.0), Cut(0.5), Cut(0.99), Clip(), Clip(0.9), Bytes(b""),
        Slow(0.3), Change(repeat_items), Fail(429, retry_after=0.2), Fail(503, retry_after=WAIT_S, dated=True),
    ]  # fmt: skip
    box.now_and_then(rng.choice((0.02, 0.05, 0.1)), "", *rng.sample(kinds, 9), seed=scenario.seed)
    if rng.random() < 0.5:
        scenario.identity.rotating.add(scenario.account)
    acts: list[Callable[[], object]] = [lambda: scenario.identity.expire(scenario.account)] * 5
    acts += [lambda: box.fault("", Fail(429, retry_after=WAIT_S)), box.forget]
    if rng.random() < 0.7:
        scenario.may_need_reconnect = True
        acts.append(lambda: scenario.identity.revoke(scenario.account))
    for number in range(scenario.size - new, scenario.size):
        acts.append(partial(scenario.add, number))
    for act, number in zip(acts, rng.sample(range(5, scenario.size - new), len(acts)), strict=True):
        box.when(number, act)


_GMAIL: Final[dict[str, Script]] = {
    "no faults": no_faults,
    "expired tokens": refused_tokens,
    "429 in seconds": throttled(),
    "429 by a date": throttled(dated=True),
    "throttling by 403": every_nth(97, Fail(403, "userRateLimitExceeded")),
    "occasional 500": every_nth(41, Fail(500)),
    "503 with Retry-After": throttled(status=503),
    "slow answers": every_nth(29, Slow(0.7)),
    "connections cut in the body": every_nth(43, Cut(0.5)),
    "truncated JSON": every_nth(37, Clip()),
    "duplicate items": duplicate_items,
    "empty pages": empty_pages,
    "looping pages": looping,
    "expired cursor": expired_cursor,
    "revoked permission": revoked,
    "rotated refresh tokens": rotating_refresh_tokens,
    "lost rotation": lost_rotation,
    "deleted messages": deleted,
    "oversized and malformed mails": oversized_and_malformed,
    "unreadable messages": unreadable_messages,
    "arriving mail": arriving_mail,
    "random faults 1": random_faults,
    "random faults 2": random_faults,
}
_OUTLOOK: Final[dict[str, Script]] = {
    "503 by a date": throttled(dated=True, status=503),
    "expired tokens": refused_tokens,
    "truncated JSON": every_nth(37, Clip()),
    "duplicate items": duplicate_items,
    "looping and foreign links": looping_links,
    "expired cursor": expired_cursor,
    "revoked permission": revoked,
    "deleted messages": deleted,
    "oversized and malformed mails": oversized_and_malformed,
    "random faults 3": random_faults,
    "random faults 4": random_faults,
}
_TEAMS: Final[dict[str, Script]] = {
    "429 in seconds": throttled(),
    "connections cut in the body": every_nth(23, Cut(0.5)),
    "duplicate items": duplicate_items,
    "expired cursor": expired_cursor,
    "random faults 5": random_faults,
}

SCRIPTS: Final[dict[str, tuple[str, Script]]] = {
    f"{provider}: {name}": (provider, script)
    for provider, scripts in (("gmail", _GMAIL), ("outlook", _OUTLOOK), ("teams", _TEAMS))
    for name, script in scripts.items()
}
SHORT_SELECTION: Final = (
    "gmail: 429 in seconds", "gmail: expired tokens", "outlook: expired cursor", "teams: duplicate items",
    "gmail: random faults 1",
)  # fmt: skip
