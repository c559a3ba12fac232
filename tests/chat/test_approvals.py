"""Deletes and bulk updates wait for the user's yes: on any device that can ask, in words elsewhere."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest
from django.db import transaction

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import User
from adiuva.core import db
from chat.claimed_turn import ClaimedTurn, append_message
from chat.deferred_calls import OTHER_YES_WORDS, is_yes
from chat.models import Message
from tests.chat.chat_client import (
    ChatClient,
    ClientStream,
    DeviceRows,
    Frame,
    connect,
    conversation_of,
    end_frame,
    prompt_messages,
    small_limits_web,
    wait_for,
)
from tests.chat.factories import locked_turn, make_request
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Fail, Hold, Provider, Say
from tests.server_processes import Stack

CAN_ASK = ["dedupe", "batch", "approval"]
DELETE = Call("delete_task", {"task_id": "t1"})
NO = "Failed: the user said no. Do not try it again, nor in another way."


@pytest.fixture
def rows() -> DeviceRows:
    titles = ["Call Ada", "Call Bob", "Call Cleo", "Call Dan"]
    return DeviceRows(
        tasks=[{"id": f"t{place}", "title": title, "status": "todo"} for place, title in enumerate(titles, 1)]
    )


def add_notice(user_id: uuid.UUID, place: str, text: str) -> None:
    """Append a message that no turn wrote, as for the end of a run."""
    claimed = ClaimedTurn(uuid.uuid4(), "UTC", "en", cipher_for(user_id), uuid.UUID(place))
    with transaction.atomic():
        append_message(claimed, make_request(user_id), Message.Role.ASSISTANT, {"text": text})


def left(rows: DeviceRows) -> list[str]:
    return [row["id"] for row in rows.tables["tasks"]]


# ── Devices that can ask ────────────────────────────────────────────────────────────────────────────────


async def test_a_delete_asks_by_the_rows_name_and_a_yes_does_it_once(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(DELETE, "Gone.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        question = await client.asked_for(key)
        assert rows.count("delete") == 0
        await client.decide(question["id"], True)
        stream = await client.ended(key)
    assert (question["request_id"], question["action"], question["table"]) == (key, "delete", "tasks")
    assert question["summary"] == "Delete the task “Call Ada”"
    assert question["expires_at"] > time.time() * 1000
    end = end_frame(stream)
    assert end["mutations"] == [
        {"action": "delete", "table": "tasks", "data": {"title": "Call Ada", "id": "t1"}}
    ]
    assert (rows.count("delete"), left(rows)) == (1, ["t2", "t3", "t4"])
    assert stream.kinds().count("approval_request") == 1


async def test_a_no_is_told_to_the_model_and_nothing_is_done(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(DELETE, "I have deleted it.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        await client.decide((await client.asked_for(key))["id"], False)
        stream = await client.ended(key)
    end = end_frame(stream)
    assert (end["finish"], end["mutations"], rows.count("delete")) == ("stop", [], 0)
    # Whatever the model claims, it is put right.
    assert stream.text == (
        "I have deleted it.\n\n**Not done, because you said no:** Delete the task “Call Ada”"
    )
    assert prompt_messages(provider.last) == [NO]


async def test_an_approval_counts_once_and_one_that_is_unknown_not_at_all(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    hold = Hold("Gone.")
    provider.script(DELETE, hold)
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        question = (await client.asked_for(key))["id"]
        await client.decide(question, True)
        await wait_for(hold.reached)
        await client.decide(question, True)
        await client.decide("never asked", True)
        await client.until(lambda: len(client.errors) == 2)
        hold.release()
        end_frame(await client.ended(key))
    assert {(error["code"], error["ref"]) for error in client.errors} == {
        ("approval_over", question),
        ("approval_over", "never asked"),
    }
    assert rows.count("delete") == 1


async def test_the_same_call_made_again_is_asked_for_again(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(DELETE, Call("delete_task", {"task_id": "t2"}), "Both gone.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        await client.decide((await client.asked_for(key))["id"], True)
        second = await client.asked_for(key, 1)
        assert second["summary"] == "Delete the task “Call Bob”"
        await client.decide(second["id"], False)
        end = end_frame(await client.ended(key))
    assert left(rows) == ["t2", "t3", "t4"]
    assert len(end["mutations"]) == 1


async def test_another_user_cannot_decide(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(DELETE, "I left it.")
    stranger = await db.run(somebody)
    async with (
        connect(chat_web, person, rows, capabilities=CAN_ASK) as client,
        connect(chat_web, stranger, capabilities=CAN_ASK) as other,
    ):
        key = await client.ask("delete the task about Ada")
        question = (await client.asked_for(key))["id"]
        await other.decide(question, True)
        await other.until(lambda: bool(other.errors))
        assert (rows.count("delete"), other.streams) == (0, {})
        await client.decide(question, False)
        end_frame(await client.ended(key))
    assert other.errors[0]["code"] == "approval_over"
    assert rows.count("delete") == 0


@pytest.mark.parametrize("server", ["uvicorn", "daphne"], ids=["same process", "another process"])
async def test_any_device_of_the_user_is_asked_and_decides(
    chat_web: str, stack: Stack, person: Person, provider: Provider, rows: DeviceRows, server: str
) -> None:
    provider.script(DELETE, "Gone.")
    elsewhere = stack.web(server)
    async with (
        connect(chat_web, person, rows, capabilities=CAN_ASK) as client,
        connect(elsewhere, person, device_id="phone", capabilities=CAN_ASK) as phone,
        connect(elsewhere, person, device_id="old", capabilities=["dedupe"]) as old,
    ):
        key = await client.ask("delete the task about Ada")
        question = await phone.asked_for(key)
        await phone.decide(question["id"], True)
        stream = await client.ended(key)
        # The first answer counts, wherever the second one comes from.
        await phone.decide(question["id"], False)
        await client.decide(question["id"], False)
        await phone.until(lambda: bool(phone.errors))
        await client.until(lambda: bool(client.errors))
    assert question == await client.asked_for(key)
    assert len(end_frame(stream)["mutations"]) == 1
    assert {phone.errors[0]["code"], client.errors[0]["code"]} == {"approval_over"}
    assert (left(rows), phone.rows.calls, old.streams) == (["t2", "t3", "t4"], [], {})


async def test_an_approval_ends_with_its_request(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(DELETE)
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        question = (await client.asked_for(key))["id"]
        await client.cancel(key)
        assert end_frame(await client.ended(key))["finish"] == "cancelled"
        await client.decide(question, True)
        await client.until(lambda: bool(client.errors))
    assert (client.errors[0]["code"], client.errors[0]["ref"]) == ("approval_over", question)
    assert rows.count("delete") == 0


async def test_an_open_approval_is_repeated_to_a_client_that_comes_back(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(Say("One moment.", calls=[DELETE]), "Gone.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        question = await client.asked_for(key)
        seen = client.streams[key].seq
    again = [{"request_id": key, "after": seen}]
    async with connect(chat_web, person, rows, capabilities=CAN_ASK, streams=again) as client:
        assert await client.asked_for(key) == question
        await client.decide(question["id"], True)
        stream = await client.ended(key)
    assert (stream.text.strip(), rows.count("delete")) == ("Gone.", 1)


async def test_an_approval_that_was_decided_is_not_repeated(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    hold = Hold("Gone.")
    provider.script(DELETE, hold)
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        await client.decide((await client.asked_for(key))["id"], True)
        await wait_for(hold.reached)
    again = [{"request_id": key, "after": -1}]
    async with connect(chat_web, person, rows, capabilities=CAN_ASK, streams=again) as client:
        await client.until(lambda: key in client.streams)
        hold.release()
        stream = await client.ended(key)
    assert stream.text == "Gone."
    assert "approval_request" not in stream.kinds()


def done(*keys: str) -> list[Call]:
    return [Call("update_task", {"task_id": key, "status": "done"}) for key in keys]


async def test_three_updates_at_once_are_asked_for_together(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(Say(calls=done("t1", "t2", "t3")), "All done.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("complete Ada, Bob and Cleo")
        question = await client.asked_for(key)
        assert rows.count("update") == 0
        await client.decide(question["id"], True)
        stream = await client.ended(key)
    assert question["summary"] == ("Update 3 tasks: “Call Ada”, “Call Bob”, “Call Cleo”: status → “done”")
    assert len(end_frame(stream)["mutations"]) == rows.count("update") == 3
    assert stream.kinds().count("approval_request") == 1


async def test_two_updates_are_not_asked_for_and_a_third_in_the_same_turn_is(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(Say(calls=done("t1", "t2")), Say(calls=done("t3")), "Two are done.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("complete them one by one")
        question = await client.asked_for(key)
        assert rows.count("update") == 2
        await client.decide(question["id"], False)
        end = end_frame(await client.ended(key))
    assert question["summary"] == "Update the task “Call Cleo”: status → “done”"
    assert len(end["mutations"]) == 2
    assert prompt_messages(provider.last)[-1] == NO


async def test_a_specialists_delete_is_asked_for_too(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(
        Call("ask_specialist", {"agent": "tasks", "request": "delete t1"}),
        DELETE,
        "The user said no.",
        "I left it.",
    )
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete the task about Ada")
        await client.decide((await client.asked_for(key))["id"], False)
        end_frame(await client.ended(key))
    assert rows.count("delete") == 0
    assert prompt_messages(provider.chats[2].body) == [NO]


async def test_what_is_not_there_is_not_asked_for(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(Call("delete_task", {"task_id": "t9"}), "It is not there.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        stream = await client.say("delete it")
    assert "approval_request" not in stream.kinds()
    assert (end_frame(stream)["mutations"], len(left(rows))) == ([], 4)
    assert prompt_messages(provider.last) == ["Failed: there is no task with the id t9."]


async def test_what_fits_beside_it_is_done_with_a_delete_that_was_refused(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    provider.script(Say(calls=[DELETE, Call("create_task", {"title": "Call Eve"})]), "One of them.")
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        key = await client.ask("delete Ada and create Eve")
        await client.decide((await client.asked_for(key))["id"], False)
        end = end_frame(await client.ended(key))
    assert [mutation["action"] for mutation in end["mutations"]] == ["insert"]
    assert prompt_messages(provider.last)[0] == NO


# ── In words ────────────────────────────────────────────────────────────────────────────────────────────


async def _wish(client: ChatClient, provider: Provider) -> ClientStream:
    """A turn that may not delete, and asks."""
    provider.script(DELETE, "Shall I delete Call Ada?")
    stream = await client.say("delete the task about Ada")
    assert stream.text == (
        "Shall I delete Call Ada?\n\n**Delete the task “Call Ada”?** Answer yes, and it will be done. "
        + OTHER_YES_WORDS
    )
    assert (end_frame(stream)["mutations"], client.rows.count("delete")) == ([], 0)
    said = prompt_messages(provider.last)[0]
    assert said.startswith("Failed: not done: it needs the user's plain yes (")
    assert "Delete the task “Call Ada”" in said
    return stream


async def test_without_the_capability_a_plain_yes_carries_out_the_same_call_once(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with connect(chat_web, person, rows) as client:
        place = conversation_of(await _wish(client, provider))
        provider.script(DELETE, "Gone.")
        end = end_frame(await client.say("Yes, please!", conversation_id=place))
        assert [mutation["data"] for mutation in end["mutations"]] == [{"title": "Call Ada", "id": "t1"}]
        tail = provider.chats[2].body["messages"][-1]["content"]
        assert 'Delete the task “Call Ada”: delete {"id":"t1"}' in tail
        rows.tables["tasks"].append({"id": "t1", "title": "Call Ada", "status": "todo"})
        provider.script(DELETE, "Shall I delete Call Ada once more?")
        end = end_frame(await client.say("yes", conversation_id=place))
        assert (end["mutations"], rows.count("delete")) == ([], 1)


@pytest.mark.parametrize(
    "call", [Call("delete_task", {"task_id": "t2"}), Call("delete_note", {"note_id": "t1"})]
)
async def test_a_yes_allows_no_other_call(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows, call: Call
) -> None:
    rows.tables["notes"] = [{"id": "t1", "title": "Minutes", "content": "x"}]
    async with connect(chat_web, person, rows) as client:
        place = conversation_of(await _wish(client, provider))
        provider.script(call, "That too?")
        end = end_frame(await client.say("yes", conversation_id=place))
    assert (end["mutations"], rows.count("delete")) == ([], 0)
    assert prompt_messages(provider.last)[0].startswith("Failed: not done: it needs the user's plain yes (")


async def test_a_message_that_is_no_yes_drops_the_wish(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with connect(chat_web, person, rows) as client:
        place = conversation_of(await _wish(client, provider))
        provider.script("Then not.")
        await client.say("wait, what is it about?", conversation_id=place)
        provider.script(DELETE, "Shall I?")
        end = end_frame(await client.say("yes", conversation_id=place))
    assert (end["mutations"], rows.count("delete")) == ([], 0)


async def test_a_yes_that_was_sent_before_the_question_was_shown_allows_nothing(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    hold = Hold("Shall I delete Call Ada?")
    async with connect(chat_web, person, rows) as client:
        provider.script(DELETE, hold, DELETE, "Shall I?")
        first = await client.ask("delete the task about Ada")
        await wait_for(hold.reached)
        place = conversation_of(client.streams[first])
        second = await client.ask("ok", conversation_id=place)
        await client.until(lambda: second in client.streams)  # it waits
        hold.release()
        asked = await client.ended(first)
        assert OTHER_YES_WORDS in asked.text
        assert OTHER_YES_WORDS in (await client.ended(second)).text
        assert (rows.count("delete"), "just said yes" in str(provider.last)) == (0, False)
        provider.script(DELETE, "Gone.")
        await client.say("yes", conversation_id=place)
    assert rows.count("delete") == 1


async def test_a_yes_to_a_turn_that_is_not_kept_and_has_not_ended_allows_nothing(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    """The turn takes no more messages, and its end is not sent yet."""
    before = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    hold = Hold("Shall I delete Call Ada?")
    async with connect(chat_web, person, rows) as client:
        provider.script(DELETE, hold, DELETE, "Shall I?")
        first = await client.ask("delete the task about Ada", conversation_history=before)
        await wait_for(hold.reached)
        with locked_turn(first):
            hold.release()
            await client.until(lambda: OTHER_YES_WORDS in client.streams[first].text)
            await client.steer(first, "ok")
            await client.settled()
        await client.until(lambda: len(client.streams) == 2)
        second = await client.ended(next(key for key in client.streams if key != first))
    assert (rows.count("delete"), OTHER_YES_WORDS in second.text) == (0, True)


async def test_a_yes_to_what_was_said_after_the_question_allows_nothing(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with connect(chat_web, person, rows) as client:
        place = conversation_of(await _wish(client, provider))
        await db.run(add_notice, person.id, place, "The agent “Mail” found 3 tasks. Shall I list them?")
        provider.script(DELETE, "Shall I?")
        end = end_frame(await client.say("yes", conversation_id=place))
    assert (end["mutations"], rows.count("delete")) == ([], 0)


async def test_a_yes_in_another_conversation_allows_nothing(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with connect(chat_web, person, rows) as client:
        await _wish(client, provider)
        provider.script(DELETE, "Shall I?")
        end = end_frame(await client.say("yes"))
    assert (end["mutations"], rows.count("delete")) == ([], 0)


async def test_a_bulk_update_asks_in_words_and_one_yes_allows_all_of_it(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with connect(chat_web, person, rows) as client:
        provider.script(Say(calls=done("t1", "t2", "t3")), "Shall I complete all three?")
        first = await client.say("complete Ada, Bob and Cleo")
        assert (end_frame(first)["mutations"], rows.count("update")) == ([], 0)
        provider.script(Say(calls=done("t1", "t2", "t3")), "Done.")
        end = end_frame(await client.say("ok, do it", conversation_id=conversation_of(first)))
    assert len(end["mutations"]) == rows.count("update") == 3


async def test_a_yes_counts_for_the_question_that_was_shown_and_that_is_ours(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    """A note may talk the model into asking something harmless; what a yes would do stands below it all the same."""
    async with connect(chat_web, person, rows) as client:
        provider.script(DELETE, "Shall I show you your tasks for tomorrow?")
        stream = await client.say("sum up my notes")
    assert stream.text.endswith(
        "\n\n**Delete the task “Call Ada”?** Answer yes, and it will be done. " + OTHER_YES_WORDS
    )


async def test_the_question_and_the_yes_are_in_the_users_language(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    await db.run(User.objects.filter(pk=person.id).update, locale="de-CH")
    async with connect(chat_web, person, rows) as client:
        provider.script(DELETE, "Gut.")
        stream = await client.say("lösch den Anruf")
        assert "**Löschen: Aufgabe “Call Ada”?** Antworten Sie mit ja" in stream.text
        provider.script(DELETE, "Gelöscht.")
        done = await client.say("Ja, gerne!", conversation_id=conversation_of(stream))
    end = end_frame(done)
    labels = [frame["label"] for frame in done.frames if frame["type"] == "stream_status"]
    assert "Eine Aufgabe wird gelöscht" in labels
    assert [change["action"] for change in end["mutations"]] == ["delete"]


async def test_what_was_never_asked_is_not_allowed_by_a_yes(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with connect(chat_web, person, rows) as client:
        provider.script(DELETE, Fail(400, "bad_request"))
        broken = await client.say("delete the task about Ada")
        assert end_frame(broken)["finish"] == "error"
        provider.script(DELETE, "Hm.")
        end = end_frame(await client.say("ok", conversation_id=conversation_of(broken)))
    assert (end["mutations"], rows.count("delete")) == ([], 0)


async def test_a_message_of_a_device_that_can_ask_lets_go_of_what_was_asked_in_words(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with (
        connect(chat_web, person, rows) as client,
        connect(chat_web, person, rows, device_id="other", capabilities=CAN_ASK) as other,
    ):
        place = conversation_of(await _wish(client, provider))
        provider.script("All right.")
        await other.say("no, leave it", conversation_id=place)
        provider.script(DELETE, "Hm.")
        end = end_frame(await client.say("yes", conversation_id=place))
    assert (end["mutations"], rows.count("delete")) == ([], 0)


async def test_a_yes_in_another_window_of_a_client_that_keeps_its_own_history_allows_nothing(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    before = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "How can I help you today?"},
    ]
    async with connect(chat_web, person, rows, protocol=1) as client:
        provider.script(DELETE, "Shall I?")
        await client.say("delete the task about Ada")
        provider.script(DELETE, "Hm.")
        await client.say("ok", scope={"type": "task", "id": "t2"})
        provider.script(DELETE, "Hm.")
        await client.say("yes", conversation_history=before)
    assert rows.count("delete") == 0


async def test_an_update_that_would_wipe_a_text_is_asked_for_and_one_that_adds_to_it_is_not(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    text = "Minutes\n\n- Ada writes the offer\n- Bob pays"
    rows.tables["notes"] = [{"id": "n1", "title": "Minutes", "content": text}]
    async with connect(chat_web, person, rows) as client:
        more = f"{text}\n- Cleo calls"
        provider.script(Call("update_note", {"note_id": "n1", "content": more}), "Added.")
        assert len(end_frame(await client.say("add that Cleo calls"))["mutations"]) == 1
        provider.script(Call("update_note", {"note_id": "n1", "content": "."}), "Tidied.")
        stream = await client.say("tidy up")
    assert end_frame(stream)["mutations"] == []
    assert stream.text.endswith(
        "**Update the note “Minutes”: content → “.”?** Answer yes, and it will be done. " + OTHER_YES_WORDS
    )
    assert rows.tables["notes"][0]["content"] == more


async def test_a_question_names_every_row_and_what_it_gets(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    calls = [
        Call("update_task", {"task_id": f"t{n}", "title": f"New {n}", "priority": "low"}) for n in (1, 2, 3)
    ]
    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        provider.script(Say(calls=calls), "As you wish.")
        key = await client.ask("rename them")
        question = await client.asked_for(key)
        await client.decide(question["id"], False)
        await client.ended(key)
    assert question["summary"] == (
        "Update 3 tasks: “Call Ada” (title → “New 1”, priority → “low”), "
        "“Call Bob” (title → “New 2”, priority → “low”), “Call Cleo” (title → “New 3”, priority → “low”)"
    )


async def test_a_device_that_is_gone_is_waited_for_once_however_much_is_to_be_deleted(
    stack: Stack, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    calls = [Call("delete_task", {"task_id": f"t{n}"}) for n in range(1, 7)]
    hold = Hold(Say(calls=calls))
    provider.script(hold, "It is offline.")
    web = small_limits_web(stack, provider)
    async with connect(web, person) as watcher:
        async with connect(web, person, rows, device_id="gone") as client:
            key = await client.ask("delete them all")
            await wait_for(hold.reached)
        hold.release()
        await watcher.socket.send({"type": "stream_resume", "request_id": key, "after": -1})
        end = end_frame(await watcher.ended(key))
    assert end["finish"] == "stop"
    assert set(prompt_messages(provider.last)) == {
        "Failed: the device is offline, so nothing was read or changed."
    }


async def test_protocol_1_asks_in_words(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    async with connect(chat_web, person, rows, protocol=1) as client:
        provider.script(DELETE, "Shall I delete Call Ada?")
        first = await client.say("delete the task about Ada")
        assert (first.kinds()[-1], rows.count("delete")) == ("stream_end", 0)
        assert "approval_request" not in first.kinds()
        provider.script(DELETE, "Gone.")
        history = [
            {"role": "user", "content": "delete the task about Ada"},
            {"role": "assistant", "content": "Shall I delete Call Ada?"},
        ]
        second = await client.say("yes", conversation_history=history)
    gone = {"title": "Call Ada", "id": "t1"}
    assert second.frames[-1]["mutations"] == [{"action": "delete", "table": "tasks", "data": gone}]
    assert rows.count("delete") == 1


async def test_rest_asks_in_words(
    chat_web: str, person: Person, provider: Provider, rows: DeviceRows
) -> None:
    def post(message: str) -> Frame:
        with person.rest(chat_web) as rest:
            answer: Frame = rest.post("/chat", json={"message": message}).json()
            return answer

    async with connect(chat_web, person, rows, capabilities=CAN_ASK) as client:
        provider.script(DELETE, "Shall I delete Call Ada?")
        first = await asyncio.to_thread(post, "delete the task about Ada")
        assert (first["mutations"], rows.count("delete"), client.streams) == ([], 0, {})
        provider.script(DELETE, "Gone.")
        second = await asyncio.to_thread(post, "yes")
    assert [mutation["data"] for mutation in second["mutations"]] == [{"title": "Call Ada", "id": "t1"}]
    assert rows.count("delete") == 1


@pytest.mark.parametrize(
    "message",
    [
        "yes",
        "Yes.",
        "YES!",
        "yes please",
        "Yes, please.",
        "yep",
        "ok",
        "okay, do it",
        "sure",
        "go ahead",
        "please do",
        "yes, delete it",
        "confirm",
        "ja",
        "Ja, bitte",
        "oui",
        "sí",
        "si, por favor",
        "va bene",
        "d'accord",
        "はい",
        "はい。",
        "はい、はい。",
        "是的",
        "好的。",
        "да",
        "yes yes",
        "y",
        "👍",
        "👍🏽",
        "✔️",
        "ok 👍",
        "sure, thanks",
        "yes thank you",
        "Yes, thank you!",
        "passt",
        "ja bitte",
        "Ja, danke.",
        "thanks, go ahead",
        "D’accord",
        "ＯＫ",
    ],
)
def test_a_plain_yes(message: str) -> None:
    assert is_yes(message)


@pytest.mark.parametrize(
    "message",
    [
        "no",
        "not yet",
        "yes?",
        "yes, but not that one",
        "yes and also delete the others",
        "okay, and what else is there?",
        "nope",
        "don't",
        "delete the other one",
        "ok no",
        "nein",
        "non",
        "I said yes to something else",
        "yesterday",
        "tak",
        "hai",
        "sure?",
        "no, go ahead with the list",
        "do it tomorrow",
        "yes to the first",
        "is it ok",
        "👍👎",
        "thanks",
        "no thanks",
        "bitte",
        "danke",
        "thank you very much",
        "yeses",
        " ",
        ".",
        "the document says: yes",
    ],
)
def test_what_is_no_plain_yes(message: str) -> None:
    assert not is_yes(message)


def test_a_long_message_is_judged_at_once() -> None:
    assert not is_yes("yes " * 20_000 + "no")
    assert not is_yes("si" * 40_000 + "x")
