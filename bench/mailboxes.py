"""Mailboxes behind providers that misbehave: `python -m bench.mailboxes`

    --scripts all        each of the fault scripts, over 2,000 messages each (twenty minutes); or a part of their names.
                         Without it, a handful of them over 500 messages each
    --size N             of each mailbox, in messages
    --kills N            of the worker, over one mailbox of that size, while mail goes on arriving; 12 with all scripts
    --runs N             at once, over one connection whose token has expired
    --control NAME       with a promise taken out, so that the bench has to fail: `twice` (the provider has a message
                         under two ids), `gate` (no limit, no Retry-After), `ledger` (a message counts as read when it
                         is listed; it shows when the worker is killed)

Everything runs as in production: web process, workers, PostgreSQL, Valkey, devices with their sockets; Google and
Microsoft are the tests' fakes, and their logs are what is checked. The exit code is 0 when each message is on its
user's device once or, where it cannot be read, listed with the reason; when no mailbox got more than four requests at
once, and none before the time that a Retry-After had named; and when all the runs over one connection refreshed its
expired token once. Of a control, when something of that did not hold.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

from bench.harness import show
from bench.mail.control import CONTROLS
from bench.mail.fault_scripts import FEW, SCRIPTS, arriving, quiet
from bench.mail.mailbox_simulation import MOST_RUNS, PATIENCE_S, Outcome, World, compare, world
from tests.fakes.provider import Hold

AT_ONCE = 8  # mailboxes
LEASE_S = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mailboxes", description=__doc__.splitlines()[0])
    parser.add_argument("--scripts", default="", help="all, none, or a part of their names")
    parser.add_argument("--size", type=int, help="of each mailbox")
    parser.add_argument("--kills", type=int, help="of the worker")
    parser.add_argument("--runs", type=int, default=50, help="at once over one connection")
    parser.add_argument("--control", default="", choices=["", "twice", *CONTROLS])
    given = parser.parse_args()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # connections are cut on purpose
    names = [name for name in SCRIPTS if given.scripts == "all" or (given.scripts and given.scripts in name)]
    if given.scripts not in ("", "none") and not names:
        parser.error(f"no script has {given.scripts!r} in its name; there are: {', '.join(SCRIPTS)}")
    names = names if given.scripts else list(FEW)
    size = given.size or (2_000 if given.scripts else 500)
    times = given.kills if given.kills is not None else 12 if given.scripts == "all" else 3
    with world(given.control if given.control in CONTROLS else "") as there:
        threads = str(max(given.runs, 16))
        workers = [there.worker(f"worker-{each}", ADIUVA_WORKER_CONCURRENCY=threads) for each in (1, 2)]
        wrong = faults(there, names, size, given.control) if names else []
        wrong += together(there, given.runs) if given.runs else []
        for worker in workers:
            worker.stop()
        if times:
            wrong += kills(there, times, size)
    for line in wrong:
        print(f"  {line}")
    show("what does not hold", str(len(wrong)), "" if given.control else "aim: 0")
    return int(bool(wrong) == (not given.control))


def faults(there: World, names: Sequence[str], size: int, control: str) -> list[str]:
    """Each script over a mailbox of its own, several at once."""
    print(f"{len(names)} fault scripts over mailboxes of {size:,} messages, {AT_ONCE} at once", flush=True)
    began = time.monotonic()
    people = there.people([f"user-{number}" for number in range(len(names))])

    def one(number: int) -> Outcome:
        name = names[number]
        provider, script = SCRIPTS[name]
        scene = there.scene(name, people[number], provider, size, seed=list(SCRIPTS).index(name))
        script(scene)
        if control == "twice":
            scene.put(scene.title(size // 2), size // 2)
        outcome = there.play(scene, people[number])
        _tell(outcome)
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as threads:
        outcomes = list(threads.map(one, range(len(names))))
    seconds = time.monotonic() - began
    asked = sum(outcome.asked for outcome in outcomes)
    held = sum(outcome.held for outcome in outcomes)
    show("messages on the devices, of so many requests", f"{held:,} of {asked:,}")
    show("all of them", f"{seconds:.0f} s, {held / seconds:.0f} a second")
    show(
        "the most requests at once to a mailbox", str(max(each.scene.box.peak for each in outcomes)), "aim: 4"
    )
    show("requests before their time", str(sum(len(each.scene.box.early) for each in outcomes)), "aim: 0")
    return [f"{outcome.scene.name}: {line}" for outcome in outcomes for line in outcome.wrong]


def _tell(outcome: Outcome) -> None:
    listed = ", ".join(f"{count} {code}" for code, count in sorted(outcome.listed.items()))
    said = "; ".join(outcome.wrong) or "well"
    print(
        f"  {outcome.scene.name:<42} {outcome.held:>5} held, {outcome.asked:>5} asked, {len(outcome.ends)} runs, "
        f"{outcome.seconds:>4.0f} s  {f'listed: {listed}  ' if listed else ''}{said}",
        flush=True,
    )


def together(there: World, many: int) -> list[str]:
    """Runs of many agents over one connection whose token has expired."""
    from agents.models import Run

    (person,) = there.people(["together"])
    scene = there.scene("together", person, "gmail", 4, 0)
    quiet(scene)
    there.connect(scene, person)
    agents = [there.agent(scene, person, f"Mail {number}") for number in range(many)]
    there.identity.expire(scene.account)
    hold = Hold()
    there.identity.script(hold, account=scene.account)
    ids = [there.ask("POST", f"agents/{agent}/run", person.token)["run_id"] for agent in agents]
    mine = Run.objects.filter(pk__in=ids)
    until = time.monotonic() + PATIENCE_S
    while not hold.reached.is_set() or mine.filter(state="running").count() < many:
        if time.monotonic() > until:
            raise TimeoutError("the runs did not all begin")
        time.sleep(0.1)
    hold.release()
    while mine.live().exists() and time.monotonic() < until:
        time.sleep(0.1)
    refreshes = sum(request.account == scene.account for request in there.identity.refreshes)
    well = mine.filter(state="success").count()
    show(f"refreshes of a token for {many} runs at once", str(refreshes), "aim: 1")
    show("requests at once to their mailbox, by two workers", str(scene.box.peak), "aim: 4")
    wrong = [] if refreshes == 1 else [f"{refreshes} refreshes for one token"]
    if well < many:
        wrong.append(f"{many - well} of the runs over one connection did not end well")
    if scene.box.peak > 4:
        wrong.append(f"{scene.box.peak} requests at once of runs over one connection")
    return wrong


def kills(there: World, times: int, size: int) -> list[str]:
    """The only worker is killed again and again while it reads a mailbox to which more comes."""
    from adiuva.devices.models import OutboxRecord

    (person,) = there.people(["killed"])
    scene = there.scene("killed", person, "gmail", size, 0)
    arriving(scene)
    there.connect(scene, person)
    agent, outcome = there.agent(scene, person), Outcome(scene)
    found = OutboxRecord.objects.filter(user__email=person.email)
    worker = there.worker("worker-killed", ADIUVA_RUN_LEASE_S=str(LEASE_S))
    began, dealt, is_over = time.monotonic(), Event(), Event()

    def kill() -> None:
        for number in range(times):
            enough = max(found.count() + 1, (number + 0.5) * size * 0.8 / times)
            while found.count() < enough:
                time.sleep(0.02)
            worker.kill()
            worker.start()
        dealt.set()
        is_over.wait()  # a child ends with the thread that started it

    killer = Thread(target=kill, daemon=True)
    killer.start()
    while not there.is_over(scene, there.run(scene, person, agent, outcome)):
        if len(outcome.ends) >= MOST_RUNS:
            outcome.wrong.append(f"not read in full after {MOST_RUNS} runs")
            break
    if not dealt.is_set():
        outcome.wrong.append(f"the worker was not killed {times} times")
    compare(outcome, person, agent)
    outcome.seconds = time.monotonic() - began
    _tell(outcome)
    is_over.set()
    show(f"{times} kills of the worker over {size:,} messages", f"{outcome.seconds:.0f} s")
    return [f"killed: {line}" for line in outcome.wrong]


if __name__ == "__main__":
    sys.exit(main())
