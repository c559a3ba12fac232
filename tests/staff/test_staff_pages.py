"""The admin's start page, account pages, search, roles, and lists of the platform's tables."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from adiuva.accounts.models import User
from adiuva.devices.models import Device, OutboxRecord
from adiuva.staff import roles, start_page
from agents import claimed_runs, run_release
from agents.journal import EventKind, JournalEntry
from agents.models import Run
from chat.models import Turn
from tests.agents.factories import claim_run, commit_tasks, create_agent, create_device, create_run
from tests.chat.factories import claim, finish_turn, make_request
from tests.factories import Person, a_process, somebody

FIND, ACCOUNT = "staff-find", "admin:accounts_user_change"


def browser_of(**fields: Any) -> tuple[Client, User]:
    user = User.objects.get(pk=somebody(is_staff=True, **fields).id)
    browser = Client()
    browser.force_login(user)
    return browser, user


@pytest.fixture
def staff(db: None) -> Client:
    return browser_of(is_superuser=True)[0]


@pytest.fixture
def ada(db: None) -> Person:
    return somebody()


def in_role(name: str) -> Client:
    browser, user = browser_of()
    user.groups.add(Group.objects.get(name=name))
    return browser


def text_of(browser: Client, page: str, **query: str) -> str:
    answer = browser.get(page, query)
    assert answer.status_code == 200, answer
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.content.decode()))


def what_happened(person: Person) -> Run:
    """A failed run, an answered turn and one that failed, a device, an agent: with words that are the user's."""
    agent = create_agent(person.id, name="canary-name", prompt_template="canary-prompt")
    create_device(agent)
    claimed = claim_run(create_run(agent))
    commit_tasks(claimed, "canary-title", path="/home/canary-file.md")
    failed = JournalEntry(EventKind.SOURCE_FAILED, "unreadable", source="/canary", message="canary-words")
    claimed_runs.add_counts(claimed, seen=1, done=1, failed=1, entries=[failed])
    run_release.finish(claimed)
    for code in ("", "model_timeout"):
        request = make_request(person.id)
        finish_turn(request, claim(request), state="error" if code else "stop", code=code)
    return Run.objects.get(pk=claimed.run_id)


def test_the_start_page_says_what_fails_who_uses_it_and_what_waits(staff: Client, ada: Person) -> None:
    for model in (
        Run,
        Turn,
        OutboxRecord,
    ):  # what other tests have left, and no process of theirs writes just now
        free = model._default_manager.order_by("pk").select_for_update(skip_locked=True)
        model._default_manager.filter(pk__in=list(free.values_list("pk", flat=True))).delete()
    what_happened(ada)
    create_run(create_agent(ada.id))
    shown = text_of(staff, "/admin/")
    for words in ("database ok", "runs ok", "unreadable source failed N N", "error model_timeout N N"):
        assert re.search(words.replace("N", "[1-9][0-9,]*"), shown), words
    for words in ("runs queued N", "records for devices, waiting N"):
        assert re.search(words.replace("N", "[1-9][0-9,]*"), shown), words
    assert "Turns Users Model calls Tokens in Tokens out" in shown
    assert "canary" not in staff.get("/admin/").content.decode()


def test_each_link_of_the_start_page_and_of_an_account_opens(staff: Client, ada: Person) -> None:
    what_happened(ada)
    for page in ("/admin/", reverse(ACCOUNT, args=[ada.id])):
        links = set(re.findall(r'href="(/admin/[^"]*)"', staff.get(page).content.decode()))
        assert len(links) > 10
        for link in links - {"/admin/password_change/"}:
            answer = staff.get(link.replace("&amp;", "&"))
            assert answer.status_code == 200, link
            assert "canary" not in answer.content.decode(), link


def test_an_accounts_page_is_a_hub(staff: Client, ada: Person) -> None:
    run = what_happened(ada)
    shown = text_of(staff, reverse(ACCOUNT, args=[ada.id]))
    titles = (
        "Agents",
        "Runs",
        "Devices",
        "Connections",
        "Conversations",
        "Chat turns",
        "Sessions",
        "What staff did",
    )
    for title in titles:
        assert title in shown, title
    assert str(run.pk)[:8] in shown and "model_timeout" in shown
    assert "What staff did" not in text_of(staff, reverse("admin:accounts_user_add"))


def test_everything_is_found_by_its_id(staff: Client, ada: Person) -> None:
    run = what_happened(ada)
    turn = Turn.objects.filter(user_id=ada.id).latest("started_at")
    device = ada_device(ada)
    for key, page in (
        (ada.id, reverse(ACCOUNT, args=[ada.id])),
        (run.pk, reverse("admin:agents_run_change", args=[run.pk])),
        (run.agent_id, reverse("admin:agents_agent_change", args=[run.agent_id])),
        (turn.pk, reverse("admin:chat_turn_change", args=[turn.pk])),
        (turn.conversation_id, reverse("admin:chat_conversation_change", args=[turn.conversation_id])),
        (device.pk, reverse("admin:devices_device_change", args=[device.pk])),
        (a_record(run), reverse("admin:agents_run_change", args=[run.pk])),
    ):
        assert staff.get(reverse(FIND), {"q": f" {key} "}).headers.get("Location") == page
    for text in (turn.request_id, device.device_id):
        assert staff.get(reverse(FIND), {"q": text}).headers["Location"].endswith(f"?q={text}")
    assert "Nothing is found." in text_of(staff, reverse(FIND), q=str(uuid.uuid4()))


def ada_device(person: Person) -> Any:
    from adiuva.devices.models import Device

    return Device.objects.filter(user_id=person.id)[0]


def a_record(run: Run) -> uuid.UUID:
    from adiuva.devices.models import OutboxRecord

    return OutboxRecord.objects.filter(source_run=run.pk)[0].pk


def test_addresses_are_found_by_any_of_their_words_and_rows_by_their_codes(
    staff: Client, ada: Person
) -> None:
    run = what_happened(ada)
    grace = User.objects.get(pk=somebody().id)
    grace.email = "grace.m-hopper@navy.example.org"
    grace.save()
    for part in (
        "hopp",
        "NAVY",
        "example.org",
        "grace.m",
        "@navy.example",
        "grace.m-hopper@navy.example.org",
    ):
        found = staff.get(reverse("admin:accounts_user_changelist"), {"q": part})
        assert grace.pk in {row.pk for row in found.context["cl"].result_list}, part
        assert staff.get(reverse(FIND), {"q": part}).status_code in (200, 302)
    for nobody in ("opper", "h' | 'x", "& !", "navy2"):
        assert grace.email not in text_of(staff, reverse(FIND), q=nobody)
    assert ada.email in text_of(staff, reverse("admin:agents_run_changelist"), q="unreadable")
    assert ada.email in text_of(staff, reverse("admin:chat_turn_changelist"), q="model_timeout")
    assert (
        f"/admin/agents/run/{run.pk}"
        in staff.get(
            reverse("admin:agents_run_changelist"), {"q": "unreadable", "created_at__within": "day"}
        ).content.decode()
    )
    assert (
        staff.get(reverse("admin:agents_run_changelist"), {"created_at__within": "nonsense"}).status_code
        == 200
    )


def test_devices_that_are_connected_are_counted_and_listed_however_long_they_are(
    staff: Client, ada: Person
) -> None:
    long_ago = timezone.now() - timedelta(days=60)
    here, lost = (
        Device.objects.create(user_id=ada.id, device_id=name, process=process, last_seen=long_ago)
        for name, process in [("here", a_process()), ("lost", a_process(timedelta(hours=-1)))]
    )
    listed = staff.get(reverse("admin:devices_device_changelist"), {"online": "yes", "q": str(ada.id)})
    assert [row.pk for row in listed.context["cl"].result_list] == [here.pk]
    ((online, _, day, *_rest),) = start_page._rows(start_page._ACTIVITY)
    Device.objects.filter(pk=here.pk).update(process=lost.process)
    ((online_then, _, day_then, *_rest),) = start_page._rows(start_page._ACTIVITY)
    assert (online - online_then, day - day_then) == (1, 1)


@pytest.mark.parametrize("term", ["'", "%", "a" * 10_000, "ä ö", "-", "é@ü", "\\", ":*"])
def test_any_text_may_be_searched_for(staff: Client, term: str) -> None:
    for page in (reverse(FIND), reverse("admin:agents_run_changelist")):
        assert staff.get(page, {"q": term}).status_code in (200, 302)


# ── Who may what ────────────────────────────────────────────────────────────────────────────────────────


def test_roles_have_exactly_their_permissions(db: None) -> None:
    Group.objects.get(name=roles.VIEWER).permissions.add(Permission.objects.get(codename="delete_user"))
    roles.create_roles()
    viewer, support, reviewer = (
        {
            f"{one.content_type.app_label}.{one.codename}"
            for one in Group.objects.get(name=name).permissions.all()
        }
        for name in (roles.VIEWER, roles.SUPPORT, roles.REVIEWER)
    )
    assert viewer == {
        f"{model._meta.app_label}.view_{model._meta.model_name}" for model in admin.site._registry
    }
    assert support - viewer == {f"{app}.{codename}" for app, codename in roles.SUPPORT_MAY}
    assert reviewer - viewer == {f"{app}.{codename}" for app, codename in roles.REVIEWER_MAY}


def test_a_viewer_sees_all_lists_and_changes_nothing(ada: Person) -> None:
    browser, run = in_role(roles.VIEWER), what_happened(ada)
    assert "What fails in runs" in text_of(browser, "/admin/")
    for model in admin.site._registry:
        assert (
            browser.get(
                reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
            ).status_code
            == 200
        )
    assert browser.post(reverse(ACCOUNT, args=[ada.id]), {"tier": "pro"}).status_code == 403
    form = {"action": "cancel", "_selected_action": [str(run.pk)]}
    browser.post(reverse("admin:agents_run_changelist"), form)
    run.refresh_from_db()
    assert run.state != "cancelled"


def test_who_has_no_role_sees_health_alone_and_finds_nothing(ada: Person) -> None:
    browser, _ = browser_of()
    run = what_happened(ada)
    shown = text_of(browser, "/admin/")
    assert "database ok" in shown and "What fails" not in shown and "Tokens" not in shown
    for term in (ada.email, str(ada.id), str(run.pk), "unreadable"):
        assert "Nothing is found." in text_of(browser, reverse(FIND), q=term)
    assert Client().get(reverse(FIND), {"q": "x"}).status_code == 302


def test_superusers_are_found_by_superusers_alone(staff: Client) -> None:
    boss = somebody(is_superuser=True, is_staff=True)
    viewer = in_role(roles.VIEWER)
    for term in (boss.email, str(boss.id)):
        assert "Nothing is found." in text_of(viewer, reverse(FIND), q=term)
    assert staff.get(reverse(FIND), {"q": str(boss.id)}).status_code == 302


@pytest.mark.parametrize("action", ["change", "delete", "add"])
def test_no_click_breaks_what_the_platform_runs_on(staff: Client, action: str) -> None:
    every = IntervalSchedule.objects.create(every=30, period="seconds")
    task = PeriodicTask.objects.create(name="tick", task="agents.tick", interval=every)
    role = Group.objects.get(name=roles.VIEWER)
    for name, row in (("django_celery_beat_periodictask", task), ("auth_group", role)):
        page = reverse(f"admin:{name}_{action}", args=[] if action == "add" else [row.pk])
        assert staff.post(page, {"post": "yes", "name": "x"}).status_code == 403
        form = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
        staff.post(reverse(f"admin:{name}_changelist"), form)
        row.refresh_from_db()
    assert "every 30 seconds" in text_of(staff, reverse("admin:django_celery_beat_periodictask_changelist"))
    registered = {model._meta.label for model in admin.site._registry}
    assert not registered & {"django_celery_beat.IntervalSchedule", "sessions.Session"}


# ── What it costs ───────────────────────────────────────────────────────────────────────────────────────

_MANY = """
INSERT INTO agents_run (id, user_id, agent_ref, agent_name_sealed, agent_type, device_id, trigger, slots, state, phase,
    verdict, dry_run, attempt, retries, workers_lost, files_seen, files_done, files_unchanged, files_failed,
    passed_over, problems, items_created, model_calls, fence, created_at)
SELECT gen_random_uuid(), %(user)s, gen_random_uuid(), '', 'gmail', '', 'manual', 1, 'success', '', 'completed', false,
    1, 0, 0, 1, 1, 0, 0, '{}', 0, 1, 1, 0, now() - number * interval '10 minutes'
FROM generate_series(1, 12000) AS series (number);
INSERT INTO agents_runevent (run_id, at, kind, code, nonce)
SELECT id, created_at, 'source_failed', 'unreadable', gen_random_uuid() FROM agents_run WHERE state = 'success';
INSERT INTO chat_turn (id, user_id, request_id, kind, state, code, owner, prompt_version, fence, input_tokens,
    output_tokens, model_calls, tool_calls, mutations, started_at, ended_at)
SELECT gen_random_uuid(), %(user)s, 'r' || number, 'home', 'stop', '', 'a', 'p', 1, 70, 9, 2, 1, 0,
    now() - number * interval '10 minutes', now()
FROM generate_series(1, 12000) AS series (number);
INSERT INTO devices_outboxrecord (id, user_id, source_run, source, position, "table", state)
SELECT gen_random_uuid(), %(user)s, gen_random_uuid(), '', number, 'tasks',
    CASE WHEN number > 11900 THEN 'waiting' ELSE 'delivered' END
FROM generate_series(1, 12000) AS series (number);
INSERT INTO devices_device (id, user_id, device_id, platform, app_version, protocol, capabilities, epoch, channel,
    timezone, last_seen)
SELECT gen_random_uuid(), %(user)s, 'd' || number, '', '', 2, '{}', 1, '', '', now() - number * interval '1 hour'
FROM generate_series(1, 12000) AS series (number);
ANALYZE agents_run, agents_runevent, chat_turn, devices_outboxrecord, devices_device
"""


def test_with_12_000_of_each_the_pages_cost_the_same_few_queries_by_index(staff: Client, ada: Person) -> None:
    pages = ("/admin/", reverse(ACCOUNT, args=[ada.id]))

    def counted() -> list[list[str]]:
        found = []
        for page in pages:
            with CaptureQueriesContext(connection) as queries:
                assert staff.get(page).status_code == 200
            found.append([each["sql"] for each in queries])
        return found

    counted()  # Django keeps what it reads first, such as content types
    few = counted()
    with connection.cursor() as cursor:
        cursor.execute(_MANY, {"user": ada.id})
    many = counted()
    assert list(map(len, few)) == list(map(len, many)), (few, many)
    assert len(many[0]) <= 17 and len(many[1]) <= 21, many
    with connection.cursor() as cursor:  # tables that are small here are read whole, if they may be
        cursor.execute("SET LOCAL enable_seqscan = off")
    for statement in (each for statements in many for each in statements):
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN {statement}")
            plan = "\n".join(row[0] for row in cursor.fetchall())
        if "AS first)" not in statement:  # those count the first rows alone
            assert not re.search("Seq Scan on (agents|chat|devices)", plan), (statement, plan)
    assert "about 12,0" in text_of(staff, "/admin/")
    assert start_page.MAX_ROWS <= 100_000
