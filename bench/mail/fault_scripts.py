"""What is done to a mailbox while it is read: more than thirty scripts, each over a mailbox of its own.

A script fills its scene's mailbox, arranges what goes wrong, and says what must come of it.
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

WAIT_S: Final = 2.0  # of a Retry-After
PAGE: Final = 100
LATENCY_S: Final = 0.01  # of each answer, so that requests meet
_FOLDERS: Final = ("id-inbox", "id-inbox", "id-archive", "id-Clients")
_CHANNELS: Final = (("Sales", "General"), ("Sales", "Offers"))


@dataclass
class Scene:
    """A mailbox of one user, and what must have become of its messages in the end.

    `due`: what the device must hold, each once. `listed`: ids of messages that must be in the journal with a reason.
    `either`: ids of spoilt ones, with what they ask for: it is on the device once, or they are listed. All else that is
    there is a fault.
    """

    name: str
    provider: str
    box: Any
    identity: Identity
    size: int
    seed: int = 0
    due: Counter[str] = field(default_factory=Counter)
    listed: set[str] = field(default_factory=set)
    either: dict[str, str] = field(default_factory=dict)
    perhaps: set[str] = field(default_factory=set)  # what may be on the device, once
    after: list[Callable[[], object]] = field(default_factory=list)  # each after a run that ended well
    may_be_lost: bool = False  # the account: then it is connected again
    _roots: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def account(self) -> str:
        return f"{self.box.name}@example.com"

    def when(self, number: int, act: Callable[[], object]) -> None:
        """Do something as about this request comes, of those for 2,000 messages."""
        self.box.when(max(1, number * self.size // 2_000), act)

    @property
    def chance(self) -> random.Random:
        return random.Random(f"{self.name} {self.seed}")

    def title(self, number: int) -> str:
        return f"{self.name}, message {number}"

    def fill(self, first: int = 0, last: int | None = None) -> list[str]:
        """The ids of new messages. Those of Outlook lie in three folders, those of Teams in threads of two channels."""
        return [self.add(number) for number in range(first, self.size if last is None else last)]

    def add(self, number: int) -> str:
        title = self.title(number)
        self.due[title] += 1
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


Script = Callable[[Scene], None]


def quiet(scene: Scene) -> None:
    scene.fill()


def every(number: int, fault: Any, part: str = "") -> Script:
    def script(scene: Scene) -> None:
        scene.fill()
        scene.box.every(number, part, fault)

    return script


def throttled(*, dated: bool = False, status: int = 429) -> Script:
    """At its first page, then now and then, and once for several requests in a row."""

    def script(scene: Scene) -> None:
        scene.fill()
        refusal = Fail(status, retry_after=WAIT_S, dated=dated)
        scene.box.fault("", Change(dict), Change(dict), refusal)
        scene.box.every(317, "", refusal)
        scene.when(900, lambda: scene.box.fault("", *[refusal] * 4))

    return script


def refused_tokens(scene: Scene) -> None:
    """Tokens end before their time, with four requests on their way; and a 401 for no reason."""
    scene.fill()
    for number in range(150, 2_000, 190):
        scene.when(number, lambda: scene.identity.expire(scene.account))
    scene.box.every(431, "", Fail(401))


def rotated(scene: Scene) -> None:
    """Each refresh voids the refresh token before; the provider's sign-in is away for a moment."""
    scene.fill()
    scene.identity.rotating.add(scene.account)
    scene.identity.script(None, TokenFail(503, retry_after=1), account=scene.account)
    for number in range(100, 2_000, 120):
        scene.when(number, lambda: scene.identity.expire(scene.account))


def revoked(scene: Scene) -> None:
    """The user takes the permission back half-way, twice, and connects the account again."""
    scene.fill()
    scene.may_be_lost = True
    for number in (700, 1_500):
        scene.when(number, lambda: scene.identity.revoke(scene.account))


def lost_rotation(scene: Scene) -> None:
    """The answer with the new refresh token is lost, and the old one is void: the user has to connect again."""
    scene.fill()
    scene.may_be_lost = True
    scene.identity.rotating.add(scene.account)
    scene.identity.script(None, Lost(), account=scene.account)
    for number in (400, 800):
        scene.when(number, lambda: scene.identity.expire(scene.account))


def again(answer: dict[str, Any]) -> dict[str, Any]:
    for name in ("messages", "value", "history"):
        if isinstance(answer.get(name), list):
            answer[name] = answer[name] + answer[name][::-1]
    return answer


def twice(scene: Scene) -> None:
    """All of a page twice, and some of each page on the next one too."""
    scene.fill()
    scene.box.overlap = 17
    scene.box.every(1, "", Change(again))


def looping(scene: Scene) -> None:
    """Pages that lead back, for the first two readings."""
    scene.fill()

    def loop(answer: dict[str, Any]) -> dict[str, Any]:
        if "messages" in answer:
            return {**answer, "nextPageToken": "0"}
        return answer

    scene.box.fault("/messages?", *[Change(dict), Change(loop), Change(loop)] * 2)


def looping_links(scene: Scene) -> None:
    """The same of Graph: a link to the page itself; once one to another host."""
    scene.fill()

    def away(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "@odata.nextLink": "http://169.254.169.254/latest"}

    def again_and_again(answer: dict[str, Any]) -> dict[str, Any]:
        link = answer.get("@odata.nextLink", "")
        return {**answer, "@odata.nextLink": link.replace("skiptoken=100", "skiptoken=0")}

    scene.box.fault("/messages?", Change(away), *[Change(again_and_again)] * 4)


def blanks(scene: Scene) -> None:
    scene.fill()
    scene.box.blanks = True


def forgotten(scene: Scene) -> None:
    """What the last reading knew has expired: between two readings, and while the third is listing."""
    half = scene.size // 2
    scene.fill(0, half)

    def more() -> None:
        scene.fill(half, half + half // 2)
        scene.box.forget()

    def rest() -> None:
        scene.fill(half + half // 2, scene.size)
        scene.box.when(len(scene.box.asked) + 3, scene.box.forget)  # while the third is listing

    scene.after += [more, rest]


def deleted(scene: Scene) -> None:
    """Some are gone when they are asked for: from the beginning, or since they were listed."""
    keys = scene.fill()
    for number in range(0, scene.size, 20):
        scene.due.pop(scene.title(number))
        scene.box.delete(keys[number])
    for place, number in enumerate(range(7, scene.size, 100)):
        scene.due.pop(scene.title(number))
        scene.perhaps.add(scene.title(number))
        scene.when(300 + 60 * place, partial(scene.box.delete, keys[number]))


def odd(scene: Scene) -> None:
    """Very large and spoilt ones among the others."""
    box, half = scene.box, scene.size // 2
    large, bad = (f"{scene.name}, {what} message" for what in ("a large", "a spoilt"))
    scene.fill(0, half)
    if isinstance(box, GmailBox):
        for title, raw in sample_mails.huge(large):
            box.add(raw)
            scene.due[title] += 1
        scene.either = {box.add(raw): title for title, raw in sample_mails.spoilt(bad)}
        scene.listed.add(box.add(sample_mails.beyond()))
    else:
        for title, raw in sample_mails.huge(large)[:2]:
            box.add("Long", raw.decode())
            scene.due[title] += 1
        scene.either = {box.add(**row): title for title, row in sample_mails.spoilt_rows(bad)}
        scene.listed.add(box.add("Endless", sample_mails.filler(25 << 20)))
    scene.fill(half)


def refused(scene: Scene) -> None:
    """Some messages the provider will not give, now or ever; of others it never gives whole JSON."""
    keys = scene.fill()
    for place, fault in (
        (100, Fail(400, "badRequest")),
        (900, Bytes()),
        (1_500, Fail(400, "failedPrecondition")),
    ):
        number = place * scene.size // 2_000
        scene.due.pop(scene.title(number))
        scene.listed.add(keys[number])
        scene.box.every(1, f"/{keys[number]}?", fault)


def arriving(scene: Scene) -> None:
    """Mail comes while it is read: pages shift under the reader."""
    new = scene.size // 10
    scene.fill(0, scene.size - new)
    scene.box.overlap = 3
    for place, number in enumerate(range(scene.size - new, scene.size)):
        scene.when(20 + 1_600 * place // new, partial(scene.add, number))


def storm(scene: Scene) -> None:
    """All together, as the seed has it."""
    chance, box = scene.chance, scene.box
    new = scene.size * chance.randint(3, 15) // 100
    scene.fill(0, scene.size - new)
    box.overlap, box.blanks = chance.choice((0, 9)), chance.random() < 0.5
    kinds = [
        Fail(500), Fail(502), Fail(503), Fail(429), Cut(), Cut(0.0), Cut(0.5), Cut(0.99), Clip(), Clip(0.9), Bytes(b""),
        Slow(0.3), Change(again), Fail(429, retry_after=0.2), Fail(503, retry_after=WAIT_S, dated=True),
    ]  # fmt: skip
    box.now_and_then(chance.choice((0.02, 0.05, 0.1)), "", *chance.sample(kinds, 9), seed=scene.seed)
    if chance.random() < 0.5:
        scene.identity.rotating.add(scene.account)
    acts: list[Callable[[], object]] = [lambda: scene.identity.expire(scene.account)] * 5
    acts += [lambda: box.fault("", Fail(429, retry_after=WAIT_S)), box.forget]
    if chance.random() < 0.7:
        scene.may_be_lost = True
        acts.append(lambda: scene.identity.revoke(scene.account))
    for number in range(scene.size - new, scene.size):
        acts.append(partial(scene.add, number))
    for act, number in zip(acts, chance.sample(range(5, scene.size - new), len(acts)), strict=True):
        box.when(number, act)


_GMAIL: Final[dict[str, Script]] = {
    "nothing": quiet,
    "tokens that end": refused_tokens,
    "429 in seconds": throttled(),
    "429 by a date": throttled(dated=True),
    "throttling by 403": every(97, Fail(403, "userRateLimitExceeded")),
    "500 now and then": every(41, Fail(500)),
    "503 with a time": throttled(status=503),
    "slow answers": every(29, Slow(0.7)),
    "connections cut in a body": every(43, Cut(0.5)),
    "JSON cut short": every(37, Clip()),
    "everything twice": twice,
    "empty pages": blanks,
    "pages that loop": looping,
    "a position that expired": forgotten,
    "permission taken back": revoked,
    "rotated refresh tokens": rotated,
    "a rotation that is lost": lost_rotation,
    "deleted meanwhile": deleted,
    "huge and spoilt mails": odd,
    "messages that are refused": refused,
    "mail that arrives": arriving,
    "storm 1": storm,
    "storm 2": storm,
}
_OUTLOOK: Final[dict[str, Script]] = {
    "503 by a date": throttled(dated=True, status=503),
    "tokens that end": refused_tokens,
    "JSON cut short": every(37, Clip()),
    "everything twice": twice,
    "links that loop or lead away": looping_links,
    "a position that expired": forgotten,
    "permission taken back": revoked,
    "deleted meanwhile": deleted,
    "huge and spoilt mails": odd,
    "storm 3": storm,
    "storm 4": storm,
}
_TEAMS: Final[dict[str, Script]] = {
    "429 in seconds": throttled(),
    "connections cut in a body": every(23, Cut(0.5)),
    "everything twice": twice,
    "a position that expired": forgotten,
    "storm 5": storm,
}

SCRIPTS: Final[dict[str, tuple[str, Script]]] = {
    f"{provider}: {name}": (provider, script)
    for provider, scripts in (("gmail", _GMAIL), ("outlook", _OUTLOOK), ("teams", _TEAMS))
    for name, script in scripts.items()
}
FEW: Final = (
    "gmail: 429 in seconds", "gmail: tokens that end", "outlook: a position that expired", "teams: everything twice",
    "gmail: storm 1",
)  # fmt: skip
