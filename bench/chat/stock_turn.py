"""Turns of deepagents on LiteLLM, without socket or database: `stock_turn.py API_BASE`, in .venv/stock.

For each line it reads, `plain N` or `list N`, it takes N turns and writes, as JSON, the milliseconds to the first text
of each, and the CPU of a turn.
"""

import asyncio
import json
import os
import sys
import time

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from deepagents import create_deep_agent
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from langchain_litellm import ChatLiteLLM

ROWS = "20 tasks:\n" + "\n".join(
    f"- Call the harbour about pier {place} [id {place:02d}9f0c3de4b54a17], todo, high priority, due Thu 2026-11-26, "
    "project Harbour Café [id p1c0ffee00000001]"
    for place in range(20)
)


@tool
async def list_tasks(status: str = "", search: str = "") -> str:
    """List the user's tasks."""
    return ROWS


async def turn(agent, message: str) -> float:
    began, first = time.perf_counter(), 0.0
    asked = {"messages": [{"role": "user", "content": message}]}
    async for chunk, _ in agent.astream(asked, stream_mode="messages"):
        if isinstance(chunk, AIMessageChunk) and chunk.content and not first:
            first = time.perf_counter() - began
    return first * 1000


async def main(base: str) -> None:
    model = ChatLiteLLM(
        model="openai/scripted",
        api_base=base,
        api_key="none",
        streaming=True,
        model_kwargs={"num_retries": 0},
    )
    agent = create_deep_agent(model=model, tools=[list_tasks], system_prompt="You help with tasks.")
    for line in sys.stdin:
        kind, number = line.split()
        cpu = time.process_time()
        message = "list my tasks" if kind == "list" else "hello"
        firsts = [await turn(agent, message) for _ in range(int(number))]
        cpu = (time.process_time() - cpu) / int(number)
        print(json.dumps({"first_ms": firsts, "cpu_ms": cpu * 1000}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
