"""Two requests of one conversation at once, with random delays: are they answered one after the other, in order?

`python -m bench.turn_order [ROUNDS]`. Two web processes; in each round both get a request of the same conversation, a
moment of 0 to 30 ms apart. Now and then the second one steers or must not wait. Counts what is out of order or missing.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from typing import Any, Final

from bench.harness import bench_servers, median, record, show

ROUNDS: Final = 200
_MOST_DELAY_S: Final = 0.03


async def _measure(first_web: str, second_web: str, rounds: int) -> None:
    from adiuva.core import db
    from tests.chat.chat_client import ChatClient, connect, conversation_of, end_frame
    from tests.factories import somebody

    chance = random.Random(17)
    person = await db.run(somebody)
    ends: Counter[str] = Counter()
    waits_ms: list[float] = []

    async def one(client: ChatClient, message: str, **fields: Any) -> None:
        began = time.monotonic()
        stream = await client.say(message, **fields)
        end = end_frame(stream)
        ends[f"{end['finish']} {end.get('code') or ''}".strip()] += 1
        waits_ms.append((time.monotonic() - began) * 1000)

    async with connect(first_web, person) as desk, connect(second_web, person, device_id="phone") as phone:
        place = conversation_of(await desk.say("Hello"))
        for number in range(rounds):
            early, late = chance.sample([desk, phone], 2)
            busy = chance.choice(["enqueue", "enqueue", "steer", "reject"])
            first = asyncio.create_task(one(early, f"early {number}", conversation_id=place))
            await asyncio.sleep(chance.random() * _MOST_DELAY_S)
            await one(late, f"late {number}", conversation_id=place, busy=busy)
            await first
        found: list[dict[str, Any]] = []
        while more := await _after(first_web, person, place, len(found)):
            found += more
    said = [message for message in found if message["role"] == "user"]
    steered = [message for message in said if "steered" in message]
    plain = [message for message in found if "steered" not in message]
    wrong = sum(message["role"] != ("user", "assistant")[number % 2] for number, message in enumerate(plain))
    asked = 2 * rounds + 1 - ends["error conversation_busy"]
    record("messages out of order", wrong, most=0)
    record("requests that are missing in the history, or in it twice", abs(asked - len(said)), most=0)
    show("how they ended", ", ".join(f"{end}: {count}" for end, count in sorted(ends.items())))
    show("messages that joined the running turn", f"{len(steered)}")
    show("median of a request", f"{median(waits_ms):.0f} ms")
    assert not wrong and asked == len(said)


async def _after(web: str, person: Any, place: str, after: int) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        with person.rest(web) as rest:
            found: list[dict[str, Any]] = rest.get(f"/chat/conversations/{place}?after={after}").json()[
                "messages"
            ]
            return found

    return await asyncio.to_thread(read)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with bench_servers() as servers:
        from tests.fakes.provider import Provider

        provider = servers.exit_stack.enter_context(Provider(default=lambda request: "Yes."))
        model = {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": provider.url}
        asyncio.run(_measure(servers.web(**model), servers.web(**model, ADIUVA_PING_S="29"), rounds))


if __name__ == "__main__":
    main()
