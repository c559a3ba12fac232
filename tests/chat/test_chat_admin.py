"""Staff see who chatted when and how it ended, and read nothing of what was said."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from adiuva.accounts.models import StaffAction
from adiuva.health import run_checks
from agents import run_watches
from agents.models import Run, Watch
from agents.run_watches import ChatPlace
from chat.claimed_turn import NewSummary
from chat.models import AssistantKind, Conversation, Turn
from tests.agents.factories import create_agent, create_run
from tests.chat.factories import TASK_INSERTED, claim, finish_turn, make_conversation, make_request, make_turn
from tests.factories import Person, somebody

CONVERSATIONS, TURNS = "admin:chat_conversation_changelist", "admin:chat_turn_changelist"


@pytest.fixture
def staff(db: None) -> Client:
    from adiuva.accounts.models import User

    browser = Client()
    browser.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    return browser


@pytest.fixture
def ada(db: None) -> Person:
    return somebody()


def listed(browser: Client, page: str, **query: str) -> set[Any]:
    answer = browser.get(reverse(page), query)
    assert answer.status_code == 200
    return {row.pk for row in answer.context["cl"].result_list}


def test_conversations_and_turns_are_found_by_id_and_address_and_filtered(staff: Client, ada: Person) -> None:
    place, foreign = make_conversation(ada.id), make_conversation(somebody().id)
    alone, floating = (
        make_turn(ada.id, starts_conversation=False),
        claim(make_request(ada.id, starts_conversation=False, kind=AssistantKind.FLOATING)),
    )
    kept = Turn.objects.get(conversation=place)
    assert listed(staff, CONVERSATIONS, q=str(place.pk)) == listed(staff, CONVERSATIONS, q=ada.email[:20])
    assert listed(staff, CONVERSATIONS, q=ada.email) == {place.pk}
    assert foreign.pk in listed(staff, CONVERSATIONS)
    assert listed(staff, TURNS, q=ada.email) == {kept.pk, alone.turn_id, floating.turn_id}
    assert listed(staff, TURNS, q=str(place.pk)) == listed(staff, TURNS, q=str(kept.pk)) == {kept.pk}
    assert listed(staff, TURNS, q=ada.email, state__exact="running") == {floating.turn_id}
    assert listed(staff, TURNS, q=ada.email, kind__exact="floating") == {floating.turn_id}
    assert listed(staff, TURNS, q="nobody") == set()


def test_nothing_of_what_was_said_is_on_any_page(staff: Client, ada: Person) -> None:
    request = make_request(ada.id, "The canary asks")
    turn = claim(request)
    changed = TASK_INSERTED.model_copy(update={"data": {"title": "canary"}})
    finish_turn(
        request,
        turn,
        "The canary answers",
        mutations=[changed],
        summary=NewSummary(1, "The canary, in short"),
    )
    place = Conversation.objects.get(pk=turn.conversation_id)
    assert place.title is not None and place.summary is not None
    pages = [
        reverse(CONVERSATIONS),
        reverse(TURNS),
        reverse("admin:chat_conversation_change", args=[place.pk]),
        reverse("admin:chat_conversation_history", args=[place.pk]),
        reverse("admin:chat_turn_change", args=[turn.turn_id]),
        reverse("admin:accounts_user_change", args=[ada.id]),
        reverse("admin:accounts_user_delete", args=[ada.id]),
        *re.findall(r'href="(/admin/[a-z_]+/[a-z_]+/)"', staff.get("/admin/").content.decode()),
    ]
    for page in pages:
        answer = staff.get(page)
        assert answer.status_code == 200, page
        shown = answer.content.decode()
        assert "canary" not in shown, page
        for sealed in (place.title, place.summary):
            assert bytes(sealed).hex() not in shown and repr(bytes(sealed))[2:20] not in shown, page
    assert not re.search("/admin/chat/message/", staff.get("/admin/").content.decode())


def test_a_turns_page_says_how_it_went(staff: Client, ada: Person) -> None:
    request = make_request(ada.id)
    turn = claim(request)
    finish_turn(request, turn, state="error", code="model_timeout")
    shown = staff.get(reverse("admin:chat_turn_change", args=[turn.turn_id])).content.decode()
    for value in ("model_timeout", request.request_id, str(turn.conversation_id), "a-process", "home-1"):
        assert value in shown


@pytest.mark.parametrize("action", ["add", "change", "delete"])
def test_conversations_and_turns_are_neither_made_nor_edited_nor_deleted_by_hand(
    staff: Client, ada: Person, action: str
) -> None:
    place = make_conversation(ada.id)
    turn = Turn.objects.get(conversation=place)
    for name, key in (("conversation", place.pk), ("turn", turn.pk)):
        page = reverse(f"admin:chat_{name}_{action}", args=[] if action == "add" else [key])
        assert staff.post(page, {"post": "yes", "kind": "floating"}).status_code == 403
    for page, key in ((CONVERSATIONS, place.pk), (TURNS, turn.pk)):
        form = {"action": "delete_selected", "_selected_action": [str(key)], "post": "yes"}
        staff.post(reverse(page), form)
    assert Conversation.objects.get(pk=place.pk).kind == "home"
    assert Turn.objects.filter(pk=turn.pk).exists()


_MANY_CONVERSATIONS = """
INSERT INTO chat_conversation (id, user_id, kind, summary_upto, message_count, created_at, updated_at)
SELECT gen_random_uuid(), %s, 'home', 0, 2, now(), now() - number * interval '1 minute'
FROM generate_series(1, 50000) AS series (number)
"""
_MANY_TURNS = """
INSERT INTO chat_turn (id, user_id, request_id, conversation_id, kind, state, code, owner, prompt_version,
    fence, input_tokens, output_tokens, model_calls, tool_calls, mutations, started_at, ended_at)
SELECT gen_random_uuid(), %s, 'r' || number, CASE WHEN number <= 10 THEN %s::uuid END,
    CASE WHEN number %% 3 = 0 THEN 'floating' ELSE 'home' END,
    CASE WHEN number %% 1000 = 0 THEN 'error' ELSE 'stop' END, '', 'a-process', 'home-1', 1, 70, 9, 2, 1, 0,
    now() - number * interval '1 minute', now()
FROM generate_series(1, 50000) AS series (number)
"""


def test_with_50_000_of_each_a_list_costs_few_queries_and_reads_by_index(staff: Client, ada: Person) -> None:
    place = make_conversation(ada.id)
    with connection.cursor() as cursor:
        cursor.execute(_MANY_CONVERSATIONS, [ada.id])
        cursor.execute(_MANY_TURNS, [ada.id, place.pk])
        cursor.execute("ANALYZE chat_conversation, chat_turn")
    turn = Turn.objects.of(ada.id).latest("started_at")
    shared: list[dict[str, str]] = [
        {},
        {"p": "7"},
        {"q": ada.email},
        {"q": str(place.pk)},
        {"q": str(uuid.uuid4())},
    ]
    pages = [
        (CONVERSATIONS, "chat_conversation", shared),
        (
            TURNS,
            "chat_turn",
            [*shared, {"q": str(turn.pk)}, {"state__exact": "error"}, {"kind__exact": "floating"}],
        ),
    ]
    for page, table, looks in pages:
        for query in looks:
            with CaptureQueriesContext(connection) as queries:
                assert len(listed(staff, page, **query)) <= 50
            # The session, the user, and at most three for the list.
            assert len(queries) <= 6, (page, query, [each["sql"] for each in queries])
            for statement in [each["sql"] for each in queries if f'FROM "{table}"' in each["sql"]]:
                with connection.cursor() as cursor:
                    cursor.execute(f"EXPLAIN {statement}")
                    plan = "\n".join(row[0] for row in cursor.fetchall())
                if "COUNT" in statement:
                    assert "Limit" in plan, (query, statement, plan)  # no further than pages are turned
                else:
                    assert "Index" in plan and f"Seq Scan on {table}" not in plan, (query, plan)


def test_staff_have_an_end_told_again_that_was_given_up(staff: Client, ada: Person) -> None:
    place = make_conversation(ada.id)
    tried = Turn.objects.get(conversation=place)
    Turn.objects.filter(pk=tried.pk).update(state="error", code="content_filter")
    dead, due = (
        Watch.objects.get(pk=ended_watch(ada.id, place, tried.pk, state)) for state in ("dead", "due")
    )
    page = reverse("admin:agents_watch_changelist")
    assert listed(staff, "admin:agents_watch_changelist", q=ada.email, state__exact="dead") == {dead.pk}
    assert "content_filter" in staff.get(page, {"q": ada.email}).content.decode()
    done = staff.post(page, {"action": "try_again", "_selected_action": [dead.pk, due.pk]}, follow=True)
    assert "1 to be told again." in done.content.decode()
    dead.refresh_from_db()
    assert (dead.state, dead.attempts) == ("due", 0) and dead.turn != tried.pk
    due.refresh_from_db()
    assert due.attempts == 8
    assert StaffAction.objects.filter(user=ada.id, kind="retried", object_id=str(dead.pk)).count() == 1


def ended_watch(user_id: uuid.UUID, place: Conversation, turn: uuid.UUID, state: str) -> uuid.UUID:
    run = create_run(create_agent(user_id), state=Run.State.SUCCESS)
    watch = run_watches.add(run, ChatPlace(user_id, turn, place.pk), started=True)
    Watch.objects.filter(pk=watch.pk).update(state=state, attempts=8)
    return watch.pk


def test_what_no_turn_could_tell_is_counted(ada: Person) -> None:
    place = make_conversation(ada.id)
    due, dead = run_watches.backlog()
    for state in ("due", "dead", "dead", "told"):
        ended_watch(ada.id, place, uuid.uuid4(), state)
    assert run_checks()["followups"].items() >= {"ok": True, "due": due + 1, "dead": dead + 2}.items()
