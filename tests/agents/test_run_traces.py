"""OpenTelemetry traces of a run: one tree of its documents and model calls, never content.

The run is executed in the test's process: spans of the workers of other tests go nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from adiuva.core import db, tracing
from agents import runner, runs
from agents.models import Agent
from tests.agents.device_owner import DeviceOwner, connected, document_text, tasks_from_lines
from tests.agents.factories import create_run
from tests.fakes.collector import Collector
from tests.fakes.provider import Fail, Provider, Request


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@pytest.fixture
def collector(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as made:
        settings.TRACES_ENDPOINT = made.url
        monkeypatch.setattr(tracing, "_tracer", None)
        monkeypatch.setattr(tracing, "_provider", None)
        tracing.start("worker")
        yield made
        tracing.stop()


async def test_a_run_is_one_tree_of_documents_and_model_calls_without_content(
    desk: DeviceOwner,
    provider: Provider,
    collector: Collector,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(request: Request) -> Any:
        if "canarybroken" in document_text(request):
            return Fail(400, message="canaryfault")
        return tasks_from_lines(request)

    provider.default = answer
    settings.MODEL = provider.settings()
    monkeypatch.setattr(runs, "wake_workers", lambda: None)
    desk.write("canaryfile.md", "do canarytask\ndo canarytwo")
    desk.write("broken.md", "canarybroken")
    async with connected(desk):
        agent = await desk.agent(name="canaryagent")
        run = await db.run(lambda: create_run(Agent.objects.get(pk=agent)))
        await runner.execute(run.pk)
        seen = await desk.see(str(run.pk))
    assert (seen["state"], seen["items_created"], seen["files_failed"]) == ("partial", 2, 1)
    spans = await asyncio.to_thread(
        collector.wait_for, lambda spans: any(span.name == "run" for span in spans)
    )
    [root] = [span for span in spans if span.name == "run"]
    assert not root.parent_span_id  # a worker claims a run from its row: its id joins the two
    told = attributes(root)
    assert (told["adiuva.run_id"], told["adiuva.state"]) == (str(run.pk), "partial")
    documents = [span for span in spans if span.name == "document"]
    assert {span.parent_span_id for span in documents} == {root.span_id}
    counts = [attributes(span) for span in documents]
    assert sorted(count["adiuva.records"] for count in counts) == [0, 2]
    assert sum(count["adiuva.model_calls"] for count in counts) == seen["model_calls"]
    calls = [span for span in spans if span.name.startswith("model")]
    assert {span.parent_span_id for span in calls} == {span.span_id for span in documents}
    assert [attributes(span).get("error.type") for span in calls].count("model_rejected") == 1
    assert {span.trace_id for span in (*documents, *calls)} == {root.trace_id}
    sent = b"".join(collector.bodies)
    for word in (b"canary", str(desk.folder).encode(), desk.person.email.encode()):
        assert word not in sent, word
