"""Reads mailboxes of providers that misbehave: `python -m bench.mailboxes`

    --scripts all        run all fault scripts over 2,000 messages each (twenty minutes); or those whose name contains
                         the text; or `none`. Without it, a few of them run over 500 messages each
    --size N             messages of each mailbox
    --kills N            times the worker is killed while it reads a mailbox to which mail arrives; 12 with all scripts
    --runs N             runs at the same time over one connection whose token has expired
    --sabotage NAME      remove a guarantee, so that the bench must fail: `twice` (the provider has a message under two
                         ids), `limiter` (no limit, no Retry-After), `ledger` (a message is recorded as read when it is
                         listed; visible when the worker is killed)

Everything runs as in production: web process, workers, PostgreSQL, Valkey, devices with their sockets. Google and
Microsoft are the tests' fakes, whose request logs are checked. The exit code is 0 if each message is on its user's
device once or, where it cannot be read, listed with the reason; if no mailbox got more than four requests at the same
time, and none before a Retry-After had passed; and if all the runs over one connection refreshed its expired token
once. With a sabotage, the exit code is 0 if some of this did not hold.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

from bench.harness import record, show
from bench.mail.fault_scripts import SCRIPTS, SHORT_SELECTION, arriving_mail, no_faults
from bench.mail.mailbox_simulation import (
    MOST_RUNS,
    PATIENCE_S,
    MailboxSimulation,
    Outcome,
    compare,
    mailbox_simulation,
)
from bench.mail.sabotaged_worker import SABOTAGES
from tests.fakes.provider import Hold

CONCURRENT_MAILBOXES = 8
LEASE_S = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mailboxes", description=__doc__.splitlines()[0])
    parser.add_argument("--scripts", default="", help="all, none, or part of a name")
    parser.add_argument("--size", type=int, help="messages of each mailbox")
    parser.add_argument("--kills", type=int, help="times the worker is killed")
    parser.add_argument("--runs", type=int, default=50, help="runs at the same time over one connection")
    parser.add_argument("--sabotage", default="", choices=["", "twice", *SABOTAGES])
    given = parser.parse_args()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # connections are cut on purpose
    names = [name for name in SCRIPTS if given.scripts == "all" or (given.scripts and given.scripts in name)]
    if given.scripts not in ("", "none") and not names:
        parser.error(f"no script has {given.scripts!r} in its name; there are: {', '.join(SCRIPTS)}")
    names = names if given.scripts else list(SHORT_SELECTION)
    size = given.size or (2_000 if given.scripts else 500)
    times = given.kills if given.kills is not None else 12 if given.scripts == "all" else 3
    with mailbox_simulation(given.sabotage if given.sabotage in SABOTAGES else "") as simulation:
        threads = str(max(given.runs, 16))
        workers = [simulation.worker(f"worker-{each}", ADIUVA_WORKER_CONCURRENCY=threads) for each in (1, 2)]
        problems = run_fault_scripts(simulation, names, size, given.sabotage) if names else []
        problems += run_concurrently(simulation, given.runs) if given.runs else []
        for worker in workers:
            worker.stop()
        if times:
            problems += run_with_kills(simulation, times, size)
    for line in problems:
        print(f"  {line}")
    record("problems", len(problems), most=0)
    return int(bool(problems) == (not given.sabotage))


def run_fault_scripts(
    simulation: MailboxSimulation, names: Sequence[str], size: int, sabotage: str
) -> list[str]:
    """Run each script over a mailbox of its own, several at the same time."""
    print(
        f"{len(names)} fault scripts over mailboxes of {size:,} messages, {CONCURRENT_MAILBOXES} at the same time",
        flush=True,
    )
    began = time.monotonic()
    create_users = simulation.create_users([f"user-{number}" for number in range(len(names))])

    def one(number: int) -> Outcome:
        name = names[number]
        provider, script = SCRIPTS[name]
        scenario = simulation.scenario(
            name, create_users[number], provider, size, seed=list(SCRIPTS).index(name)
        )
        script(scenario)
        if sabotage == "twice":
            scenario.put(scenario.title(size // 2), size // 2)
        outcome = simulation.run_scenario(scenario, create_users[number])
        _print_outcome(outcome)
        return outcome

    with ThreadPoolExecutor(CONCURRENT_MAILBOXES) as threads:
        outcomes = list(threads.map(one, range(len(names))))
    seconds = time.monotonic() - began
    requests = sum(outcome.requests for outcome in outcomes)
    on_device = sum(outcome.on_device for outcome in outcomes)
    show("messages on the devices, requests for them", f"{on_device:,} of {requests:,}")
    show("total", f"{seconds:.0f} s")
    record("messages a second", on_device / seconds)
    record(
        "most simultaneous requests to a mailbox", max(each.scenario.box.peak for each in outcomes), most=4
    )
    early = sum(len(each.scenario.box.early) for each in outcomes)
    record("requests before a Retry-After had passed", early, most=0)
    return [f"{outcome.scenario.name}: {line}" for outcome in outcomes for line in outcome.problems]


def _print_outcome(outcome: Outcome) -> None:
    listed = ", ".join(f"{count} {code}" for code, count in sorted(outcome.listed.items()))
    said = "; ".join(outcome.problems) or "ok"
    print(
        f"  {outcome.scenario.name:<42} {outcome.on_device:>5} on the device, "
        f"{outcome.requests:>5} requests, {len(outcome.run_ends)} runs, "
        f"{outcome.seconds:>4.0f} s  {f'listed: {listed}  ' if listed else ''}{said}",
        flush=True,
    )


def run_concurrently(simulation: MailboxSimulation, many: int) -> list[str]:
    """Start runs of many agents over one connection whose token has expired."""
    from agents.models import Run

    (user,) = simulation.create_users(["together"])
    scenario = simulation.scenario("together", user, "gmail", 4, 0)
    no_faults(scenario)
    simulation.connect(scenario, user)
    agents = [simulation.agent(scenario, user, f"Mail {number}") for number in range(many)]
    simulation.identity.expire(scenario.account)
    hold = Hold()
    simulation.identity.script(hold, account=scenario.account)
    ids = [simulation.ask("POST", f"agents/{agent}/run", user.token)["run_id"] for agent in agents]
    mine = Run.objects.filter(pk__in=ids)
    until = time.monotonic() + PATIENCE_S
    while not hold.reached.is_set() or mine.filter(state="running").count() < many:
        if time.monotonic() > until:
            raise TimeoutError("not all runs began")
        time.sleep(0.1)
    hold.release()
    while mine.live().exists() and time.monotonic() < until:
        time.sleep(0.1)
    refreshes = sum(request.account == scenario.account for request in simulation.identity.refreshes)
    well = mine.filter(state="success").count()
    record(f"refreshes of a token for {many} runs at once", refreshes, least=1, most=1)
    record("simultaneous requests to their mailbox, by two workers", scenario.box.peak, most=4)
    problems = [] if refreshes == 1 else [f"{refreshes} refreshes for one token"]
    if well < many:
        problems.append(f"{many - well} of the runs over one connection did not end well")
    if scenario.box.peak > 4:
        problems.append(f"{scenario.box.peak} requests at once of runs over one connection")
    return problems


def run_with_kills(simulation: MailboxSimulation, times: int, size: int) -> list[str]:
    """Kill the only worker repeatedly while it reads a mailbox to which mail arrives."""
    from adiuva.devices.models import OutboxRecord

    (user,) = simulation.create_users(["killed"])
    scenario = simulation.scenario("killed", user, "gmail", size, 0)
    arriving_mail(scenario)
    simulation.connect(scenario, user)
    agent, outcome = simulation.agent(scenario, user), Outcome(scenario)
    found = OutboxRecord.objects.filter(user__email=user.email)
    worker = simulation.worker("worker-killed", ADIUVA_RUN_LEASE_S=str(LEASE_S))
    began, all_kills_done, is_finished = time.monotonic(), Event(), Event()

    def kill() -> None:
        for number in range(times):
            enough = max(found.count() + 1, (number + 0.5) * size * 0.8 / times)
            while found.count() < enough:
                time.sleep(0.02)
            worker.kill()
            worker.start()
        all_kills_done.set()
        is_finished.wait()  # a child ends with the thread that started it

    killing = Thread(target=kill, daemon=True)
    killing.start()
    while not simulation.is_finished(scenario, simulation.run(scenario, user, agent, outcome)):
        if len(outcome.run_ends) >= MOST_RUNS:
            outcome.problems.append(f"not read in full after {MOST_RUNS} runs")
            break
    if not all_kills_done.is_set():
        outcome.problems.append(f"the worker was not killed {times} times")
    compare(outcome, user, agent)
    outcome.seconds = time.monotonic() - began
    _print_outcome(outcome)
    is_finished.set()
    show(f"{times} kills of the worker over {size:,} messages", f"{outcome.seconds:.0f} s")
    return [f"killed: {line}" for line in outcome.problems]


if __name__ == "__main__":
    sys.exit(main())
