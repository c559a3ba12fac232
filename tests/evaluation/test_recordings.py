"""The counting endpoint of `make eval`: it records what a model answers, and answers from a recording."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from bench.evaluation import endpoint
from tests.fakes.provider import Break, Fail, Provider, Raw, Say, stream_events

KEY = "sk-a-secret-of-the-tests"


async def ask(url: str, question: str, **more: Any) -> tuple[int, str]:
    body = {"model": "m", "messages": [{"role": "user", "content": question}], **more}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(f"{url}/chat/completions", json=body) as answer,
    ):
        return answer.status, await answer.text()


async def test_a_recording_answers_as_the_endpoint_did_and_holds_no_key(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl.gz"
    with Provider(
        default=lambda request: Say(f"You said {request.body['messages'][0]['content']}")
    ) as provider:
        recording = endpoint.Recording()
        with endpoint.Endpoint(provider.url, recording=recording, key=KEY) as recorder:
            whole, streamed = await ask(recorder.url, "one"), await ask(recorder.url, "two", stream=True)
            provider.script(Fail(401, message=f"wrong key {KEY}"), Fail(400, message=f"no, {KEY}"))
            assert [(await ask(recorder.url, each))[0] for each in ("three", "four")] == [401, 400]
        assert provider.calls[0].headers["Authorization"] == f"Bearer {KEY}"
    recording.write(file)
    read = endpoint.Recording.read(file)
    assert KEY not in json.dumps([[str(one) for one in each] for each in read._answers.values()])
    assert len(read) == 3  # what a wrong key is told is not kept
    with endpoint.Endpoint(recording=read) as replayed:
        assert await ask(replayed.url, "one") == whole
        assert await ask(replayed.url, "two", stream=True, user="somebody else") == streamed
        assert replayed.missing == 0
        status, body = await ask(replayed.url, "five")
        assert (status, json.loads(body)["error"]["code"]) == (404, "not_in_recording")
        assert replayed.missing == 1
    used = replayed.use["chat"]
    assert (used.calls, used.input_tokens, used.output_tokens, dict(used.failures)) == (3, 14, 10, {"404": 1})


async def test_an_answer_that_breaks_off_is_counted_as_failed() -> None:
    with Provider(Break("text")) as provider, endpoint.Endpoint(provider.url) as counted:
        try:
            await ask(counted.url, "one", stream=True)
        except aiohttp.ClientError:
            pass
        else:
            raise AssertionError("an answer that breaks off must not end well")
        assert dict(counted.use["chat"].failures) == {"broken off": 1}


async def test_who_hangs_up_after_the_last_event_has_had_the_whole_answer() -> None:
    events = b"".join(stream_events(Say("Hello")))

    async def never_ending() -> AsyncIterator[bytes]:
        yield events
        await asyncio.sleep(30)

    step = Raw(never_ending(), content_type="text/event-stream")  # type: ignore[arg-type]  # what aiohttp takes
    with (
        Provider(step) as provider,
        endpoint.Endpoint(provider.url, recording=endpoint.Recording()) as counted,
    ):
        body = {"model": "m", "messages": [], "stream": True}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{counted.url}/chat/completions", json=body) as answer,
        ):
            read = b""
            while b"[DONE]" not in read:
                read += await answer.content.readany()
        async with asyncio.timeout(60):
            while not counted.use["chat"].calls:
                await asyncio.sleep(0.01)
        used = counted.use["chat"]
        assert (used.calls, used.output_tokens, dict(used.failures)) == (1, 5, {})
        assert counted.recording is not None and len(counted.recording) == 1
