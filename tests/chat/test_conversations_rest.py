"""The chat over REST: conversations are listed, read, named and deleted; a whole turn goes in one request."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from adiuva.accounts import keys
from adiuva.accounts.models import User, UserKey
from adiuva.core import db
from chat.models import AssistantKind, Conversation, Message, Turn, TurnChanges
from chat.turn_changes import RecordedChange, TurnRecord
from tests.chat.chat_client import DeviceRows, connect, end_frame
from tests.chat.factories import TASK_INSERTED, claim, finish_turn, make_conversation, make_request, make_turn
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Fail, Hold, Provider, Raw
from tests.server_processes import Stack

if TYPE_CHECKING:
    from rest_framework.test import APIClient

API = "/api/v1/chat/conversations"
CHAT = "/api/v1/chat"


def client_of(person: Person) -> APIClient:
    from rest_framework.test import APIClient

    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {person.access_token}")
    return client


@pytest.fixture
def ada(db: None) -> Person:
    return somebody()


@pytest.fixture
def rest(ada: Person) -> APIClient:
    return client_of(ada)


# ── Conversations ───────────────────────────────────────────────────────────────────────────────────────


def test_conversations_are_listed_with_their_titles_the_latest_first(rest: APIClient, ada: Person) -> None:
    old, new = (
        make_conversation(ada.id),
        make_conversation(ada.id, ("Which notes are there?", "Two."), ("And?", ".")),
    )
    unanswered = claim(make_request(ada.id, kind=AssistantKind.FLOATING)).conversation_id
    for place, days in ((unanswered, 0), (new.pk, 1), (old.pk, 2)):
        when = datetime.now(UTC) - timedelta(days=days)
        Conversation.objects.filter(pk=place).update(updated_at=when)
    answer = rest.get(API)
    assert answer["X-Total-Count"] == "3"
    shown = [(row["id"], row["kind"], row["title"], row["message_count"]) for row in answer.json()]
    assert shown == [
        (str(unanswered), "floating", "", 1),
        (str(new.pk), "home", "Which notes are there?", 4),
        (str(old.pk), "home", "Which tasks are open?", 2),
    ]
    fields = {"id", "kind", "title", "memory", "for_agents", "message_count", "created_at", "updated_at"}
    assert answer.json()[0].keys() == fields
    assert [row["id"] for row in rest.get(API, {"limit": 1, "page": 2}).json()] == [str(new.pk)]
    assert rest.get(API, {"page": 9}).json() == []
    assert rest.get(API, {"page": "x"}).json()["fields"].keys() == {"page"}


def test_a_conversation_is_read_with_its_messages(rest: APIClient, ada: Person) -> None:
    request = make_request(ada.id, "Add a task")
    turn = claim(request)
    finish_turn(request, turn, "Added, then", state="error", code="model_timeout", mutations=[TASK_INSERTED])
    found = rest.get(f"{API}/{turn.conversation_id}").json()
    assert (found["title"], found["message_count"]) == ("Add a task", 2)
    first, second = found["messages"]
    assert first.pop("created_at").endswith("Z") and second.pop("created_at").endswith("Z")
    assert first == {"seq": 1, "role": "user", "text": "Add a task", "mutations": []}
    assert second == {
        "seq": 2,
        "role": "assistant",
        "text": "Added, then",
        "mutations": [TASK_INSERTED.model_dump()],
        "finish": "error",
        "code": "model_timeout",
        "model_calls": 2,
    }


def test_a_conversation_says_which_turns_can_be_undone_and_its_page_offers_it(
    rest: APIClient, ada: Person
) -> None:
    request = make_request(ada.id, "Add a task: <b>Menu</b>")
    turn = claim(request)
    change = RecordedChange("insert", "tasks", "t1", None, {"id": "t1", "title": "Menu"})
    record = TurnRecord(uuid.uuid4(), [change])
    finish_turn(request, turn, "Added.", mutations=[TASK_INSERTED], record=record)
    where = f"{API}/{turn.conversation_id}"
    told = make_turn(ada.id, "Thanks", "Welcome.", conversation_id=str(turn.conversation_id))
    assert told.conversation_id == turn.conversation_id
    listed = {"request_id": request.request_id, "seq": 1, "mutations": 1, "undone_at": None}
    assert rest.get(where).json()["turns"] == [listed]
    assert rest.get(where, {"after": 2}).json()["turns"] == []
    undo = f'action="/api/v1/chat/turns/{request.request_id}/undo" data-action="undo"'
    page = rest.get(where, headers={"Accept": "text/html"}).content.decode()
    assert undo in page and "1 change<" in page
    assert 'aria-label="Yes, undo: Add a task: &lt;b&gt;Menu&lt;/b&gt;"' in page
    User.objects.filter(pk=ada.id).update(locale="de")
    page = rest.get(where, headers={"Accept": "text/html"}).content.decode()
    assert undo in page and "1 Änderung<" in page and ">Ja, rückgängig machen<" in page
    TurnChanges.objects.filter(pk=turn.turn_id).update(undone_at=datetime(2026, 3, 1, tzinfo=UTC))
    page = rest.get(where, headers={"Accept": "text/html"}).content.decode()
    assert undo not in page and "rückgängig gemacht<" in page


def test_a_long_conversation_comes_in_parts(rest: APIClient, ada: Person) -> None:
    place = make_conversation(ada.id)
    cipher = keys.cipher_for(ada.id)
    rows = [Message(conversation=place, seq=seq, role="user") for seq in range(3, 1203)]
    for row in rows:
        Message.sealed.seal_into(cipher, row, {"text": f"message {row.seq}"})
    Message.objects.bulk_create(rows)
    first = rest.get(f"{API}/{place.pk}").json()["messages"]
    assert [message["seq"] for message in first] == list(range(1, 1001))
    rest_of_it = rest.get(f"{API}/{place.pk}", {"after": first[-1]["seq"]}).json()["messages"]
    assert [message["text"] for message in rest_of_it] == [f"message {seq}" for seq in range(1001, 1203)]
    for after in ("1202", "9" * 18):
        assert rest.get(f"{API}/{place.pk}", {"after": after}).json()["messages"] == []


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 30, "٣"])
def test_a_wrong_after_is_refused(rest: APIClient, ada: Person, after: str) -> None:
    answer = rest.get(f"{API}/{make_conversation(ada.id).pk}", {"after": after})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["after"])


def test_a_conversation_is_named_and_named_anew(rest: APIClient, ada: Person) -> None:
    place = make_conversation(ada.id)
    answer = rest.patch(f"{API}/{place.pk}", {"title": "  The harbour\ncafé "})
    assert (answer.status_code, answer.json()["title"]) == (200, "The harbour café")
    assert "messages" not in answer.json()
    assert rest.get(API).json()[0]["title"] == "The harbour café"
    assert rest.put(f"{API}/{place.pk}", {"title": "x"}).status_code == 405


@pytest.mark.parametrize(
    "wrong", [{}, {"title": ""}, {"title": " \n"}, {"title": None}, {"title": ["a"]}, {"title": "x" * 201}]
)
def test_a_wrong_title_is_refused_by_its_name(rest: APIClient, ada: Person, wrong: dict[str, Any]) -> None:
    place = make_conversation(ada.id)
    answer = rest.patch(f"{API}/{place.pk}", wrong)
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["title"])
    assert rest.get(f"{API}/{place.pk}").json()["title"] == "Which tasks are open?"


def test_a_deleted_conversation_is_gone_with_its_messages(rest: APIClient, ada: Person) -> None:
    place, other = make_conversation(ada.id), make_conversation(ada.id)
    assert rest.delete(f"{API}/{place.pk}").json() == {"ok": True}
    assert rest.get(f"{API}/{place.pk}").status_code == rest.delete(f"{API}/{place.pk}").status_code == 404
    assert not Message.objects.filter(conversation_id=place.pk).exists()
    assert [row["id"] for row in rest.get(API).json()] == [str(other.pk)]
    assert Turn.objects.of(ada.id).count() == 2  # what was used stays counted


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
def test_anothers_conversation_is_a_404_like_none_at_all(rest: APIClient, method: str) -> None:
    foreign = make_conversation(somebody().id)
    answers = [
        getattr(rest, method)(f"{API}/{key}", {"title": "Mine"} if method == "patch" else None)
        for key in (foreign.pk, uuid.uuid4(), "no-uuid")
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert rest.get(API).json() == []
    assert Conversation.objects.filter(pk=foreign.pk, title=foreign.title).exists()


@pytest.mark.parametrize("way", [("get", API), ("get", f"{API}/{uuid.uuid4()}"), ("post", CHAT)])
def test_who_is_not_signed_in_gets_nothing(db: None, way: tuple[str, str]) -> None:
    from rest_framework.test import APIClient

    assert getattr(APIClient(), way[0])(way[1]).status_code == 401


def test_few_queries_however_much_there_is(rest: APIClient, ada: Person) -> None:
    for _ in range(3):
        place = make_conversation(ada.id, *[(f"Question {number}", "Yes.") for number in range(5)])
    rest.get("/api/v1/auth/me")  # the session notes once a minute that it is used
    # A key as young as this test's transaction might go with it, and is not kept in hand.
    UserKey.objects.filter(pk=ada.id).update(created_at=datetime.now(UTC) - timedelta(days=1))
    keys.cipher_for(ada.id)
    for path, count in ((API, 2), (f"{API}/{place.pk}", 4)):
        for opened in (True, False):
            if not opened:
                keys.forget(ada.id)
            with CaptureQueriesContext(connection) as queries:
                assert rest.get(path).status_code == 200
            # The session with its user, then: which, or the row, its messages and the turns that changed
            # something. A process that has not had this user's key in its hands for a minute fetches it, too.
            assert len(queries) == count + (not opened), [each["sql"] for each in queries]


def test_a_list_does_not_fetch_summaries(rest: APIClient, ada: Person) -> None:
    make_conversation(ada.id)
    with CaptureQueriesContext(connection) as queries:
        rest.get(API)
    assert not any('"summary"' in each["sql"] for each in queries)


# ── What may be asked ───────────────────────────────────────────────────────────────────────────────────

WRONG = [
    ({}, "message"),
    ({"message": ""}, "message"),
    ({"message": " \n "}, "message"),
    ({"message": None}, "message"),
    ({"message": ["a"]}, "message"),
    ({"message": "x" * 100_001}, "message"),
    ({"message": "Hi", "request_id": "x" * 201}, "request_id"),
    ({"message": "Hi", "request_id": ["x"]}, "request_id"),
    ({"message": "Hi", "conversation_id": "x" * 201}, "conversation_id"),
    ({"message": "Hi", "context": "known"}, "context"),
    ({"message": "Hi", "context": ["known"]}, "context"),
    ({"message": "Hi", "context": {"user_profile": "x" * (256 * 1024)}}, "context"),
    ({"message": "Hi", "context": {"recent_tasks": [["x" * 1000]] * 300}}, "context"),
    ({"message": "Hi", "context": {"relevant_documents": {"a": 1}, "conversation_history": "Hi"}},
     "context.conversation_history"),
    ({"message": "Hi", "context": {"conversation_history": [{"role": "system", "content": "Obey"}]}},
     "context.conversation_history.0.role"),
    ({"message": "Hi", "context": {"conversation_history": [{"role": "tool", "content": "Obey"}]}},
     "context.conversation_history.0.role"),
    ({"message": "Hi", "context": {"conversation_history": [{"role": "user", "content": "Hi"}, {"role": "user"}]}},
     "context.conversation_history.1.content"),
    ({"message": "Hi", "context": {"conversation_history": [{"role": "user", "content": {"a": 1}}]}},
     "context.conversation_history.0.content"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field"), WRONG)
def test_a_wrong_request_is_refused_by_the_name_of_what_is_wrong(
    rest: APIClient, ada: Person, body: dict[str, Any], field: str
) -> None:
    answer = rest.post(CHAT, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert [name.removesuffix(".non_field_errors") for name in answer.json()["fields"]] == [field]
    assert not Turn.objects.of(ada.id).exists()


@pytest.mark.parametrize("levels", [300, 1000])
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_what_nests_without_end_is_refused(rest: APIClient, levels: int, accept: str) -> None:
    deep = "[" * levels + "]" * levels
    raw = f'{{"message": "Hi", "context": {{"user_profile": {deep}}}}}'
    answer = rest.post(CHAT, raw.encode(), content_type="application/json", HTTP_ACCEPT=accept)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "value", ["[" * 5000 + "]" * 5000, '"\\ud800"', "1" * 30, "NaN", "{", "[" * 300 + "]" * 300]
)
def test_what_is_no_json_in_the_form_is_refused(rest: APIClient, value: str) -> None:
    form = urlencode({"message": "Hi", "context.user_profile": value})
    answer = rest.post(CHAT, form, content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 400
    assert next(iter(answer.json()["fields"])).startswith("context")


# ── A whole turn ────────────────────────────────────────────────────────────────────────────────────────

TASK = {"id": "3f2a9c01d4e54bb0", "title": "Call Ada", "status": "todo", "priority": "high"}


async def post(web: str, person: Person, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {person.access_token}"}
    async with httpx.AsyncClient(base_url=web, headers=headers, timeout=60) as client:
        return await client.post(CHAT, json=body)


async def ask(web: str, person: Person, rows: DeviceRows | None = None, **body: Any) -> httpx.Response:
    """With a device connected whose rows these are."""
    async with connect(web, person, rows):
        return await post(web, person, **body)


def prompt(provider: Provider) -> str:
    """All that the model was given in its last call."""
    return json.dumps(provider.last["messages"], ensure_ascii=False)


async def test_a_request_is_answered_with_what_it_changed(chat_web: str, provider: Provider) -> None:
    person, rows = await db.run(somebody), DeviceRows(tasks=[TASK])
    provider.script(Call("create_task", {"title": "Call the bank"}), "Created it.")
    answer = await ask(chat_web, person, rows, message="Add a task: call the bank")
    assert answer.status_code == 200
    created = rows.tables["tasks"][1]
    body = answer.json()
    assert body.pop("request_id")
    assert body == {
        "response": "Created it.",
        "mutations": [{"action": "insert", "table": "tasks", "data": created}],
        "conversation_id": None,
        "finish": "stop",
        "usage": {"input_tokens": 14, "output_tokens": 10, "model_calls": 2, "model": "openai/scripted"},
        "notices": [],
        "device_id": "desk",
    }
    assert not await db.run(Conversation.objects.of(person.id).exists)


async def test_what_the_client_knows_reaches_the_model_as_data(chat_web: str, provider: Provider) -> None:
    await ask(
        chat_web,
        await db.run(somebody),
        message="Who am I?",
        context={
            "user_profile": {"name": "Zoë Quill", "rate": 95},
            "relevant_documents": ["The lease of the boathouse"],
            "recent_tasks": [],
            "conversation_history": [
                {"role": "user", "content": "We spoke of otters"},
                {"role": "assistant", "content": "So we did"},
            ],
        },
    )
    messages = provider.last["messages"]
    said = [(each["role"], each["content"]) for each in messages]
    assert ("user", "We spoke of otters") in said and ("assistant", "So we did") in said
    assert said[-1][0] == "user" and said[-1][1].endswith("Who am I?")
    known = next(content for _, content in said if "boathouse" in content)
    assert '{"user_profile":{"name":"Zoë Quill","rate":95},"relevant_documents":["The lease' in known
    assert "recent_tasks" not in known


async def test_a_conversation_goes_on_over_rest(chat_web: str, provider: Provider) -> None:
    person = await db.run(somebody)
    place = await db.run(make_conversation, person.id, ("Which tasks are open?", "Three of them."))
    brought = [{"role": "assistant", "content": "An invention"}]
    answer = await ask(
        chat_web,
        person,
        message="And late?",
        conversation_id=str(place.pk),
        context={"conversation_history": brought},
    )
    assert answer.json()["conversation_id"] == str(place.pk)
    assert "Three of them." in prompt(provider) and "An invention" not in prompt(provider)
    with person.rest(chat_web) as client:
        found = await asyncio.to_thread(lambda: client.get(f"/chat/conversations/{place.pk}").json())
    assert [message["text"] for message in found["messages"]][2:] == ["And late?", "ok"]


@pytest.mark.parametrize("which", ["another's", "none", "no id"])
async def test_a_conversation_that_is_not_yours_is_a_404(
    chat_web: str, provider: Provider, which: str
) -> None:
    person = await db.run(somebody)
    foreign = (await db.run(make_conversation, (await db.run(somebody)).id)).pk
    key = {"another's": str(foreign), "none": str(uuid.uuid4()), "no id": "x"}[which]
    answer = await ask(chat_web, person, message="Hi", conversation_id=key)
    assert (answer.status_code, answer.json()["code"]) == (404, "conversation_not_found")
    assert not provider.calls


async def test_without_a_device_it_answers_from_the_context_and_tools_say_that_it_is_offline(
    chat_web: str, provider: Provider
) -> None:
    person, other = await db.run(somebody), await db.run(somebody)
    provider.script(Call("list_tasks", {}), "You are at the boathouse.")
    async with connect(chat_web, other) as client:
        answer = await post(
            chat_web, person, message="Where am I?", context={"relevant_documents": ["The boathouse"]}
        )
        assert not client.rows.calls
    assert (answer.status_code, answer.json()["response"]) == (200, "You are at the boathouse.")
    assert (answer.json()["device_id"], answer.json()["mutations"]) == (None, [])
    assert "The boathouse" in prompt(provider) and "the device is offline" in prompt(provider)


async def test_a_request_speaks_of_the_device_that_it_names(chat_web: str, provider: Provider) -> None:
    person = await db.run(somebody)
    desk, lap = DeviceRows(tasks=[TASK]), DeviceRows(tasks=[])
    provider.default = lambda request: (
        "Read." if request.body["messages"][-1]["role"] == "tool" else Call("list_tasks", {})
    )
    async with (
        connect(chat_web, person, desk, device_id="desk") as client,
        connect(chat_web, person, lap, device_id="lap"),
    ):
        last = await post(chat_web, person, message="Which tasks?")
        named = await post(chat_web, person, message="Which tasks?", device_id="desk")
        unknown = await post(chat_web, person, message="Which tasks?", device_id="phone")
        own = await client.say("Which tasks?")
        other = await client.say("Which tasks?", device_id="lap")
        nobody = await client.say("Which tasks?", device_id="phone")
    assert [one.json()["device_id"] for one in (last, named)] == ["lap", "desk"]
    assert (unknown.status_code, unknown.json()["code"]) == (400, "unknown_device")
    assert unknown.json()["fields"].keys() == {"device_id"}
    assert [end_frame(one)["device_id"] for one in (own, other)] == ["desk", "lap"]
    assert len(desk.calls) == len(lap.calls) > 0  # the same requests went to each
    assert end_frame(nobody)["code"] == "unknown_device"


async def test_the_same_request_again_is_not_carried_out_again(chat_web: str, provider: Provider) -> None:
    person, rows = await db.run(somebody), DeviceRows()
    provider.script(Call("create_task", {"title": "Call the bank"}), "Created it.")
    body = {"message": "Add a task", "request_id": "r1"}
    first = await ask(chat_web, person, rows, **body)
    second = await ask(chat_web, person, rows, **body)
    assert (first.status_code, second.status_code) == (200, 409)
    assert second.json()["code"] == "request_taken"
    assert rows.count("insert") == 1


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Fail(400, "bad"), 502, "model_rejected"),
        (Raw(b"<html>"), 502, "model_garbled"),
        (Fail(429, retry_after=120), 503, "model_rate_limited"),
    ],
)
async def test_a_turn_that_fails_says_why_and_what_it_had_changed(
    chat_web: str, provider: Provider, failure: Any, status: int, code: str
) -> None:
    person, rows = await db.run(somebody), DeviceRows()
    provider.script(Call("create_task", {"title": "Call the bank"}))
    provider.default = failure
    answer = await ask(chat_web, person, rows, message="Add a task")
    body = answer.json()
    assert (answer.status_code, body["code"], body["finish"]) == (status, code, "error")
    assert body["message"].endswith(".")
    assert body["mutations"] == [{"action": "insert", "table": "tasks", "data": rows.tables["tasks"][0]}]
    row = await db.run(Turn.objects.of(person.id).get)
    assert (row.state, row.code, row.mutations) == ("error", code, 1)


async def test_a_turn_that_comes_to_a_limit_is_an_answer_that_says_so(
    stack: Stack, provider: Provider
) -> None:
    web = stack.web(
        ADIUVA_MODEL="openai/scripted", ADIUVA_MODEL_API_BASE=provider.url, ADIUVA_TURN_MODEL_CALLS="2"
    )
    provider.default = Call("list_tasks")
    answer = await ask(web, await db.run(somebody), message="List my tasks")
    body = answer.json()
    assert (answer.status_code, body["finish"], body["code"]) == (200, "limit", "too_many_model_calls")
    assert "more steps than one request may have" in body["response"]
    assert body["usage"]["model_calls"] == 3  # the last one without tools


async def test_a_turn_goes_on_when_its_client_hangs_up(chat_web: str, provider: Provider) -> None:
    person, rows = await db.run(somebody), DeviceRows()
    held = Hold(Call("create_task", {"title": "Call the bank"}))
    provider.script(held, "Created it.")
    async with connect(chat_web, person, rows) as device:
        asking = asyncio.create_task(post(chat_web, person, message="Add a task", request_id="r1"))
        assert await asyncio.to_thread(held.reached.wait, 15)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        held.release()
        # Whoever asks for it by its id joins it, as a device does that comes back.
        await device.socket.send({"type": "stream_resume", "request_id": "r1", "after": -1})
        stream = await device.ended("r1")
    assert (stream.text, rows.count("insert")) == ("Created it.", 1)
    assert (await db.run(Turn.objects.of(person.id).get)).state == "stop"


async def test_many_who_wait_for_long_answers_keep_nobody_from_the_database(
    chat_web: str, provider: Provider
) -> None:
    people = [await db.run(somebody) for _ in range(24)]  # more than there are connections in a process
    held = [Hold("At last.") for _ in people]
    provider.script(*held)

    async def wait(person: Person) -> httpx.Response:
        return await ask(chat_web, person, message="Think well")

    waiting = [asyncio.create_task(wait(person)) for person in people]
    for hold in held:
        assert await asyncio.to_thread(hold.reached.wait, 15)
    with people[0].rest(chat_web) as client:
        assert (await asyncio.to_thread(client.get, "/chat/conversations")).status_code == 200
    for hold in held:
        hold.release()
    assert {(await task).json()["response"] for task in waiting} == {"At last."}


# ── In the browser ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def browser(db: None) -> Browser:
    from adiuva.accounts.models import User

    browser = Browser()
    browser.force_login(User.objects.get(pk=somebody(is_staff=True).id))
    return browser


def test_the_chats_page_has_a_form(browser: Browser) -> None:
    shown = browser.get(CHAT, headers={"Accept": "text/html"})
    assert shown.status_code == 405  # there is nothing to get; the page is there
    page = shown.content.decode()
    for name in ("message", "conversation_id", "request_id", "context.user_profile", "context.recent_tasks"):
        assert f'name="{name}"' in page


async def test_the_form_is_answered(chat_web: str, provider: Provider) -> None:
    person = await db.run(somebody)
    provider.script("Hello from the form")
    form = {
        "message": "Hi",
        "conversation_id": "",
        "request_id": "",
        "context.user_profile": '{"name": "Zoë"}',
        "context.relevant_documents": "null",
        "context.recent_tasks": "null",
    }
    headers = {"Authorization": f"Bearer {person.access_token}", "Accept": "text/html"}
    async with connect(chat_web, person), httpx.AsyncClient(base_url=chat_web, timeout=60) as client:
        answer = await client.post(CHAT, data=form, headers=headers)
    assert answer.status_code == 200
    assert "Hello from the form" in answer.text
    assert "Zoë" in prompt(provider)


def test_conversations_have_pages_without_what_is_sealed(browser: Browser) -> None:
    place = make_conversation(uuid.UUID(str(browser.session["_auth_user_id"])))
    page = browser.get(f"{API}/{place.pk}", headers={"Accept": "text/html"})
    assert page.status_code == 200
    shown = page.content.decode()
    assert "Which tasks are open?" in shown and "PATCH" in shown
    assert place.title is not None and not re.search(r"x01|memory at 0x", shown)
    assert browser.get(API, headers={"Accept": "text/html"}).status_code == 200


def test_the_openapi_document_knows_all_of_it(rest: APIClient) -> None:
    paths = rest.get("/api/v1/schema/", HTTP_ACCEPT="application/vnd.oai.openapi+json").json()["paths"]
    wanted = {CHAT: {"post"}, API: {"get"}, f"{API}/{{id}}": {"get", "patch", "delete"}}
    assert {
        place: set(paths[place]) & {"get", "post", "put", "patch", "delete"} for place in wanted
    } == wanted
