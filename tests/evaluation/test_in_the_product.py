"""`make eval` in small, on the servers of the tests: a model that answers the labels has no fault.

Its cases are few of each kind; the whole set runs with `make eval`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from adiuva.offline_llm.server import _answer as offline_answer
from bench.evaluation import report
from bench.evaluation.cases import load_cases, sample
from bench.evaluation.chats_part import hold_chats
from bench.evaluation.documents_part import read_documents
from bench.evaluation.endpoint import Endpoint, Recording
from bench.evaluation.label_model import LabelModel
from bench.evaluation.memory_part import remember_sessions
from tests.fakes.provider import Call, Provider, Raw, Request, Say

CASES = load_cases()


def offline(request: Request) -> Say:
    """What the offline model answers."""
    body = request.body
    schema = (body.get("response_format") or {}).get("json_schema")
    given = (schema["name"], schema["schema"]) if schema else None
    answer = offline_answer(body["messages"], body.get("tools") or [], given)
    return Say(answer.text, calls=[Call(each.name, dict(each.arguments)) for each in answer.tool_calls])


async def test_a_model_that_answers_the_labels_has_no_fault(
    web: str, worker: None, provider: Provider, tmp_path: Path
) -> None:
    documents = sample(CASES.documents, 4)
    provider.default = provider.memory = LabelModel(CASES)
    result = await read_documents(web, documents, tmp_path / "documents", CASES.rows, patience_s=60)
    assert (result.state, result.errors) == ("success", [])
    assert [(each.id, score) for each, score in result.scores if not score.is_perfect] == []
    figures = report.document_figures(result)
    assert figures["documents: precision / recall / F1"]["all tables"] == report.Scores(1, 1, 1)
    assert str(figures["documents"]["documents without a fault"]) == "4 of 4 (100%)"
    chosen = [each for each in CASES.chats if each.id in {"c8", "c55", "c95"}]
    assert [
        (each.chat.id, each.faults) for each in await hold_chats(web, chosen, CASES.rows) if each.faults
    ] == []


def through(endpoint: Endpoint) -> Callable[[Request], Awaitable[Raw]]:
    """A model whose answers come from the address of this endpoint."""

    async def answer(request: Request) -> Raw:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{endpoint.url}/chat/completions", json=request.body) as given,
        ):
            return Raw(await given.read(), status=given.status, content_type=given.content_type)

    return answer


async def test_chats_are_judged_by_their_rows_and_a_recording_repeats_them(
    web: str, provider: Provider, tmp_path: Path
) -> None:
    chosen = [each for each in CASES.chats if each.id in {"c28", "c46", "c93"}]
    with Provider(default=offline) as model, Endpoint(model.url, recording=Recording()) as recorder:
        provider.default = through(recorder)
        first = await hold_chats(web, chosen, CASES.rows)
    assert {each.chat.id: bool(each.faults) for each in first} == {
        "c28": True,  # asked in words that the offline model does not understand
        "c46": False,  # not deleted, because the user said no
        "c93": False,  # done: the row that is open
    }
    assert recorder.recording is not None
    recorder.recording.write(tmp_path / "answers.jsonl")
    with Endpoint(recording=Recording.read(tmp_path / "answers.jsonl")) as replay:
        provider.default = through(replay)
        again = await hold_chats(web, chosen, CASES.rows)
    assert [each.faults for each in again] == [each.faults for each in first]
    assert replay.missing == 0
    assert replay.use["chat"].calls == recorder.use["chat"].calls == len(model.chats)


async def test_questions_are_judged_by_what_was_said_before(
    web: str, worker: None, provider: Provider
) -> None:
    sessions = [each for each in CASES.sessions if each.id in {"s03", "s16"}]
    questions = [each for each in CASES.questions if each.id in {"q02", "q19", "q28"}]
    provider.default = provider.memory = offline
    result = await remember_sessions(web, sessions, questions, CASES.rows)
    assert {question.id: bool(faults) for question, faults in result.faults} == {
        "q02": False,  # the present rate
        "q19": False,  # where it was said
        "q28": True,  # what was never said, which the offline model does not say
    }
    assert result.failed_turns == []
