"""The stock socket: ChatLiteLLM's chunks through a Channels consumer, for daphne, in .venv/stock."""

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import django
from django.conf import settings

settings.configure(CHANNEL_LAYERS={})
django.setup()

from channels.generic.websocket import AsyncJsonWebsocketConsumer  # noqa: E402
from langchain_litellm import ChatLiteLLM  # noqa: E402

MODEL = ChatLiteLLM(
    model="openai/scripted",
    api_base=os.environ["STOCK_API_BASE"],
    api_key="none",
    streaming=True,
    model_kwargs={"num_retries": 0},
)


class Chat(AsyncJsonWebsocketConsumer):
    async def connect(self):
        self.tasks = set()
        await self.accept()

    async def receive_json(self, content):
        if content["type"] == "device_hello":
            await self.send_json({"type": "hello_ack"})
            return
        task = asyncio.create_task(self.answer(content))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, asked):
        key, seq = asked["request_id"], 0
        await self.send_json({"type": "stream_start", "request_id": key})
        async for chunk in MODEL.astream([("user", asked["message"])]):
            if chunk.content:
                await self.send_json(
                    {"type": "stream_text", "request_id": key, "chunk": chunk.content, "seq": seq}
                )
                seq += 1
        await self.send_json({"type": "stream_end", "request_id": key, "mutations": [], "finish": "stop"})


application = Chat.as_asgi()
