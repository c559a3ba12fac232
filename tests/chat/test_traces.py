"""OpenTelemetry traces of a web process: one tree for each turn, and never content."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from adiuva.core import db
from adiuva.embedded.ports import free_port
from tests.chat.chat_client import DeviceRows, connect, end_frame
from tests.factories import somebody
from tests.fakes.collector import Collector
from tests.fakes.provider import Call, Fail, Provider
from tests.server_processes import Stack

CANARIES = ("canaryquestion", "canaryanswer", "canarytitle", "canarypath", "canaryfault", "canarydevice")
TASK = {"id": "3f2a9c01d4e54bb0", "title": "canarytitle", "status": "todo", "priority": "high"}


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


async def test_a_turn_is_one_tree_of_spans_without_content(stack: Stack, provider: Provider) -> None:
    person = await db.run(somebody)
    with Collector() as collector:
        web = stack.web(ADIUVA_TRACES_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100")
        provider.script(Call("list_tasks"), "canaryanswer", Fail(400, message="canaryfault"))
        async with connect(web, person, DeviceRows(tasks=[TASK]), device_id="canarydevice") as client:
            end_frame(await client.say("canaryquestion"))
            failed = await client.say("canaryquestion again")
            assert failed.end is not None and failed.end["finish"] == "error"
        async with httpx.AsyncClient() as http:
            await http.get(f"{web}/api/v1/devices/canarypath?q=canarypath")
        spans = await asyncio.to_thread(
            collector.wait_for,
            lambda spans: (
                sum(span.name == "turn" for span in spans) == 2
                and any("devices" in span.name for span in spans)
            ),
        )
        stack.kill(web)
    turn, broken = sorted(
        (span for span in spans if span.name == "turn"), key=lambda span: span.end_time_unix_nano
    )
    tree = [span for span in spans if span.trace_id == turn.trace_id]
    names = sorted(span.name for span in tree)
    assert names == ["model openai/scripted", "model openai/scripted", "tool list_tasks", "turn"]
    assert not turn.parent_span_id
    assert {span.parent_span_id for span in tree if span is not turn} == {turn.span_id}
    told = attributes(turn)
    assert (told["adiuva.finish"], told["adiuva.model_calls"]) == ("stop", 2)
    calls = [attributes(span) for span in tree if span.name.startswith("model")]
    assert sum(call["gen_ai.usage.output_tokens"] for call in calls) == told["gen_ai.usage.output_tokens"]
    assert attributes(broken)["error.type"] == failed.end["code"]
    routes = [attributes(span).get("http.route", "") for span in spans]
    assert any("devices/" in route and "<" in route for route in routes), routes
    sent = b"".join(collector.bodies)
    for word in (*CANARIES, person.email, person.access_token, str(person.id)):
        assert word.encode() not in sent, word


async def test_without_a_collector_a_turn_is_answered_and_the_log_says_so_once(
    stack: Stack, provider: Provider
) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1/traces"
    web = stack.web(
        ADIUVA_TRACES_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="50", OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="1"
    )
    async with connect(web, await db.run(somebody)) as client:
        end_frame(await client.say("hello"))
        log = stack.log(web)
        deadline = time.monotonic() + 30
        while "traces.not_sent" not in log.read_text() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        end_frame(await client.say("hello again"))
    stack.end(web).process.wait(30)  # type: ignore[union-attr]  # it tries to send what is left
    text = log.read_text()
    assert text.count("traces.not_sent") == 1
    assert url not in text and "opentelemetry" not in text
