"""Models and devices that fail, users who change their mind, sockets that drop: each turn ends as the contract says."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from adiuva.core import db
from tests.chat.chat_client import (
    ChatClient,
    DeviceRows,
    Frame,
    connect,
    conversation_of,
    conversation_words,
    end_frame,
    prompt_messages,
    small_limits_web,
    stored_messages,
    wait_for,
)
from tests.factories import Person, somebody
from tests.fakes.provider import Break, Call, Endless, Fail, Hold, Provider, Raw, Say
from tests.server_processes import Stack

TASK = {"id": "3f2a9c01d4e54bb0", "title": "Call Ada", "status": "todo"}
CREATE = Call("create_task", {"title": "Call Bob"})


@pytest.fixture
def tight(stack: Stack, provider: Provider) -> str:
    return small_limits_web(stack, provider)


# ── The model ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_busy_model_is_asked_again(chat_web: str, person: Person, provider: Provider) -> None:
    provider.script(Fail(429, retry_after=0), Fail(500, retry_after=0), "Hello.")
    async with connect(chat_web, person) as client:
        stream = await client.say("hello")
    assert stream.text == "Hello."
    assert end_frame(stream)["usage"]["model_calls"] == 1
    assert len(provider.chats) == 3


@pytest.mark.parametrize(
    ("step", "requests", "code"),
    [
        (Fail(429, retry_after=0), 3, "model_rate_limited"),
        (Fail(500, retry_after=0), 3, "model_unavailable"),
        (Fail(400), 1, "model_rejected"),
        (Fail(401), 1, "model_rejected"),
        (Raw(b"<html>", content_type="text/html"), 1, "model_garbled"),
    ],
)
async def test_a_model_that_does_not_answer_ends_the_turn_with_its_error(
    chat_web: str, person: Person, provider: Provider, step: Any, requests: int, code: str
) -> None:
    provider.default = step
    async with connect(chat_web, person) as client:
        stream = await client.say("hello")
    end = end_frame(stream)
    assert (end["finish"], end["code"], stream.text) == ("error", code, "")
    assert len(provider.chats) == requests


async def test_a_model_that_refuses_twice_ends_the_turn_as_a_limit(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(Say("I would", finish="content_filter"), Say("", finish="content_filter"))
    async with connect(chat_web, person) as client:
        stream = await client.say("hello")
    end = end_frame(stream)
    assert (end["finish"], end["code"]) == ("limit", "content_filter")
    assert stream.text == "I would\n\nThe model's provider refuses to answer this."


@pytest.mark.parametrize(
    "step",
    [
        Break(at="text", text="Half an ans"),
        Break(at="text", text="Half an ans", clean=True),
    ],
    ids=["reset", "without a finish"],
)
async def test_what_a_model_said_before_it_broke_off_is_kept(
    chat_web: str, person: Person, provider: Provider, step: Any
) -> None:
    provider.script(step)
    async with connect(chat_web, person) as client:
        stream = await client.say("hello")
    end = end_frame(stream)
    assert (end["finish"], end["code"], stream.text) == ("error", "model_interrupted", "Half an ans")
    answer = (await stored_messages(chat_web, person, conversation_of(stream)))[-1]
    assert (answer["text"], answer["finish"], answer["code"]) == ("Half an ans", "error", "model_interrupted")


async def test_what_was_changed_before_the_model_failed_is_told(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(CREATE, Fail(400))
    async with connect(chat_web, person) as client:
        end = end_frame(await client.say("remind me to call Bob"))
    assert end["finish"] == "error"
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (Call("fly_to_the_moon"), "Failed: there is no such tool; there are list_tasks, "),
        (Call("create_task"), "Failed: title: Field required."),
        (Call("create_task", {"title": ["a"]}), "Failed: title: Input should be a valid string."),
        (
            Call("create_task", {"title": "a", "colour": "red"}),
            "Failed: there is no argument colour; there are ",
        ),
        (Call("create_task", {"title": "a", "due_date": "soonish"}), "Failed: due_date"),
        (Call("create_task", {"title": "   "}), "Failed: title must not be empty."),
        (Call("create_task", "{no json"), "Failed: the arguments are not a JSON object."),
        (Call("create_task", "[1]"), "Failed: the arguments are not a JSON object."),
        (Call("ask_specialist", {"agent": "butler", "request": "tea"}), "Failed: agent: Input should be "),
    ],
)
async def test_a_call_that_cannot_be_carried_out_is_explained_to_the_model(
    chat_web: str, person: Person, provider: Provider, call: Call, sentence: str
) -> None:
    provider.script(call, "Sorry.")
    rows = DeviceRows()
    async with connect(chat_web, person, rows) as client:
        stream = await client.say("do something")
    end = end_frame(stream)
    assert (stream.text, end["finish"], end["mutations"]) == ("Sorry.", "stop", [])
    assert prompt_messages(provider.last)[0].startswith(sentence)
    assert rows.calls == []


async def test_a_model_that_calls_tools_for_ever_comes_to_a_limit(
    tight: str, person: Person, provider: Provider
) -> None:
    provider.default = lambda request: (
        Say("And again.", calls=[Call("list_tasks")]) if request.body.get("tools") else "You have none."
    )
    async with connect(tight, person) as client:
        stream = await client.say("list my tasks")
    end = end_frame(stream)
    assert (end["finish"], end["code"]) == ("limit", "too_many_model_calls")
    assert len(provider.chats) == end["usage"]["model_calls"] == 5
    assert stream.text.count("And again.") == 4 and stream.text.endswith("You have none.")


async def test_a_model_that_answers_without_end_is_stopped(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(Endless())
    async with connect(chat_web, person) as client:
        stream = await client.say("hello")
    end = end_frame(stream)
    assert (end["finish"], end["code"]) == ("limit", "answer_too_long")
    assert 150_000 < len(stream.text) <= 200_000
    await wait_for(provider.chats[0].gone)


async def test_a_turn_has_a_deadline(tight: str, person: Person, provider: Provider) -> None:
    hold = Hold()
    provider.script(CREATE, hold)
    async with connect(tight, person) as client:
        end = end_frame(await client.say("remind me to call Bob"))
    assert (end["finish"], end["code"]) == ("limit", "deadline")
    assert len(end["mutations"]) == 1
    await wait_for(hold.gone)


# ── The device ──────────────────────────────────────────────────────────────────────────────────────────


class Odd(DeviceRows):
    """A device that answers what it likes."""

    def __init__(self, **answer: Any) -> None:
        super().__init__()
        self.odd = answer

    def answer(self, call: Frame) -> Frame:
        self.calls.append(call)
        return {"id": call["id"], **self.odd}


LIST, FIND = Call("list_clients"), Call("get_note", {"note_id": "n1"})
UNREADABLE = "Failed: the device gave an answer that cannot be read"


@pytest.mark.parametrize(
    ("call", "answer", "sentence"),
    [
        (LIST, {"error": "the database is locked"}, "Failed: the device refused: the database is locked."),
        (LIST, {}, f"{UNREADABLE}."),
        (LIST, {"ok": True}, f"{UNREADABLE}."),
        (LIST, {"rows": [{"name": "a row without an id"}]}, f"{UNREADABLE}."),
        (LIST, {"rows": "none"}, f"{UNREADABLE}."),
        (FIND, {"rows": []}, f"{UNREADABLE}."),
        (FIND, {"row": {"id": "another"}}, f"{UNREADABLE}."),
        (CREATE, {"error": ""}, "Failed: the device refused: it gave no reason."),
        (CREATE, {"row": None}, f"{UNREADABLE}; it may have happened all the same."),
        (CREATE, {"row": {"title": "Call Bob"}}, f"{UNREADABLE}; it may have happened all the same."),
    ],
)
async def test_a_device_that_refuses_or_talks_nonsense_is_told_as_that(
    tight: str, person: Person, provider: Provider, call: Call, answer: Frame, sentence: str
) -> None:
    provider.script(call, "Sorry.")
    async with connect(tight, person, Odd(**answer)) as client:
        stream = await client.say("do something")
    end = end_frame(stream)
    assert (end["finish"], end["mutations"], stream.text) == ("stop", [], "Sorry.")
    assert prompt_messages(provider.last) == [sentence]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (Call("list_tasks"), "Failed: the device did not answer in time. Nothing was changed."),
        (
            CREATE,
            "Failed: the device did not answer in time; it may have happened all the same. Look before you retry.",
        ),
    ],
)
async def test_a_silent_device_is_told_as_that(
    tight: str, person: Person, provider: Provider, call: Call, sentence: str
) -> None:
    provider.script(call, "Sorry.")
    async with connect(tight, person) as client:
        client.silent = True
        end = end_frame(await client.say("do something"))
    assert (end["finish"], end["mutations"]) == ("stop", [])
    assert prompt_messages(provider.last) == [sentence]


@pytest.mark.parametrize("call", [Call("list_tasks"), Call("list_tasks", {"status": "due"}), CREATE])
async def test_a_device_that_went_away_before_the_call_is_told_as_offline(
    tight: str, person: Person, provider: Provider, call: Call
) -> None:
    hold = Hold(call)
    provider.script(hold, "Sorry.")
    async with connect(tight, person) as client:
        key = await client.ask("do something")
        await wait_for(hold.reached)
    hold.release()
    async with connect(tight, person, device_id="phone", streams=[{"request_id": key, "after": -1}]) as phone:
        stream = await phone.ended(key)
    assert (end_frame(stream)["finish"], stream.text) == ("stop", "Sorry.")
    assert prompt_messages(provider.last) == [
        "Failed: the device is offline, so nothing was read or changed."
    ]
    assert phone.rows.calls == []  # it was asked of the other


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (Call("list_clients"), "Failed: the device is offline, so nothing was read or changed."),
        (
            CREATE,
            "Failed: the device did not answer in time; it may have happened all the same. Look before you retry.",
        ),
    ],
)
async def test_a_device_that_goes_away_during_the_call_leaves_the_model_no_wrong_idea(
    tight: str, person: Person, provider: Provider, call: Call, sentence: str
) -> None:
    provider.script(call, "Sorry.")
    async with connect(tight, person) as client:
        client.silent = True
        key = await client.ask("do something")
        await client.until(lambda: bool(client.unanswered))
    async with connect(tight, person, device_id="phone", streams=[{"request_id": key, "after": -1}]) as phone:
        end = end_frame(await phone.ended(key))
    assert (end["finish"], end["mutations"]) == ("stop", [])
    assert prompt_messages(provider.last) == [sentence]


# ── The socket drops ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("applied", [True, False], ids=["its answer was lost", "it was not done yet"])
async def test_a_write_waits_for_the_device_to_come_back_and_is_done_once(
    chat_web: str, person: Person, provider: Provider, applied: bool
) -> None:
    provider.script(Say("I am at it.", calls=[CREATE]), "Done.")
    rows = DeviceRows()
    async with connect(chat_web, person, rows) as client:
        client.silent = True
        key = await client.ask("remind me to call Bob")
        await client.until(lambda: bool(client.unanswered) and client.streams[key].seq >= 0)
        before = client.streams[key]
        if applied:
            rows.answer(client.unanswered[0])
        client.socket.ws.transport.abort()
    again = [{"request_id": key, "after": before.seq}]
    async with connect(chat_web, person, rows, streams=again) as client:
        after = await client.ended(key)
    after.frames[:0] = before.frames
    assert after.text == "I am at it.\n\nDone."
    assert [mutation["data"] for mutation in end_frame(after)["mutations"]] == rows.tables["tasks"]
    assert len(rows.tables["tasks"]) == 1
    assert len({call["id"] for call in rows.calls}) == 1
    assert len(provider.chats) == 2


async def test_a_turn_goes_on_when_the_socket_drops(
    chat_web: str, person: Person, provider: Provider
) -> None:
    hold, end = Hold(Call("list_tasks")), Hold("There is one.")
    provider.script(hold, end)
    async with connect(chat_web, person, DeviceRows(tasks=[TASK])) as client:
        key = await client.ask("list my tasks")
        await wait_for(hold.reached)
        client.socket.ws.transport.abort()
    hold.release()
    async with connect(chat_web, person, DeviceRows(tasks=[TASK])) as client:
        await wait_for(end.reached)  # the tool call found the new connection
        end.release()
        await client.socket.send({"type": "stream_resume", "request_id": key, "after": -1})
        stream = await client.ended(key)
    assert (stream.text, end_frame(stream)["finish"]) == ("There is one.", "stop")
    assert "Call Ada" in prompt_messages(provider.last)[0]


# ── Cancelling ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cancel_ends_the_models_request(chat_web: str, person: Person, provider: Provider) -> None:
    hold = Hold()
    provider.script(hold)
    async with connect(chat_web, person) as client:
        key = await client.ask("hello")
        await wait_for(hold.reached)
        await client.cancel(key)
        await wait_for(hold.gone)
        end = end_frame(await client.ended(key))
    assert end["finish"] == "cancelled"
    assert "code" not in end
    assert len(provider.chats) == 1


async def test_what_was_said_before_a_cancel_is_kept(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script(Break(at="text", text="Half an ans", now=threading.Event()))
    async with connect(chat_web, person) as client:
        key = await client.ask("hello")
        await client.until(lambda: key in client.streams and bool(client.streams[key].text))
        await client.cancel(key)
        stream = await client.ended(key)
    await wait_for(provider.chats[0].gone)
    assert (stream.text, end_frame(stream)["finish"]) == ("Half an ans", "cancelled")
    asked, answer = await stored_messages(chat_web, person, conversation_of(stream))
    assert (asked["text"], answer["text"], answer["finish"]) == ("hello", "Half an ans", "cancelled")


async def test_what_was_changed_before_a_cancel_is_told(
    chat_web: str, person: Person, provider: Provider
) -> None:
    hold = Hold()
    provider.script(CREATE, hold)
    async with connect(chat_web, person) as client:
        key = await client.ask("remind me to call Bob")
        await wait_for(hold.reached)
        await client.cancel(key)
        stream = await client.ended(key)
    end = end_frame(stream)
    assert end["finish"] == "cancelled"
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
    assert (await stored_messages(chat_web, person, conversation_of(stream)))[-1]["mutations"] == end[
        "mutations"
    ]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancel_waits_for_the_write_that_is_under_way(
    chat_web: str, person: Person, provider: Provider, times: int
) -> None:
    provider.script(CREATE)
    async with connect(chat_web, person) as client:
        client.silent = True
        key = await client.ask("remind me to call Bob")
        await client.until(lambda: bool(client.unanswered))
        for _ in range(times):
            await client.cancel(key)
            await client.settled()
        await client.catch_up()
        end = end_frame(await client.ended(key))
        assert client.errors == []
    assert end["finish"] == "cancelled"
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
    assert len(provider.chats) == 1


async def test_a_cancel_does_not_wait_for_a_read(chat_web: str, person: Person, provider: Provider) -> None:
    provider.script(Call("list_tasks"))
    async with connect(chat_web, person) as client:
        client.silent = True
        key = await client.ask("list my tasks")
        await client.until(lambda: bool(client.unanswered))
        await client.cancel(key)
        assert end_frame(await client.ended(key))["finish"] == "cancelled"


async def test_a_cancel_of_nothing_is_an_error(chat_web: str, person: Person, provider: Provider) -> None:
    async with connect(chat_web, person) as client:
        over = await client.ask("hello")
        await client.ended(over)
        for key in ("never heard of", over):
            await client.cancel(key)
            await client.until(lambda key=key: any(error["ref"] == key for error in client.errors))  # type: ignore[misc]
    assert [error["code"] for error in client.errors] == ["not_running", "not_running"]


async def test_nobody_cancels_or_steers_anothers_turn(
    chat_web: str, person: Person, provider: Provider
) -> None:
    hold = Hold("Hello.")
    provider.script(hold)
    async with connect(chat_web, person) as client, connect(chat_web, await db.run(somebody)) as other:
        key = await client.ask("hello")
        await wait_for(hold.reached)
        await other.cancel(key)
        await other.steer(key, "and tell me all")
        await other.socket.send({"type": "stream_resume", "request_id": key, "after": -1})
        await other.until(lambda: len(other.errors) == 3)
        hold.release()
        stream = await client.ended(key)
    assert (stream.text, end_frame(stream)["finish"]) == ("Hello.", "stop")
    assert {error["code"] for error in other.errors} == {"not_running"}
    assert other.streams == {}
    assert len(provider.chats) == 1


# ── Steering ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_steer_joins_at_the_next_model_call(
    chat_web: str, person: Person, provider: Provider
) -> None:
    hold = Hold(Call("list_tasks"))
    provider.script(hold, "There is one, and it is not urgent.")
    async with connect(chat_web, person, DeviceRows(tasks=[TASK])) as client:
        key = await client.ask("list my tasks")
        await wait_for(hold.reached)
        await client.steer(key, "and say if they are urgent")
        await client.settled()
        hold.release()
        stream = await client.ended(key)
    end = end_frame(stream)
    assert end["usage"]["model_calls"] == len(provider.chats) == 2
    assert provider.last["messages"][-1] == {"role": "user", "content": "and say if they are urgent"}
    said = await stored_messages(chat_web, person, conversation_of(stream))
    assert [(message["role"], message["text"]) for message in said] == [
        ("user", "list my tasks"),
        ("user", "and say if they are urgent"),
        ("assistant", "There is one, and it is not urgent."),
    ]
    looked = {
        "kind": "tool",
        "call": 1,
        "label": "Looking at your tasks",
        "table": "tasks",
        "ok": True,
        "count": 1,
    }
    heard = {"kind": "said", "call": 2, "seq": 2, "at": said[1]["steered"]["at"]}
    assert (said[2]["steps"], said[2]["model_calls"]) == ([looked, heard], 2)


async def test_a_steer_at_the_limit_of_calls_is_answered_in_the_last_answer(
    stack: Stack, person: Person, provider: Provider
) -> None:
    """At the limit of model calls it is put in front of the model for the last answer."""
    hold = Hold("There is one.")
    provider.script(hold)
    # Not by a script: a turn that an earlier test has left might take the step.
    provider.default = lambda request: (
        "It is not urgent." if "are they urgent?" in str(request.body["messages"][-1]) else "ok"
    )
    web = stack.web(ADIUVA_TURN_MODEL_CALLS="1")
    async with connect(web, person) as client:
        key = await client.ask("list my tasks")
        await wait_for(hold.reached)
        await client.steer(key, "are they urgent?")
        await client.settled()
        hold.release()
        stream = await client.ended(key)
        await client.settled()
        assert list(client.streams) == [key]
    assert (end_frame(stream)["finish"], end_frame(stream)["code"]) == ("limit", "too_many_model_calls")
    assert stream.text == "There is one.\n\nIt is not urgent."


async def test_a_steer_during_the_last_answer_is_answered_too(
    chat_web: str, person: Person, provider: Provider
) -> None:
    hold = Hold("There is one.")
    provider.script(hold, "It is not urgent.")
    async with connect(chat_web, person) as client:
        key = await client.ask("list my tasks")
        await wait_for(hold.reached)
        await client.steer(key, "are they urgent?")
        await client.settled()
        hold.release()
        stream = await client.ended(key)
    assert stream.text == "There is one.\n\nIt is not urgent."
    assert end_frame(stream)["usage"]["model_calls"] == 2


async def test_a_steer_after_the_end_becomes_a_turn_of_its_own(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script("There is one.", "It is not urgent.")
    async with connect(chat_web, person) as client:
        first = await client.ask("list my tasks")
        await client.ended(first)
        await client.steer(first, "are they urgent?")
        second = await _another(client, first)
    assert second.text == "It is not urgent."
    assert conversation_of(second) == conversation_of(client.streams[first])
    end_frame(client.streams[first])
    words = conversation_words(provider.last)
    assert words == ["list my tasks", "There is one.", "are they urgent?"]


async def test_a_steer_after_the_end_of_a_turn_that_is_not_kept_knows_what_was_said(
    chat_web: str, person: Person, provider: Provider
) -> None:
    provider.script("There is one.", "It is not urgent.")
    history = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hello."}]
    async with connect(chat_web, person) as client:
        first = await client.ask("list my tasks", conversation_history=history)
        await client.ended(first)
        await client.steer(first, "are they urgent?")
        assert (await _another(client, first)).text == "It is not urgent."
    words = conversation_words(provider.last)
    assert words == ["hello", "Hello.", "list my tasks", "There is one.", "are they urgent?"]


@pytest.mark.parametrize("how", ["the model fails", "it is cancelled"])
async def test_a_steer_that_its_turn_did_not_live_to_hear_becomes_a_turn_of_its_own(
    chat_web: str, person: Person, provider: Provider, how: str
) -> None:
    hold = Hold(Fail(400))
    provider.script(hold, "It is not urgent.")
    async with connect(chat_web, person) as client:
        first = await client.ask("list my tasks")
        await wait_for(hold.reached)
        await client.steer(first, "are they urgent?")
        await client.settled()
        if how == "it is cancelled":
            await client.cancel(first)
        else:
            hold.release()
        second = await _another(client, first)
        ended = end_frame(await client.ended(first))
    assert ended["finish"] in {"error", "cancelled"}
    assert second.text == "It is not urgent."
    assert conversation_of(second) == conversation_of(client.streams[first])


async def _another(client: ChatClient, first: str) -> Any:
    """The stream of the turn that a message became."""
    await client.until(lambda: len(client.streams) == 2)
    return await client.ended(next(key for key in client.streams if key != first))


async def test_a_steer_of_nothing_is_an_error(chat_web: str, person: Person, provider: Provider) -> None:
    async with connect(chat_web, person) as client:
        await client.steer("never heard of", "hello")
        await client.until(lambda: bool(client.errors))
    assert (client.errors[0]["code"], client.errors[0]["ref"]) == ("not_running", "never heard of")
    assert provider.calls == []


async def test_several_turns_can_be_steered_at_once(
    chat_web: str, person: Person, provider: Provider
) -> None:
    holds = [Hold(Call("list_tasks")) for _ in range(4)]
    provider.script(*holds)
    provider.default = lambda request: f"heard {request.body['messages'][-1]['content']}"
    async with connect(chat_web, person) as client:
        keys = [await client.ask(f"number {number}") for number in range(4)]
        for hold in holds:
            await wait_for(hold.reached)
        for number, key in enumerate(keys):
            await client.steer(key, f"and {number}")
        await client.settled()
        for hold in holds:
            hold.release()
        streams = await asyncio.gather(*(client.ended(key) for key in keys))
    assert [stream.text for stream in streams] == [f"heard and {number}" for number in range(4)]
