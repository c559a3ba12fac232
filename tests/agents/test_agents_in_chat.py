"""Agents from a chat: listed, run, waited for, read, set up and stopped, through a real socket and worker."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.db import connection
from redis.asyncio import Redis

from adiuva.core import db
from agents import run_watches, runs
from agents.models import Agent, Run, Watch
from agents.run_reports import agents_of
from agents.run_watches import ChatPlace
from integrations import connections
from integrations.models import Connection, Health, Reason
from integrations.oauth_clients import SCOPES, Grant
from tests.agents.device_owner import DeviceOwner, connected, tasks_from_lines
from tests.agents.factories import create_agent, create_run, rest_client
from tests.chat.chat_client import (
    ChatClient,
    DeviceRows,
    connect,
    conversation_of,
    dump_redis,
    end_frame,
    prompt_messages,
)
from tests.factories import Person
from tests.fakes.provider import Call, Hold, Provider, Request, Say
from tests.server_processes import Stack

CAN_ASK = ["dedupe", "batch", "approval"]


class Steps:
    """A model that chats by a script, and finds a task in each line of a document that begins with "do".

    `reading`, if given, answers for documents instead.
    """

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.reading: Any = tasks_from_lines
        self.of_follow_up = "It has ended."
        self.asked: list[Request] = []

    def __call__(self, request: Request) -> Any:
        if request.schema:
            return self.reading if isinstance(self.reading, Hold) else self.reading(request)
        if "[From the app, not from the user" in str(request.body["messages"][-1]["content"]):
            return self.of_follow_up  # which comes in its own time
        self.asked.append(request)
        step = self.steps.pop(0)
        return step(request) if callable(step) and not isinstance(step, Hold) else step

    @property
    def told(self) -> str:
        """What the last tools have answered."""
        return prompt_messages(self.asked[-1].body)[-1]


@asynccontextmanager
async def chatting(desk: DeviceOwner, **fields: Any) -> AsyncIterator[ChatClient]:
    """The same person at another device that chats about the rows of the desk."""
    async with connect(desk.web, desk.person, DeviceRows(), device_id="phone", **fields) as client:
        yield client


def script(provider: Provider, *steps: Any) -> Steps:
    model = Steps(*steps)
    provider.default = model
    return model


async def mine(model: Any, desk: DeviceOwner) -> list[Any]:
    return await db.run(lambda: list(model.objects.of(desk.person.id).order_by("created_at")))


async def test_a_run_is_started_waited_for_and_told_in_the_same_turn(
    desk: DeviceOwner, provider: Provider
) -> None:
    desk.write("a.md", "do call Ada\ndo write to Bob")
    await desk.agent(name="Clients")
    model = script(provider, Call("run_agent", {"agent": "clients", "wait_for_result": 60}), "Two tasks.")
    async with connected(desk), chatting(desk) as client:
        stream = await client.say("run Clients and wait", device_id="desk")
        assert stream.text == "Two tasks."
        assert "“Clients” has ended well (run [x1]): 1 document read, 2 new (2 tasks)." in model.told
        assert "They wait for the user's review:" in model.told
        assert "call Ada [t1]" in model.told and "write to Bob [t2]" in model.told
        (watch,) = await mine(Watch, desk)
        assert (watch.state, watch.started) == (Watch.State.TOLD, True)


async def test_what_became_of_the_rows_is_said(desk: DeviceOwner, provider: Provider) -> None:
    desk.write("a.md", "do one\ndo two\ndo three\ndo four")
    agent = await desk.agent(name="Clients")
    model = script(provider)
    async with connected(desk), chatting(desk) as client:
        await desk.run(agent)
        one, two, three, _ = [row["id"] for row in desk.rows("tasks")]
        desk.change("UPDATE tasks SET isApproved = 1 WHERE id = ?", one)
        desk.change("UPDATE tasks SET title = 'Two!' WHERE id = ?", two)
        desk.change("DELETE FROM tasks WHERE id = ?", three)
        model.steps = [Call("view_agent_output", {"agent": "Clients", "when": "today"}), "So it is."]
        await client.say("what did it find?", device_id="desk")
        assert "Of those looked at on the device: 1 to review, 1 approved, 1 changed, 1 gone." in model.told
        assert "task three (gone)" in model.told
    model.steps = [Call("view_agent_output"), "So it was."]
    async with chatting(desk) as client:
        await client.say("and now?")
        assert "4 new (4 tasks)" in model.told and "could not be looked at" in model.told
        assert "- task one" in model.told  # as it was found


async def test_no_agent_is_started_twice(desk: DeviceOwner, provider: Provider) -> None:
    """Not by two calls in one answer, nor by the next answer of the same turn."""
    await desk.agent(name="Clients")
    twice = Call("run_agent", {"agent": "Clients"})
    model = script(provider, Say(calls=[twice, twice]), twice, "Started.", twice, "Once more.")
    async with connected(desk), chatting(desk) as client:
        stream = await client.say("run Clients", device_id="desk")
        assert stream.text == "Started." and len(await mine(Run, desk)) == 1
        said = [text for request in model.asked for text in prompt_messages(request.body)]
        later = "it has not ended yet. The user will be told here when it ends: do not wait, poll or start it again."
        assert any(later in text for text in said)
        assert "Started by you" in model.told
        (run,) = await mine(Run, desk)
        await desk.until(str(run.pk), lambda seen: seen["state"] not in Run.LIVE)
        await client.say("run it again, Clients", device_id="desk")
    assert len(await mine(Run, desk)) == 2


async def test_an_agent_that_was_tried_out_can_be_run_at_once(desk: DeviceOwner, provider: Provider) -> None:
    desk.write("a.md", "do call Ada")
    await desk.agent(name="Clients")
    trial = Call("run_agent", {"agent": "Clients", "dry_run": True, "wait_for_result": 60})
    model = script(provider, trial, Call("run_agent", {"agent": "Clients"}), "Started.")
    async with connected(desk), chatting(desk) as client:
        await client.say("try Clients out, and if it works, run it", device_id="desk")
        assert model.told.startswith("Started “Clients” [")
        assert [run.dry_run for run in await mine(Run, desk)] == [True, False]


async def test_the_eleventh_run_an_hour_is_refused_in_words_but_not_in_another_conversation(
    web: str, person: Person, provider: Provider
) -> None:
    start = Call("run_agent", {"agent": "Clients"})
    model = script(provider, "Hello.", start, "Not now.", start, "Started.")

    def start_ten(conversation: str) -> None:
        for number in range(run_watches.MOST_AN_HOUR):
            run = create_run(create_agent(person.id, name=str(number), device_id="desk"))
            run_watches.add(run, ChatPlace(person.id, uuid4(), UUID(conversation)), started=True)
            runs.end(run, Run.State.CANCELLED, "cancelled")

    async with connect(web, person, DeviceRows(), device_id="desk") as client:
        place = conversation_of(await client.say("Hello"))
        await db.run(start_ten, place)
        agent = await db.run(partial(create_agent, person.id, name="Clients", device_id="desk"))
        await client.say("run Clients", conversation_id=place)
        assert model.told == (
            "Failed: 10 runs were started from this conversation in the last hour, which is the most. The user can "
            "start one in the app."
        )
        assert not await db.run(Run.objects.filter(agent=agent).exists)
        await client.say("run Clients")
        assert model.told.startswith("Started “Clients”")


async def test_names_that_fit_several_or_none_start_nothing(desk: DeviceOwner, provider: Provider) -> None:
    await desk.agent(name="Mail in"), await desk.agent(name="Mail out")
    model = script(
        provider,
        Call("run_agent", {"agent": "mail"}),
        "Which?",
        Call("run_agent", {"agent": "Nobody"}),
        "There is none.",
        Call("list_agents"),
        "Two.",
    )
    async with chatting(desk) as client:
        await client.say("run mail")
        assert model.told.startswith("Failed: 2 agents are called so: “Mail")
        await client.say("run Nobody")
        assert model.told.startswith("Failed: there is no agent “Nobody”. There are “Mail")
        await client.say("which agents do I have?")
        assert model.told.startswith("2 agents:") and "has never run" in model.told
    assert await mine(Run, desk) == []


async def test_what_is_missing_is_said_with_what_to_do(desk: DeviceOwner, provider: Provider) -> None:
    await desk.agent(name="Clients")
    await desk.agent(name="Elsewhere", directory_paths=["/nowhere"])
    model = script(provider, *[step for name in ("Clients", "Elsewhere") for step in (
        Call("run_agent", {"agent": name}), "No.")])  # fmt: skip
    async with chatting(desk) as client:
        await client.say("run Clients")
        assert "its device has never said hello" in model.told
        async with connected(desk):
            await client.say("run Elsewhere")
    assert "has not granted /nowhere. The user has to grant it there" in model.told
    assert await mine(Run, desk) == []


# ── Wait ────────────────────────────────────────────────────────────────────────────────────────────────


async def waiting(client: ChatClient, held: Hold, **fields: Any) -> str:
    """A turn that waits for a run whose model is held."""
    key = await client.ask("run Clients and wait", device_id="desk", **fields)
    await asyncio.to_thread(held.reached.wait, 30)
    await client.until(lambda: any("Reading your documents" in label for label in labels(client, key)))
    return key


def labels(client: ChatClient, key: str) -> list[str]:
    frames = client.streams[key].frames if key in client.streams else []
    return [frame["label"] for frame in frames if frame["type"] == "stream_status"]


@pytest.fixture
async def held(desk: DeviceOwner, provider: Provider) -> AsyncIterator[tuple[Steps, Hold]]:
    """An agent that is held while it reads."""
    desk.write("a.md", "do call Ada")
    await desk.agent(name="Clients")
    model, hold = (
        script(provider, Call("run_agent", {"agent": "Clients", "wait_for_result": 300})),
        Hold({"records": []}),
    )
    model.reading = hold
    yield model, hold
    hold.release()


async def test_a_wait_ends_when_the_user_says_something(desk: DeviceOwner, held: tuple[Steps, Hold]) -> None:
    model, hold = held
    model.steps.append("It still runs.")
    async with connected(desk), chatting(desk) as client:
        key = await waiting(client, hold)
        await client.steer(key, "how is it going?")
        stream = await client.ended(key)
        assert end_frame(stream)["finish"] == "stop"
        assert "0 of 1 documents read" in model.told
        assert "The user has said something meanwhile: finish your answer." in model.told
        (watch,) = await mine(Watch, desk)
        assert watch.state == Watch.State.WAITING


async def test_a_wait_leaves_time_for_an_answer_says_so_and_the_end_is_told_later(
    stack: Stack, desk: DeviceOwner, held: tuple[Steps, Hold]
) -> None:
    model, hold = held
    model.steps.append("It still runs.")
    web = stack.web(ADIUVA_TURN_DEADLINE_S="5")
    knows = [*CAN_ASK, "followups"]
    async with (
        connected(desk),
        connect(web, desk.person, DeviceRows(), device_id="phone", capabilities=knows) as client,
    ):
        began = time.monotonic()
        stream = await client.say("run Clients and wait", device_id="desk")
        assert stream.text == "It still runs." and end_frame(stream)["finish"] == "stop"
        assert time.monotonic() - began > 3.0  # four fifths of the turn, but for a moment
        assert re.search(r"After \d s \(300 s would not have left time for an answer\):", model.told)
        assert "The user will be told here when it ends: do not wait again." in model.told
        hold.release()
        await client.until(
            lambda: any(one.text == "It has ended." and one.end for one in client.streams.values())
        )


async def test_a_message_that_waits_in_line_ends_a_wait_too(
    desk: DeviceOwner, held: tuple[Steps, Hold]
) -> None:
    model, hold = held
    model.steps += ["It still runs.", "Noon."]
    async with connected(desk), chatting(desk) as client:
        key = await waiting(client, hold)
        place = client.streams[key].frames[0]["conversation_id"]
        later = await client.say("what time is it?", conversation_id=place)
        assert (client.streams[key].text, later.text) == ("It still runs.", "Noon.")


async def test_a_turn_that_is_cancelled_says_that_its_run_goes_on(
    desk: DeviceOwner, held: tuple[Steps, Hold]
) -> None:
    _, hold = held
    async with connected(desk), chatting(desk) as client:
        key = await waiting(client, hold)
        await client.cancel(key)
        stream = await client.ended(key)
        assert end_frame(stream)["finish"] == "cancelled"
        assert "The agent “Clients” goes on. You will be told here when it has ended." in stream.text
        hold.release()
        (run,) = await mine(Run, desk)
        assert (await desk.until(str(run.pk), lambda seen: seen["state"] not in Run.LIVE))[
            "state"
        ] == "success"
    (watch,) = await mine(Watch, desk)
    assert watch.state in (Watch.State.DUE, Watch.State.HELD, Watch.State.TOLD)  # as far as its follow-up is


async def test_no_word_of_it_is_readable_in_the_database_in_redis_or_in_a_log(
    desk: DeviceOwner, stack: Stack, provider: Provider
) -> None:
    word = f"canary{uuid4().hex[:10]}"
    desk.write("a.md", f"do {word}")
    await desk.agent(name=f"{word} agent")
    start = Call("run_agent", {"agent": f"{word} agent"})
    script(provider, start, f"Started {word}.").of_follow_up = f"It has found {word}."
    async with connected(desk), chatting(desk, capabilities=[*CAN_ASK, "followups"]) as client:
        await client.say(f"run {word} agent", device_id="desk")
        await client.until(
            lambda: any(f"It has found {word}" in one.text and one.end for one in client.streams.values())
        )
        assert any(frame.get("agent_name") == f"{word} agent" for frame in client.others)  # run_ended
        found = await db.run(_tables_with, word)
        async with Redis.from_url(settings.REDIS_URL) as redis:
            kept = await dump_redis(redis)
    assert not found and word.encode() not in kept
    assert "agents_run" in await db.run(_tables_with, "completed")  # what is readable is seen
    assert [log.name for log in stack.folder.glob("*.log") if word in log.read_text()] == []


def _tables_with(word: str) -> list[str]:
    """The tables with a row in which a word can be read."""
    readable, found = [f"%{word}%", f"%{word.encode().hex()}%"], []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'SELECT 1 FROM "{table}" AS row WHERE row::text LIKE ANY(%s) LIMIT 1', [readable])
            found += [table] if cursor.fetchone() else []
    return found


async def test_a_run_is_stopped_and_undone_after_a_yes(desk: DeviceOwner, provider: Provider) -> None:
    desk.write("a.md", "do call Ada")
    await desk.agent(name="Clients")
    model = script(
        provider,
        Call("run_agent", {"agent": "Clients", "wait_for_result": 60}),
        "It found one.",
        Call("stop_run", {"run_or_agent": "Clients", "undo": True}),
        "Shall I?",
        confirmed,
        "It is undone.",
    )
    async with connected(desk), chatting(desk) as client:
        first = await client.say("run Clients", device_id="desk")
        place = next(frame["conversation_id"] for frame in first.frames if frame["type"] == "stream_start")
        asked = await client.say("undo Clients", device_id="desk", conversation_id=place)
        assert "Undo the run of “Clients” and delete what it has created" in asked.text
        assert len(desk.rows("tasks")) == 1
        await client.say("yes", device_id="desk", conversation_id=place)
        assert "Undone: 1 of its records deleted." in model.told
    assert desk.rows("tasks") == []


def confirmed(request: Request) -> Call:
    """The call that the prompt says the user has said yes to."""
    told = str(request.body["messages"][-1]["content"])
    name, _, arguments = re.findall(r"^- .*: (\w+)( )(\{.*\})$", told, re.MULTILINE)[-1]
    return Call(name, json.loads(arguments))


# ── Set up ──────────────────────────────────────────────────────────────────────────────────────────────


def next_weekday(zone: str, *, hour: int) -> dt.date:
    """Return the next day from Monday to Friday on which that hour is yet to come."""
    now = dt.datetime.now(ZoneInfo(zone))
    days = (now.date() + dt.timedelta(days=days) for days in range(now.hour >= hour, 5))
    return next(day for day in days if day.weekday() < 5)


async def test_an_agent_is_tried_out_and_made_after_a_yes_as_the_question_says(
    desk: DeviceOwner, provider: Provider
) -> None:
    desk.write("a.md", "do call Ada")
    wish = {
        "name": "Clients",
        "look_for": "what is to be done",
        "tables": "tasks",
        "folders": [str(desk.folder)],
        "extensions": "md",
        "schedule": "0 8 * * 1-5",
        "catch_up": "within",
        "hours": 6,
    }
    ask = Call("set_up_agent", wish)
    other = "Shall I tell you the time?"
    model = script(provider, ask, "Shall I?", other, ask, "Shall I now?", confirmed, "Made.")
    before = next_weekday("Europe/Rome", hour=8)
    async with connected(desk), chatting(desk) as client:
        first = await client.say("make an agent", device_id="desk")
        next_days = {before, next_weekday("Europe/Rome", hour=8)}
        place = next(frame["conversation_id"] for frame in first.frames if frame["type"] == "stream_start")
        assert (
            "Tried out, not saved: In 1 document of yours it finds: 1 task. Such as: call Ada." in model.told
        )
        for part in (
            "Make the agent “Clients”: ",
            f"read {desk.folder} on “",
            "of the files .md; look for “what is to be done”; suggest tasks; ",
            "every weekday at 08:00 (Europe/Rome), next ",
            "missed times are caught up on within 6 hours",
        ):
            assert part in first.text, first.text
        assert any(f", next {day:%a} " in first.text for day in next_days)
        await client.say("what time is it?", device_id="desk", conversation_id=place)
        assert await mine(Agent, desk) == []
        await client.say("yes", device_id="desk", conversation_id=place)  # to the other question
        assert await mine(Agent, desk) == []
        await client.say("yes", device_id="desk", conversation_id=place)
    assert model.told.startswith(
        "Made the agent “Clients” [a1]. It runs every weekday at 08:00 (Europe/Rome). Next: "
    )
    (made,) = await db.run(agents_of, desk.person.id)
    agent = made.agent
    assert (made.name, agent.prompt_template, agent.data_types) == (
        "Clients",
        "what is to be done",
        ["tasks"],
    )
    assert (agent.directory_paths, agent.file_extensions, agent.device_id) == (
        [str(desk.folder)],
        [".md"],
        "desk",
    )
    assert (agent.schedule_cron, agent.zone, agent.catch_up_hours) == ("0 8 * * 1-5", "Europe/Rome", 6)


async def test_a_change_is_asked_on_devices_that_can_and_a_no_changes_nothing(
    desk: DeviceOwner, provider: Provider
) -> None:
    await desk.agent(name="Clients")
    weekly = Call("set_up_agent", {"agent": "Clients", "schedule": "0 9 * * mon"})
    gone = Call("set_up_agent", {"agent": "Clients", "delete": True})
    script(provider, weekly, "Not then.", weekly, "It is set.", gone, "It is gone.")
    async with chatting(desk, capabilities=CAN_ASK) as client:
        for place, (approved, summary) in enumerate((
            (False, "Change the agent “Clients”: every Monday at 09:00 (Europe/Rome), next Mon "),
            (True, "Change the agent “Clients”: every Monday at 09:00 (Europe/Rome), next Mon "),
            (True, "Delete the agent “Clients”"),
        )):  # fmt: skip
            key = await client.ask("every Monday at 9")
            question = await client.asked_for(key)
            assert question["summary"].startswith(summary) and question["table"] == "agents"
            await client.decide(question["id"], approved)
            await client.ended(key)
            agents = await mine(Agent, desk)
            assert [agent.schedule_cron for agent in agents] == [[""], ["0 9 * * mon"], []][place]


async def test_the_times_that_are_said_are_those_of_the_row_across_a_change_of_the_clocks(
    desk: DeviceOwner, provider: Provider
) -> None:
    await desk.agent(name="Clients")
    # In 2027, Rome has no 02:30 on the 28th of March; New York changed two weeks before.
    wish = {"agent": "Clients", "schedule": "30 2 27-29 3 *", "announce": "always"}
    moved = {"agent": "Clients", "timezone": "America/New_York"}
    model = script(
        provider, Call("set_up_agent", wish), "It is set.", Call("set_up_agent", moved), "It is moved."
    )
    said = []
    async with chatting(desk, capabilities=CAN_ASK) as client:
        for text in ("at half past two", "in New York"):
            key = await client.ask(text)
            question = await client.asked_for(key)
            await client.decide(question["id"], True)
            await client.ended(key)
            said.append((question["summary"], model.told))
    (agent,) = await mine(Agent, desk)
    assert (agent.zone, agent.announce) == ("America/New_York", "always")
    assert "every end of its scheduled runs is told" in said[0][0]
    rome, york = (told.partition("Next: ")[2] for _, told in said)
    assert rome == "Sat 27 March 02:30, Sun 28 March 03:00, Mon 29 March 02:30."
    assert york == "Sat 27 March 02:30, Sun 28 March 02:30, Mon 29 March 02:30."
    shown = await db.run(lambda: rest_client(desk.person).get(f"/api/v1/agents/local/{agent.pk}").json())
    assert [time[:16] for time in shown["next_runs"][:3]] == [f"2027-03-{day}T02:30" for day in (27, 28, 29)]


async def test_where_the_account_has_no_zone_that_of_the_device_is_named(
    web: str, person: Person, provider: Provider
) -> None:
    await db.run(create_agent, person.id, name="Clients")
    model = script(
        provider, Call("set_up_agent", {"agent": "Clients", "schedule": "0 8 * * *"}), "It is set."
    )
    async with connect(
        web, person, DeviceRows(), device_id="desk", timezone="Europe/Rome", capabilities=CAN_ASK
    ) as client:
        key = await client.ask("every day at 8")
        await client.decide((await client.asked_for(key))["id"], True)
        await client.ended(key)
    assert "(UTC). Next: " in model.told
    assert "time zone is UTC, their device is in Europe/Rome: ask the user which is theirs." in model.told


async def test_a_dry_run_shows_and_creates_nothing(desk: DeviceOwner, provider: Provider) -> None:
    desk.write("a.md", "do call Ada")
    desk.write("b.md", "do write to Bob")
    await desk.agent(name="Clients")
    dry = {"agent": "Clients", "dry_run": True, "max_documents": 1, "wait_for_result": 60}
    model = script(provider, Call("run_agent", dry), "One task.")
    async with connected(desk), chatting(desk) as client:
        await client.say("try Clients out, run it", device_id="desk")
        assert "The dry run of “Clients” has ended well" in model.told and "1 document read" in model.told
        assert "would be" in model.told
        assert desk.rows("tasks") == []
        model.steps = [Call("run_agent", {"agent": "Clients", "max_documents": 1}), "No."]
        await client.say("run Clients", device_id="desk")
        assert "Failed: max_documents is for dry runs." in model.told
    (run,) = await mine(Run, desk)
    assert (run.dry_run, run.max_sources) == (True, 1)


# ── Mailboxes ───────────────────────────────────────────────────────────────────────────────────────────


async def test_an_agent_of_a_mailbox_is_made_run_and_read_and_says_what_is_missing(
    web: str, person: Person, provider: Provider
) -> None:
    grant = Grant("access", "refresh", 3600, SCOPES["gmail"], "ada@example.com")
    account = await db.run(partial(connections.connect, user_id=person.id, provider="gmail", grant=grant))
    wish = {"kind": "gmail", "look_for": "bills", "senders": "bea@example.com", "from": "2026-11-01"}
    model = script(provider, Call("set_up_agent", wish), "It is made.")
    async with connect(web, person, DeviceRows(), device_id="desk", capabilities=CAN_ASK) as client:
        key = await client.ask("make an agent that reads my mails for bills")
        question = (await client.asked_for(key))["summary"]
        assert "read Gmail ada@example.com" in question and "only from bea@example.com" in question
        assert "only of the days 2026-11-01 to …" in question
        await client.decide((await client.asked_for(key))["id"], True)
        await client.ended(key)
        agent = await db.run(Agent.objects.get, user_id=person.id)
        assert (agent.type, agent.connection_id) == ("gmail", account.pk)
        assert agent.filter_config == {"senders": ["bea@example.com"], "date_range": {"from": "2026-11-01"}}
        name = await db.run(lambda: agent.name)

        lost = {"health": Health.NEEDS_REAUTH, "reason": Reason.REFUSED}
        await db.run(partial(Connection.objects.filter(pk=account.pk).update, **lost))
        model.steps = [Call("run_agent", {"agent": name}), "You have to connect it."]
        await client.say(f"run {name}")
        assert "Failed: Gmail has to be connected again" in model.told
        await db.run(Connection.objects.filter(pk=account.pk).delete)
        model.steps = [Call("run_agent", {"agent": name}), "You have to connect it."]
        await client.say(f"run {name}")
        assert "Failed: its Gmail account is not connected any more." in model.told
        assert not await db.run(Run.objects.of(person.id).exists)

        run = await db.run(create_run, agent)
        await db.run(runs.end, run, Run.State.ERROR, "no_connection")
        model.steps = [Call("view_agent_output", {"agent": name}), "It failed."]
        await client.say("what did it find?")
        assert "its account is not connected any more" in model.told


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"folders": ["/etc"], "look_for": "x"}, "has not granted /etc"),
        ({"folders": ["notes"], "look_for": "x"}, "'notes' is not an absolute path"),
        ({"look_for": "x"}, "kind is needed"),
        ({"kind": "gmail", "look_for": "x"}, "no Gmail account is connected"),
        ({"kind": "folder", "look_for": "x", "schedule": "every day"}, "Not a schedule"),
        ({"kind": "folder", "look_for": "x", "timezone": "Rome"}, "'Rome' is not an IANA time zone"),
        ({"agent": "Clients", "labels": "work"}, "labels is nothing that an agent of this kind has"),
        ({"agent": "Clients", "catch_up": "within"}, "catch_up within needs hours"),
    ],
)  # fmt: skip
async def test_what_cannot_be_set_up_is_said(wished: Wished, wish: dict[str, Any], why: str) -> None:
    told = await wished(wish)
    assert "Failed:" in told and why in told


async def test_an_agent_that_is_as_wanted_is_no_failure(wished: Wished) -> None:
    told = await wished({"agent": "Clients", "name": "Clients"})
    assert "The agent “Clients” [" in told and "is like that already, so nothing was changed. It runs" in told
    assert "Failed" not in told


Wished = Callable[[dict[str, Any]], Awaitable[str]]


@pytest.fixture
async def wished(web: str, person: Person, provider: Provider) -> AsyncIterator[Wished]:
    """What the model is told when it wishes for an agent; one that is called Clients is there."""
    await db.run(create_agent, person.id, name="Clients")
    async with connect(web, person, DeviceRows(), device_id="desk", grants=["/home/ada"]) as client:

        async def wish(arguments: dict[str, Any]) -> str:
            model = script(provider, Call("set_up_agent", arguments), "No.")
            await client.say("set it up")
            return model.told

        yield wish
    assert len(await db.run(agents_of, person.id)) == 1
