"""The cost of budgets, and the behaviour at their limits: `python -m bench.budget_limits [turns|refusals|run]`

turns     the CPU of a turn with two requests to a model, of a user whose month is limited, beside that of one whose
          month is not, by turns in one web process
refusals  how long somebody waits whose month is used up until they are told so, and whether a model is asked
run       a run over 500 files whose agent has money for 200: how many are read before it waits, and after it is
          given more, whether all of them are read and none twice
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from bench.agents_run import LINES, PATIENCE_S, UserWithDevice, write
from bench.chat.device import Device
from bench.harness import BenchServers, bench_servers, cpu_s, percentile, record, show

# Of gpt-4.1-mini, for a million tokens.
PRICE: Final = {"ADIUVA_MODEL_PRICE": "0.4,1.6"}
ROUNDS, TURNS, WARM = 20, 50, 30
REFUSALS: Final = 100
FILES, PAID, TRIED = 500, 200, 40
FILE_BYTES: Final = 5_000
IDLE_S: Final = 3.0


def _account(tier: str) -> tuple[UUID, str]:
    """Somebody's id and access token."""
    from adiuva.accounts import services
    from adiuva.accounts.models import User

    email = f"{uuid4().hex}@example.com"
    token = services.register(email=email, password="correct horse").access_token
    User.objects.filter(email=email).update(tier=tier)
    return User.objects.get(email=email).pk, token


def _budget(tier: str, micro: int | None) -> None:
    from billing.models import Plan

    most = 10**6
    Plan.objects.filter(tier=tier).update(
        budget_micro=micro, turn_micro=None, requests_per_minute=most, burst=most
    )


def chat(servers: BenchServers, what: str) -> None:
    from billing import plans

    plans.create_missing()
    _budget("free", 10**12)
    _budget("pro", None)
    _budget("power", 10**5)
    env = {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": servers.model(), "ADIUVA_PLANS": "1"}
    base, web = servers.web_process(**env, **PRICE)
    people = {tier: _account(tier) for tier in ("free", "pro", "power")}

    async def measure() -> None:
        async with AsyncExitStack() as stack:
            devices = {
                tier: await stack.enter_async_context(Device(base, token))
                for tier, (_, token) in people.items()
                if what != "refusals" or tier == "power"
            }
            if what != "refusals":
                del devices["power"]
                await _turns({"limited": devices["free"], "not limited": devices["pro"]}, web)
            else:
                await _refusals(devices["power"])

    if what == "refusals":
        _spend_all(people["power"][0], 10**5)
    asyncio.run(measure())


async def _turns(devices: dict[str, Device], web: Any) -> None:
    for device in devices.values():
        await _list(device, WARM)
    cpu = cpu_s(web)
    await asyncio.sleep(IDLE_S)
    idle = (cpu_s(web) - cpu) / IDLE_S
    found: dict[str, list[float]] = {name: [] for name in devices}
    for number in range(ROUNDS):
        names = list(devices) if number % 2 else [*reversed(devices)]
        for name in names:
            began, cpu = time.monotonic(), cpu_s(web)
            await _list(devices[name], TURNS)
            used = cpu_s(web) - cpu - idle * (time.monotonic() - began)
            found[name].append(used / TURNS * 1000)
    name, ours, beside = "not limited", found["limited"], found["not limited"]
    record("CPU of a turn, limited", ours, "ms", beside=beside, name=name, ratio_most=1.03)


async def _list(device: Device, number: int) -> None:
    for _ in range(number):
        end = (await device.ask("list my tasks")).end
        assert (end["finish"], end["usage"]["model_calls"]) == ("stop", 2), end


def _spend_all(user: UUID, budget: int) -> None:
    from django.utils import timezone

    from billing.models import Allowance
    from billing.months import month_of

    month = month_of(timezone.now(), ZoneInfo("UTC"))
    Allowance.objects.create(scope="user", user_id=user, month=month.first_day, spent=budget)


async def _refusals(device: Device) -> None:
    took, asked = [], 0
    for _ in range(REFUSALS):
        began = time.perf_counter()
        end = (await device.ask("list my tasks")).end
        took.append((time.perf_counter() - began) * 1000)
        assert (end["finish"], end["code"]) == ("limit", "budget_spent"), end
        asked += end["usage"]["model_calls"]
    record("until it is refused", took, "ms", most=50)
    show("95 % are refused within", f"{percentile(took, 95):.1f} ms")
    record(f"requests to the model in {REFUSALS} refused turns", asked, most=0)


def run(servers: BenchServers) -> None:
    from agents import runs
    from agents.models import Run

    user = UserWithDevice(servers)
    model = user.model("0.02")
    worker = user.worker_with(f"{model}/v1", 24, **PRICE)
    tried = user.folder / uuid4().hex
    write(tried, TRIED, FILE_BYTES)
    first = user.run_agent(user.agent(tried, file_extensions=[".md"]))
    each = first.cost_micro / TRIED
    show("what a file costs, in millionths", f"{each:.0f}")
    before = _answered(model)
    folder = user.folder / uuid4().hex
    write(folder, FILES, FILE_BYTES)
    agent = user.agent(folder, file_extensions=[".md"])
    _patch(user, f"agents/local/{agent}", {"budget_micro": round(PAID * each)})
    waiting = _run_until(user, agent, Run.State.AWAITING_BUDGET)
    read = _answered(model) - before
    record("files read before it waits for money", read, least=PAID - 16, most=PAID + 16)
    show("spent of what it may", f"{waiting.cost_micro:,} of {round(PAID * each):,}")
    _patch(user, f"agents/local/{agent}", {"budget_micro": round(2 * FILES * each)})
    runs.resume_with_budget()
    until = time.monotonic() + PATIENCE_S
    while (ended := Run.objects.get(pk=waiting.pk)).is_live:
        assert time.monotonic() < until, ended.state
        time.sleep(0.1)
    show("then the run ends as", f"{ended.state}")
    record("requests to the model for all files", _answered(model) - before, least=FILES, most=FILES)
    all_ = FILES * LINES
    record("records on the device", ended.items_created, least=all_, most=all_)
    worker.stop()


def _run_until(user: UserWithDevice, agent: str, state: str) -> Any:
    from agents.models import Run

    run_id = user.post(f"agents/{agent}/run")["run_id"]
    until = time.monotonic() + PATIENCE_S
    while (found := Run.objects.get(pk=run_id)).state != state:
        assert found.is_live and time.monotonic() < until, found.state
        time.sleep(0.1)
    return found


def _answered(model: str) -> int:
    with urllib.request.urlopen(f"{model}/counts", timeout=10) as answer:
        return int(json.load(answer)["answered"])


def _patch(user: UserWithDevice, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{user.base}/api/v1/{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {user.token}", "Content-Type": "application/json"},
        method="PATCH",
    )
    urllib.request.urlopen(request, timeout=30).close()


def main(servers: BenchServers, *parts: str) -> None:
    for part in parts or ("turns", "refusals", "run"):
        if part == "run":
            run(servers)
        else:
            chat(servers, part)


if __name__ == "__main__":
    with bench_servers() as started:
        main(started, *sys.argv[1:])
