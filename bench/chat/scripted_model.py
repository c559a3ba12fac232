"""A model that answers at once, or streams words at a steady pace: `python -m bench.chat.scripted_model PORT`.

It is told what to do by the last paragraph of the user's last message: `stream N` streams N words, WORDS_A_S of them a
second; with `list` in it the model first calls list_tasks; everything else is answered, and where JSON is asked for,
with nothing that the memory should keep. When each word of a stream was sent is told at /times, by the message that
asked for it, on the monotonic clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import sys
import time
from typing import Any

import orjson

WORDS_A_S = 50
TEXT = (
    "The four of them are done by Friday, and the harbour has asked for another week before it signs what we sent. "
    "Ada would like to see the drawings first; Marten can wait. Nothing else is due, so the morning is free for the "
    "offer to the bakery and the two calls that were put off last week."
)
WORDS = TEXT.split(" ")
NOTHING_TO_REMEMBER = '{"operations": []}'
ANSWER = "You have twenty tasks; the first of them is due on Friday."


def word(place: int) -> str:
    """The word at a place of a stream. An answer that repeats itself would be ended, so each pass has another order."""
    number, at = divmod(place, len(WORDS))
    return f"{_shuffled(number)[at]} "


@functools.cache
def _shuffled(number: int) -> list[str]:
    return random.Random(number).sample(WORDS, len(WORDS))


class Model(asyncio.Protocol):
    """One connection. It understands as much HTTP as the two clients measured here need."""

    times: dict[str, list[int]] = {}
    _number = itertools.count()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._raw = b""
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._raw += data
        while (end := self._raw.find(b"\r\n\r\n")) >= 0:
            lines = self._raw[:end].decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:])
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self._raw) < whole:
                return
            body, self._raw = self._raw[end + 4 : whole], self._raw[whole:]
            if lines[0].startswith("get /times"):
                self._send_body(orjson.dumps(Model.times), "application/json")
            elif lines[0].startswith("get"):
                self._send_body(b"{}", "application/json")
            else:
                request = orjson.loads(body)
                self._answer(request["messages"], wants_json="response_format" in request)

    def _answer(self, messages: list[dict[str, Any]], *, wants_json: bool) -> None:
        asked = next(_text(one) for one in reversed(messages) if one["role"] == "user")
        asked = asked.rpartition("\n\n")[2]  # what belongs to the turn comes before the user's message
        if asked.startswith("stream "):
            self._begin()
            times = Model.times[asked] = []
            self._stream(times, int(asked.split()[1]), self._loop.time())
        elif "list" in asked and messages[-1]["role"] != "tool":
            function = {"name": "list_tasks", "arguments": "{}"}
            call = {"index": 0, "id": f"call_{next(self._number)}", "type": "function", "function": function}
            self._begin()
            self._transport.write(_chunk(_event({"tool_calls": [call]})) + _end("tool_calls"))
        else:
            answer = NOTHING_TO_REMEMBER if wants_json else ANSWER
            events = [_event({"content": f"{part} "}) for part in answer.split(" ")]
            self._begin()
            self._transport.write(_chunk(b"".join(events)) + _end("stop"))

    def _stream(self, times: list[int], words: int, due: float) -> None:
        if self._transport.is_closing():
            return
        times.append(time.monotonic_ns())
        self._transport.write(_chunk(_event({"content": word(len(times) - 1)})))
        if len(times) == words:
            self._transport.write(_end("stop"))
        else:
            due += 1 / WORDS_A_S
            self._loop.call_at(due, self._stream, times, words, due)

    def _begin(self) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    def _send_body(self, body: bytes, kind: str) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"


def _end(finish: str) -> bytes:
    usage = {"prompt_tokens": 900, "completion_tokens": 20, "total_tokens": 920}
    return _chunk(_event({}, finish, usage=usage) + b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
