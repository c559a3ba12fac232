"""An agent is made in a conversation: real web process, device and socket; a scripted model, or the offline one."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from adiuva.core import db
from adiuva.embedded import sample_workspace
from adiuva.llm.structured import UnusableAnswer
from agents.models import Agent, JourneySession, Run
from memory import entries
from memory.models import Tier
from tests.factories import somebody
from tests.fakes.provider import Fail, Hold, Provider, Raw, Request
from tests.sampling import fewer
from tests.server_processes import ROOT, Stack

if TYPE_CHECKING:
    from tests.agents.device_owner import DeviceOwner

ASK = {"question": "What should it find?"}
AGENT = {
    "prompt_template": "Take out what is to be done.",
    "data_types": ["tasks"],
    "name": "Things to do",
    "schedule_cron": "0 8 * * 1-5",
    "filters": {},
}
DONE = {"agent": AGENT}


@pytest.fixture
async def desk(stack: Stack, provider: Provider, tmp_path: Path) -> AsyncIterator[DeviceOwner]:
    """A person whose web process asks the scripted model."""
    from tests.agents.device_owner import DeviceOwner, tasks_from_lines

    web = stack.web(
        ADIUVA_MODEL="openai/scripted",
        ADIUVA_MODEL_API_BASE=provider.url,
        ADIUVA_EMBEDDING_MODEL="openai/scripted",
        ADIUVA_EMBEDDING_MODEL_API_BASE=provider.url,
    )
    provider.default = tasks_from_lines  # what documents are read with
    (folder := tmp_path / "documents").mkdir()
    made = DeviceOwner(web, await db.run(somebody, timezone="Europe/Rome"), folder)
    yield made
    await made.rest.aclose()


def offline(request: Request) -> Any:
    """What the offline model says to a request."""
    from adiuva.offline_llm import server

    return server._answer(
        server._read_messages(request.body),
        server._read_tools(request.body),
        server._read_schema(request.body),
    ).text


async def begin(desk: DeviceOwner, **body: Any) -> dict[str, Any]:
    answer = await desk.rest.post("/agents/journey/start", json={"agent_type": "local_directory"} | body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def say(desk: DeviceOwner, session: dict[str, Any], message: str = "", **more: Any) -> httpx.Response:
    body = {"session_id": session["session_id"], "message": message, **more}
    return await desk.rest.post("/agents/journey/message", json=body)


async def said(desk: DeviceOwner, session: dict[str, Any], message: str = "", **more: Any) -> dict[str, Any]:
    answer = await say(desk, session, message, **more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def told(request: Request) -> str:
    """What the model was told of the journey."""
    return str(request.body["messages"][1]["content"])


# ── To its end ──────────────────────────────────────────────────────────────────────────────────────────


async def test_with_the_offline_llm_it_ends_with_an_agent_that_extracts_from_the_sample_workspace(
    desk: DeviceOwner, provider: Provider, worker: None
) -> None:
    from tests.agents.device_owner import connected

    provider.default = offline
    sample_workspace.write(desk.folder, dt.datetime.now(dt.UTC).date())
    async with connected(desk):
        await desk.agent(name="The one that knows the folder")
        session = await begin(desk, data_types=["whatever"])
        answers = iter(["Tasks and notes, decisions first", "Meeting notes and mails", "Every morning at 7"])
        questions = []
        while not session["done"]:
            questions.append(session["message"])
            session = await said(desk, session, next(answers))
        assert len(set(questions)) == 3 and all(question.endswith("?") for question in questions)
        found = session["found"]
        assert len(found["sources"]) == 3 and (found["code"], found["message"]) == ("", "")
        assert all(Path(path).is_file() for path in found["sources"])
        assert sum(found["counts"].values()) == len(found["records"]) >= 3 and found["counts"]["tasks"] >= 3
        assert {record["source"] for record in found["records"]} <= set(found["sources"])
        assert (session["data_types"], session["schedule_cron"]) == (["tasks", "notes"], "0 7 * * 1-5")
        assert desk.rows("tasks") == [] and await db.run(Run.objects.of(desk.person.id).count) == 0
        made = await desk.agent(**{name: session[name] for name in AGENT if name in session})
        run = await desk.rest.post(f"/agents/{made}/run", params={"dry_run": "true"})
        seen = await desk.until(run.json()["run_id"], lambda seen: seen["status"] != "running")
    assert seen["state"] == "success" and len(seen["records"]) > 10


async def test_of_an_agent_it_begins_with_what_that_does_and_changes_nothing_itself(
    desk: DeviceOwner, provider: Provider
) -> None:
    from tests.agents.device_owner import connected

    for number in range(5):
        desk.write(f"{number}.md", f"do step {number}")
    desk.write("other.log", "do not read this")
    provider.script(
        ASK, {"agent": {"prompt_template": "All steps.", "data_types": ["tasks"], "name": "Steps"}}
    )
    async with connected(desk):
        agent = await desk.agent(
            prompt_template="Heron words", schedule_cron="@daily", file_extensions=[".md"]
        )
        session = await said(desk, await begin(desk, agent_id=agent), "The steps")
    first, second = (told(request) for request in provider.calls[:2])
    assert "[begin agent data-" in first and "Heron words" in first
    assert "[begin interview data-" in second and '"answer":"The steps"' in second
    assert (session["prompt_template"], session["name"]) == ("All steps.", "Steps")
    assert (session["schedule_cron"], session["file_extensions"]) == ("@daily", [".md"])  # as they were
    assert session["found"]["counts"] == {"tasks": 3}
    assert session["message"] == "This is what the agent would do. In 3 documents of yours it finds: 3 tasks."
    assert len(desk.fetched) == 3 and "All steps." in json.dumps(provider.last["messages"])
    kept = await db.run(lambda: Agent.objects.get(pk=agent).prompt_template)
    assert kept == "Heron words" and desk.rows("tasks") == []


async def test_what_it_ended_with_is_told_again_and_looked_for_once(
    desk: DeviceOwner, provider: Provider
) -> None:
    from tests.agents.device_owner import connected

    desk.write("one.md", "do call Ada")
    provider.script(ASK, DONE)
    async with connected(desk):
        await desk.agent()
        session = await said(desk, await begin(desk), "Tasks")
        calls = len(provider.calls)
        assert await said(desk, session, "Tasks") == session
        assert await said(desk, session, "Tasks", turn=session["turn"] - 1) == session
    assert len(provider.calls) == calls and session["found"]["counts"] == {"tasks": 1}


async def test_after_five_answers_it_concludes_whatever_the_model_does(
    desk: DeviceOwner, provider: Provider
) -> None:
    from adiuva.accounts.models import User

    words = itertools.count()
    provider.default = lambda request: {
        "question": f"What about {next(words)}, {next(words)}, {next(words)}?"
    }
    await db.run(User.objects.filter(pk=desk.person.id).update, locale="de-AT")
    session = await begin(desk)
    for number in range(5):
        assert not session["done"] and session["message"].startswith("What about")
        session = await said(desk, session, f"answer {number}")
    assert session["done"] and session["data_types"] == ["tasks", "notes"]
    assert all(f"answer {number}" in session["prompt_template"] for number in range(5))
    assert session["message"].startswith(
        "Das würde der Agent tun. Das Modell ist zu keinem Ergebnis gekommen"
    )
    assert session["message"].endswith("deshalb wurde noch nichts ausprobiert.")
    final = provider.chats[-1].body
    assert "Conclude now" in told(provider.chats[-1])
    assert "question" not in final["response_format"]["json_schema"]["schema"]["properties"]
    assert final["messages"][-1]["content"].startswith("Repair: no more questions")


async def test_what_was_answered_is_not_asked_again_and_one_thing_is_asked_at_a_time(
    desk: DeviceOwner, provider: Provider
) -> None:
    await db.run(
        partial(
            entries.remember,
            user_id=desk.person.id,
            tier=Tier.CORE,
            key="company",
            content="Lovelace Ltd",
            source=entries.BY_HAND,
        )
    )
    provider.script({"question": "Hello. What should it find? How often? For example tasks. And where?"})
    zone = ZoneInfo((await desk.rest.get("/auth/me")).json()["timezone"])
    before = dt.datetime.now(zone)
    session = await begin(desk)
    assert session["message"] == "Hello. What should it find? For example tasks."
    days = {f"Today: {moment:%A %Y-%m-%d}" for moment in (before, dt.datetime.now(zone))}
    assert any(day in told(provider.chats[-1]) for day in days)
    assert "company: Lovelace Ltd" in told(provider.chats[-1])
    again = {"question": "Hello, what should it find? For example tasks."}
    provider.script(again, {"question": "How often should it look?"}, again, again)
    session = await said(desk, session, "tasks")
    assert session["message"] == "How often should it look?"
    assert "this was asked and answered already" in provider.chats[-1].body["messages"][-1]["content"]
    session = await said(desk, session, "daily")
    assert session["done"]


OFFLINE: list[tuple[list[str], bool, dict[str, Any]]] = [
    (
        ["Deadlines and clients", "all", "weekly"],
        False,
        {"data_types": ["timelines", "clients"], "cron": "0 8 * * 1"},
    ),
    (["everything", "mails"], False, {"question": True}),
    (["anything", "go back"], False, {"back": True}),
    (["all", "mails", "only when I start it"], False, {"data_types": 4, "cron": ""}),
    (["tasks every hour", "mails"], False, {"data_types": ["tasks"], "cron": "0 * * * *"}),
    (["notes", "daily at 6"], True, {"data_types": ["notes"], "cron": "0 6 * * *"}),
    (["a", "b", "c", "d", "e"], False, {"data_types": 4, "cron": ""}),
    (["one", "two", "three", "four", "back"], False, {"back": True}),
]


@pytest.mark.parametrize(("answers", "present", "expected"), OFFLINE)
def test_the_offline_llm_knows_when_it_has_heard_enough(
    answers: list[str], present: bool, expected: dict[str, Any]
) -> None:
    from adiuva.offline_llm import agent_interview
    from agents.journeys import interview
    from agents.journeys.interview import AgentProposal, AnsweredQuestion, GoBack, InterviewBrief, Question
    from agents.models import AgentType

    brief = InterviewBrief(
        AgentType.LOCAL_DIRECTORY, {"prompt_template": "Find", "name": "Mine"} if present else {}
    )
    said = [AnsweredQuestion(question="What?", answer=answer) for answer in answers]
    messages = [{"role": "user", "content": interview._material(brief, said, dt.date(2026, 3, 2), "")}]
    step = interview._read(agent_interview.next_step(messages, interview._schema(brief, said)), brief, said)
    match step:
        case Question():
            found: dict[str, Any] = {"question": True}
        case GoBack():
            found = {"back": True}
        case AgentProposal():
            tables = expected.get("data_types")
            count = isinstance(tables, int)
            found = {
                "data_types": len(step.data_types) if count else step.data_types,
                "cron": step.schedule_cron,
            }
    assert found == expected


# ── What the model says is data ─────────────────────────────────────────────────────────────────────────

LEAK = (ROOT / "agents" / "prompts" / "journey.md").read_text("utf-8").split("\n")[2]


@pytest.mark.parametrize(
    ("agent_type", "answers", "expected", "notes"),
    [
        ("local_directory", ["no JSON here", DONE], {"name": "Things to do"}, 0),
        ("local_directory", [[1, 2], DONE], {"name": "Things to do"}, 0),
        ("local_directory", [{"agent": {**AGENT, "data_types": ["mails"]}}, DONE], {"data_types": ["tasks"]}, 0),
        (
            "local_directory",
            [{"agent": {**AGENT, "data_types": ["mails", "notes", {}, "tasks", "tasks"]}}],
            {"data_types": ["tasks", "notes"]},
            1,
        ),
        ("local_directory", [{"agent": {**AGENT, "prompt_template": " "}}, DONE], {}, 0),
        ("local_directory", [{"agent": {**AGENT, "prompt_template": LEAK}}, DONE], {}, 0),
        ("local_directory", [{"agent": {**AGENT, "schedule_cron": "each dawn"}}], {"schedule_cron": ""}, 1),
        ("local_directory", [{"agent": {**AGENT, "schedule_cron": ["@daily"]}}], {"schedule_cron": ""}, 1),
        ("local_directory", [{"agent": {**AGENT, "name": "x" * 201}}], {"name": "Local folders agent"}, 0),
        ("local_directory", [{"agent": {**AGENT, "name": "Two\nlines\x00"}}], {"name": "Two lines"}, 0),
        (
            "local_directory",
            [{"agent": {**AGENT, "filters": {"file_extensions": ["md", ".EML"], "labels": ["x"]}}}],
            {"file_extensions": [".md", ".eml"], "filter_config": {}},
            0,
        ),
        (
            "local_directory",
            [{"agent": {**AGENT, "filters": {"file_extensions": ["../x"]}}}],
            {"file_extensions": []},
            1,
        ),
        (
            "gmail",
            [{"agent": {**AGENT, "filters": {"labels": ["Work"], "senders": "ada", "query": "*",
                                             "date_range": {"from": "2026-11-01", "to": None, "x": 1}}}}],
            {"filter_config": {"labels": ["Work"], "date_range": {"from": "2026-11-01"}}, "file_extensions": []},
            1,
        ),
        ("teams", [{"agent": {**AGENT, "filters": {"date_range": {"from": "soon"}}}}], {"filter_config": {}}, 1),
        ("outlook", [DONE], {"filter_config": {}}, 0),
    ],
)  # fmt: skip
async def test_a_configuration_is_checked(
    desk: DeviceOwner,
    provider: Provider,
    agent_type: str,
    answers: list[Any],
    expected: dict[str, Any],
    notes: int,
) -> None:
    provider.script(ASK, *answers)
    session = await said(desk, await begin(desk, agent_type=agent_type), "Tasks")
    assert session["done"] and session["prompt_template"] == AGENT["prompt_template"]
    assert {name: session[name] for name in expected} == expected
    assert len(session["notes"]) == notes and all(note in session["message"] for note in session["notes"])
    assert len(provider.chats) == 1 + len(answers)
    is_local = agent_type == "local_directory"
    assert session["found"]["code"] == ("device_offline" if is_local else "no_mailbox")


async def test_a_question_does_not_give_our_own_prompt_away(desk: DeviceOwner, provider: Provider) -> None:
    provider.script({"question": f"Well: {LEAK} So what should it find?"}, ASK)
    assert (await begin(desk))["message"] == ASK["question"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["tasks", "@daily"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["question", "back", "agent", "filters", *AGENT, "labels", "date_range", "from"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=fewer(60))
@given(
    json_values,
    st.integers(0, 5),
    st.sampled_from(["local_directory", "gmail"]),
    st.dictionaries(st.sampled_from(list(AGENT)), json_values),
)
def test_whatever_a_model_answers_is_a_step_or_refused(
    answer: Any, asked: int, agent_type: str, changes: dict[str, Any]
) -> None:
    from agents.cron import Cron
    from agents.journeys import interview
    from agents.journeys.interview import AgentProposal, AnsweredQuestion, InterviewBrief, Question
    from agents.models import AgentType

    before = [AnsweredQuestion(question="What?", answer="That.")] * asked
    for given_ in (answer, {"agent": AGENT | changes}):
        try:
            step = interview._read(given_, InterviewBrief(AgentType(agent_type)), before)
        except UnusableAnswer:
            continue
        if isinstance(step, Question):
            assert asked < 5 and 0 < len(step.text) <= 1_000
        elif isinstance(step, AgentProposal):
            assert asked and step.data_types and set(step.data_types) <= set(interview.DATA_TYPES)
            assert 0 < len(step.prompt_template) <= 20_000 and 0 < len(step.name) <= 200
            assert not step.schedule_cron or Cron.parse(step.schedule_cron)
            assert step.filter_config.keys() <= {"labels", "senders", "date_range"}


def test_what_nobody_speaks_of_stays_as_the_agent_has_it() -> None:
    from agents.journeys.interview import InterviewBrief, _outcome
    from agents.models import AgentType

    filters = {"labels": ["Work"], "senders": ["ada@example.com"]}
    brief = InterviewBrief(
        AgentType.GMAIL, {"name": "Mine", "schedule_cron": "@daily", "filter_config": filters}
    )
    said = {"prompt_template": "All.", "data_types": ["notes"], "filters": {"senders": []}}
    outcome = _outcome(said, brief)
    assert (outcome.name, outcome.schedule_cron) == ("Mine", "@daily")
    assert outcome.filter_config == {"labels": ["Work"]}  # senders were taken out
    assert _outcome(said | {"schedule_cron": "", "name": "New"}, brief).schedule_cron == ""


def test_of_a_long_prompt_and_what_was_said_it_keeps_what_was_said() -> None:
    from agents.journeys.interview import (
        AgentProposal,
        AnsweredQuestion,
        InterviewBrief,
        _fallback_proposal,
        _outcome,
    )
    from agents.models import AgentType

    long = InterviewBrief(AgentType.GMAIL, {"prompt_template": "p" * 20_000, "data_types": ["tasks"]})
    outcome = _fallback_proposal(long, [AnsweredQuestion(question="What?", answer="herons " * 500)])
    assert outcome.prompt_template.count("herons ") == 500 and len(outcome.prompt_template) == 20_000
    kept = _outcome({"prompt_template": "p" * 20_000, "data_types": ["tasks"]}, long)
    assert isinstance(kept, AgentProposal)  # what agents take, an answer may have


# ── When it cannot go on ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("faults", "status", "code"),
    [
        (["no JSON", {"nothing": 1}], 502, "journey_unclear"),
        ([{"agent": {**AGENT, "data_types": []}}] * 2, 502, "journey_unclear"),
        ([Fail(503, retry_after=0)] * 3, 503, "model_unavailable"),
        ([Fail(401)], 502, "model_rejected"),
        ([Raw(b"<html>")], 502, "model_garbled"),
    ],
)
async def test_a_fault_of_the_model_leaves_the_journey_as_it_was(
    desk: DeviceOwner, provider: Provider, faults: list[Any], status: int, code: str
) -> None:
    provider.script(*faults)
    refused = await desk.rest.post("/agents/journey/start", json={"agent_type": "gmail"})
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert not await db.run(JourneySession.objects.filter(user=desk.person.id).exists)
    provider.script(ASK, *faults, DONE)
    session = await begin(desk, agent_type="gmail")
    refused = await say(desk, session, "Tasks")
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    again = await said(desk, session, "Tasks", turn=session["turn"])
    assert again["done"] and again["turn"] == session["turn"] + 1


async def test_cloud_takes_the_only_mailbox_or_asks_which(desk: DeviceOwner, provider: Provider) -> None:
    from tests.agents.mailbox_scenario import connect_account
    from tests.fakes.mailboxes import Box

    provider.default = ASK
    none = await desk.rest.post("/agents/journey/start", json={"agent_type": "cloud"})
    assert (none.status_code, list(none.json()["fields"])) == (400, ["agent_type"])
    assert "/api/v1/oauth/gmail/authorize" in none.json()["message"]
    await db.run(connect_account, desk.person, Box("ada"))
    assert (await begin(desk, agent_type="cloud"))["message"] == ASK["question"]
    assert "mails of a Gmail account" in told(provider.chats[-1])

    teams = await db.run(connect_account, desk.person, Box("ada"), "teams")
    asked = len(provider.chats)
    session = await begin(desk, agent_type="cloud")
    assert "1. Gmail" in session["message"] and "2. Teams" in session["message"] and not session["done"]
    again = await said(desk, session, "both of them")
    assert again["message"] == session["message"] and len(provider.chats) == asked
    assert (await said(desk, again, "the Teams one, please"))["message"] == ASK["question"]
    assert "messages in Teams channels" in told(provider.chats[-1])
    back = await said(desk, again, back=True)
    assert back["message"] == session["message"]
    await said(desk, back, "2")
    provider.default = DONE
    done = await said(desk, back, "Tasks")
    assert (done["done"], done["agent_kind"], done["connection"]) == (True, "teams", str(teams.pk))


async def test_local_is_the_kind_of_local_folders(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = ASK
    agent = await desk.agent()
    await begin(desk, agent_type="local", agent_id=agent)
    assert "files in folders" in told(provider.chats[-1])
    wrong = await desk.rest.post("/agents/journey/start", json={"agent_type": "cloud", "agent_id": agent})
    assert (wrong.status_code, list(wrong.json()["fields"])) == (400, ["agent_type"])


async def test_another_users_an_unknown_and_an_expired_journey_are_not_found(
    desk: DeviceOwner, provider: Provider
) -> None:
    from agents.journeys import services

    provider.default = ASK
    mine, old = await begin(desk), await begin(desk)
    other = await db.run(somebody)

    def expire() -> None:
        JourneySession.objects.filter(pk=old["session_id"]).update(expires_at=timezone.now())

    await db.run(expire)
    with other.rest(desk.web) as theirs:
        answer = theirs.post(
            "/agents/journey/message", json={"session_id": mine["session_id"], "message": "x"}
        )
        assert (answer.status_code, answer.json()["code"]) == (404, "journey_not_found")
    for session in (old, {"session_id": str(uuid.uuid4())}, {"session_id": "none"}):
        answer = await say(desk, session, "Tasks")
        assert (answer.status_code, answer.json()["code"]) == (404, "journey_not_found")
    assert await db.run(services.delete_expired) >= 1
    left = JourneySession.objects.filter(user=desk.person.id).values_list("pk", flat=True)
    assert await db.run(list, left) == [uuid.UUID(mine["session_id"])]


async def test_it_is_refused_for_an_agent_of_another_type_or_user_and_for_an_empty_answer(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = ASK
    agent = await desk.agent()
    other = await db.run(somebody)
    wrong = await desk.rest.post("/agents/journey/start", json={"agent_type": "gmail", "agent_id": agent})
    assert (wrong.status_code, list(wrong.json()["fields"])) == (400, ["agent_type"])
    with other.rest(desk.web) as theirs:
        body = {"agent_type": "local_directory", "agent_id": agent}
        assert theirs.post("/agents/journey/start", json=body).status_code == 404
    assert (await desk.rest.post("/agents/journey/start", json={"agent_type": "fax"})).status_code == 400
    assert provider.chats == []
    assert (await say(desk, await begin(desk), " ")).status_code == 400


async def test_what_was_said_is_sealed(desk: DeviceOwner, provider: Provider) -> None:
    provider.script({"question": "A heron question?"}, {"question": "More?"})
    session = await begin(desk)
    await said(desk, session, "A heron answer")
    row = await db.run(JourneySession.objects.get, pk=session["session_id"])
    assert b"heron" not in bytes(row.state) and row.expires_at > timezone.now()


# ── Back, twice, at once ────────────────────────────────────────────────────────────────────────────────


async def test_one_goes_back_question_by_question_and_the_answers_are_dropped(
    desk: DeviceOwner, provider: Provider
) -> None:
    questions = [{"question": f"Question {number}?"} for number in range(1, 4)]
    provider.script(*questions, {"back": True}, {"question": "Other?"}, DONE)
    session = await begin(desk)
    for words in ("heron", "falcon"):
        session = await said(desk, session, words)
    assert session["message"] == "Question 3?"
    assert (await said(desk, session, back=True))["message"] == "Question 2?"
    session = await said(desk, session, "No, let us go back")
    assert session["message"] == "Question 1?"
    for _ in range(2):  # before the first there is none
        session = await said(desk, session, back=True)
        assert (session["message"], session["done"]) == ("Question 1?", False)
    session = await said(desk, session, "osprey")
    assert session["message"] == "Other?"
    assert "osprey" in told(provider.chats[-1]) and "falcon" not in told(provider.chats[-1])
    assert "heron" not in told(provider.chats[-1])
    done = await said(desk, session, "kestrel")
    again = await said(desk, done, back=True)
    assert (again["message"], again["done"]) == ("Other?", False) and "found" not in again


async def test_a_message_that_comes_twice_at_once_takes_one_question(
    desk: DeviceOwner, provider: Provider
) -> None:
    held = Hold({"question": "Second?"})
    provider.script(ASK, held, {"question": "Other second?"})
    session = await begin(desk)
    first = asyncio.create_task(say(desk, session, "Tasks"))
    assert await asyncio.to_thread(held.reached.wait, 10)
    other = asyncio.create_task(say(desk, session, "Tasks"))
    # Where the endpoint is asked one thing at a time, as after failures that other tests want, the other one is later.
    await asyncio.wait({other}, timeout=5)
    held.release()
    won, late = sorted([await first, await other], key=lambda answer: answer.status_code)
    assert won.status_code == 200, won.text
    second = won.json()
    assert (late.status_code, late.json()["code"]) == (409, "journey_moved_on")
    now = {"question": second["message"], "done": False, "turn": second["turn"]}
    assert {name: late.json()[name] for name in now} == now
    # And one after the other, if the client says which question it answers.
    assert await said(desk, session, "Tasks", turn=session["turn"]) == second
    assert len(provider.chats) == 3
    for stale in ({"message": "Notes", "turn": session["turn"]}, {"back": True, "turn": session["turn"]}):
        assert (await say(desk, session, **stale)).status_code == 409


# ── What is at hand ─────────────────────────────────────────────────────────────────────────────────────


async def looked(desk: DeviceOwner, provider: Provider, **body: Any) -> dict[str, Any]:
    provider.script(ASK, DONE)
    session = await said(desk, await begin(desk, **body), "Tasks")
    assert session["done"] and session["message"]
    return dict(session["found"])


async def test_when_there_is_nothing_to_look_into_it_says_why(desk: DeviceOwner, provider: Provider) -> None:
    from tests.agents.device_owner import connected

    nothing = {"sources": [], "records": [], "counts": {}}
    agent = await desk.agent(directory_paths=[str(desk.folder)])
    away = await looked(desk, provider, agent_id=agent)
    assert away == nothing | {"code": "device_offline", "message": away["message"]} and away["message"]
    async with connected(desk):
        assert (await looked(desk, provider, agent_id=agent))["code"] == "nothing_to_read"
        await desk.rest.delete(f"/agents/local/{agent}")
        assert (await looked(desk, provider))["code"] == "no_folder"


@pytest.mark.parametrize("protocol", [1, 2])
async def test_it_reads_three_documents_of_whatever_device_and_shows_what_could_be_read(
    desk: DeviceOwner, provider: Provider, protocol: int
) -> None:
    from tests.agents.device_owner import connected, document_text, tasks_from_lines

    provider.default = lambda request: (
        Fail(400) if "step 1" in document_text(request) else tasks_from_lines(request)
    )
    for number in range(3):
        desk.write(f"{number}.md", f"do step {number}\n" + "x" * 200_000)
    desk.device = desk.new_device(protocol=protocol)
    async with connected(desk):
        await desk.agent()
        found = await looked(desk, provider)
    assert sorted(record["data"]["title"] for record in found["records"]) == ["step 0", "step 2"]
    assert len(found["sources"]) == 2 and found["counts"] == {"tasks": 2}
    assert found["code"] == "model_rejected" and found["message"]


def test_the_newest_of_each_kind_is_chosen_and_no_empty_or_huge_file_before_others() -> None:
    from adiuva.devices.protocol import ManifestFile
    from agents.journeys.samples import choose_paths

    def file(path: str, mtime: int, size: int = 10) -> ManifestFile:
        return ManifestFile(path=path, sha256="0" * 64, size=size, mtime=mtime)

    files = [file("/a.md", 1), file("/b.md", 9), file("/c.eml", 2), file("/d.md", 8), file("/e.txt", 99, 0)]
    assert choose_paths(files) == ["/b.md", "/c.eml", "/d.md"]
    assert choose_paths([file("/huge.csv", 9, 10**9), file("/small.csv", 1)]) == ["/small.csv", "/huge.csv"]
    assert choose_paths([]) == []
