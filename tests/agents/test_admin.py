"""Staff find agents and runs, start and end them, and read nothing that is the user's."""

from __future__ import annotations

import json
import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from adiuva.accounts.admin_base import NewestChangeList
from agents import claimed_runs, journal, run_release
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Agent, Run
from agents.record_validation import Record
from tests.agents.factories import (
    accepted_by_device,
    claim_run,
    commit_answers,
    commit_document,
    commit_tasks,
    create_agent,
    create_device,
    create_run,
)
from tests.factories import Person, somebody

AGENTS, RUNS = "admin:agents_agent_changelist", "admin:agents_run_changelist"


@pytest.fixture
def staff(db: None) -> Client:
    from adiuva.accounts.models import User

    browser = Client()
    browser.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    return browser


def listed(browser: Client, page: str, **query: str) -> set[Any]:
    answer = browser.get(reverse(page), query)
    assert answer.status_code == 200
    return {row.pk for row in answer.context["cl"].result_list}


def act(browser: Client, page: str, action: str, *ids: object) -> str:
    form = {"action": action, "_selected_action": [str(each) for each in ids]}
    answer = browser.post(reverse(page), form, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def test_agents_and_runs_are_found_by_id_and_address_and_filtered(staff: Client, ada: Person) -> None:
    agent, other = create_agent(ada.id), create_agent(enabled=False)
    run, old = create_run(agent), create_run(agent, state=Run.State.ERROR)
    foreign = create_run(other)
    assert listed(staff, AGENTS, q=str(agent.pk)) == listed(staff, AGENTS, q=ada.email[:20]) == {agent.pk}
    assert listed(staff, AGENTS, q=str(other.pk), enabled__exact="1") == set()
    assert listed(staff, RUNS, q=ada.email) == listed(staff, RUNS, q=str(agent.pk)) == {run.pk, old.pk}
    assert listed(staff, RUNS, q=str(foreign.pk)) == {foreign.pk}
    assert listed(staff, RUNS, q=ada.email, state__exact="error") == {old.pk}
    assert listed(staff, RUNS, q="nobody", state__exact="error") == set()


def test_staff_can_run_agents_and_cancel_runs(staff: Client, ada: Person) -> None:
    agent, busy = create_agent(ada.id), create_agent(ada.id, name="Busy")
    create_run(busy)
    said = act(staff, AGENTS, "run_now", agent.pk, busy.pk)
    assert "1 started" in said and f"Local folders agent {busy.pk}: this agent has a run under way" in said
    run = Run.objects.get(agent=agent)
    assert "Cancelling." in act(staff, RUNS, "cancel", run.pk)
    run.refresh_from_db()
    assert run.state == "cancelled"


def test_who_may_only_look_can_neither_run_nor_cancel(ada: Person) -> None:
    from django.contrib.auth.models import Permission

    from adiuva.accounts.models import User

    user = User.objects.get(pk=somebody(is_staff=True).id)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_agent", "view_run"]))
    browser = Client()
    browser.force_login(user)
    agent = create_agent(ada.id)
    run = create_run(agent)
    act(browser, AGENTS, "run_now", agent.pk)
    act(browser, RUNS, "cancel", run.pk)
    assert list(Run.objects.filter(agent=agent).values_list("state", flat=True)) == ["queued"]


def test_nothing_of_the_users_is_on_any_page(staff: Client, ada: Person) -> None:
    canary = "canary"
    agent = create_agent(
        ada.id,
        name=f"{canary}-name",
        prompt_template=f"{canary}-prompt",
        directory_paths=[f"/home/{canary}-path"],
        file_extensions=[".md"],
        schedule_cron="@daily",
    )
    device = create_device(agent)
    claimed = claim_run(create_run(agent))
    ids = commit_tasks(claimed, f"{canary}-title", f"{canary}-other", path=f"/home/{canary}-file.md")
    commit_answers(claimed, accepted_by_device(ids[0]), f"/home/{canary}-file.md")
    failed = JournalEntry(
        EventKind.SOURCE_FAILED, "unreadable", source=f"/{canary}-source", message=f"{canary}-words"
    )
    claimed_runs.add_counts(claimed, seen=1, done=1, failed=1, entries=[failed])
    run_release.finish(claimed)
    assert canary in json.dumps(journal.read(Run.objects.get(pk=claimed.run_id)), default=str)
    pages = [
        *(reverse(page) for page in (AGENTS, RUNS)),
        reverse("admin:agents_agent_change", args=[agent.pk]),
        reverse("admin:agents_run_change", args=[claimed.run_id]),
        reverse("admin:accounts_user_change", args=[ada.id]),
        reverse("admin:accounts_user_delete", args=[ada.id]),
        reverse("admin:devices_device_change", args=[device.pk]),
        reverse("admin:devices_device_delete", args=[device.pk]),
        reverse("admin:agents_run_history", args=[claimed.run_id]),
        *re.findall(r'href="(/admin/[a-z_]+/[a-z_]+/)"', staff.get("/admin/").content.decode()),
    ]
    for page in pages:
        answer = staff.get(page)
        assert answer.status_code in (200, 403), page
        assert canary not in answer.content.decode(), page
    shown = staff.get(reverse("admin:agents_run_change", args=[claimed.run_id])).content.decode()
    assert "unreadable" in shown and "a source could not be read" in shown


def test_a_run_shows_its_verdict_and_its_records_by_state_and_what_a_dry_run_found_to_nobody(
    staff: Client, ada: Person
) -> None:
    agent = create_agent(ada.id)
    create_device(agent)
    claimed = claim_run(create_run(agent))
    ids = commit_tasks(claimed, "a", "b", "c")
    commit_answers(claimed, accepted_by_device(*ids[:2]))
    run_release.finish(claimed)
    Run.objects.filter(pk=claimed.run_id).update(undone_at=timezone.now())
    shown = staff.get(reverse("admin:agents_run_change", args=[claimed.run_id])).content.decode()
    assert "2 delivered, 1 waiting" in shown and str(Run.Verdict.COMPLETED.label) in shown
    dry = claim_run(create_run(agent, dry_run=True, max_sources=3))
    document = SourceDocument("a", "/canary", "text", dry.source_key("/canary"), b"hash")
    found = [Record("tasks", {"title": "canary"})]
    commit_document(dry, document, found)
    run_release.finish(dry)
    for page in (reverse("admin:agents_run_change", args=[dry.run_id]), reverse(RUNS)):
        shown = staff.get(page).content.decode()
        assert "canary" not in shown


def test_a_page_of_a_run_with_a_very_long_journal_stays_short(staff: Client, ada: Person) -> None:
    claimed = claim_run(create_run(create_agent(ada.id)))
    claimed_runs.add_counts(
        claimed, entries=[JournalEntry(EventKind.NOTE, f"code-{number}") for number in range(5_000)]
    )
    shown = staff.get(reverse("admin:agents_run_change", args=[claimed.run_id])).content.decode()
    assert "code-100" in shown and "code-4000" not in shown
    assert "and more" in shown


def test_agents_and_runs_are_neither_edited_nor_deleted_by_hand(staff: Client, ada: Person) -> None:
    agent = create_agent(ada.id)
    run = create_run(agent)
    for name, key in (("agent", agent.pk), ("run", run.pk)):
        assert (
            staff.post(reverse(f"admin:agents_{name}_delete", args=[key]), {"post": "yes"}).status_code == 403
        )
        assert (
            staff.post(reverse(f"admin:agents_{name}_change", args=[key]), {"name": "x"}).status_code == 403
        )
    assert Agent.objects.filter(pk=agent.pk).exists() and Run.objects.filter(pk=run.pk).exists()


_MANY = """
INSERT INTO agents_run (id, user_id, agent_id, agent_ref, agent_name_sealed, agent_type, device_id, trigger, slots,
    state, phase, attempt, fence, files_seen, files_done, files_unchanged, files_failed, problems, items_created,
    model_calls, verdict, dry_run, retries, workers_lost, passed_over, created_at, enqueued_at)
SELECT gen_random_uuid(), %s, %s, %s, '', 'local_directory', 'desk', 'schedule', 1,
    CASE WHEN number %% 1000 = 0 THEN 'error' ELSE 'success' END,
    '', 1, 1, 1, 1, 0, 0, 0, 1, 1, '', false, 0, 0, '{}', now() - number * interval '1 minute', now()
FROM generate_series(1, 100000) AS series (number)
"""


def test_with_100_000_runs_a_list_costs_few_queries_and_reads_by_index(staff: Client, ada: Person) -> None:
    agent = create_agent(ada.id)
    with connection.cursor() as cursor:
        cursor.execute(_MANY, [ada.id, agent.pk, agent.pk])
        cursor.execute("ANALYZE agents_run")
    one = Run.objects.filter(user_id=ada.id).latest("created_at")
    for query in (
        {},
        {"p": "7"},
        {"state__exact": "error"},
        {"q": ada.email},
        {"q": str(agent.pk)},
        {"q": str(one.pk)},
        {"q": str(uuid.uuid4())},
    ):
        with CaptureQueriesContext(connection) as queries:
            assert len(listed(staff, RUNS, **query)) <= 50
        statements = [each["sql"] for each in queries if 'FROM "agents_run"' in each["sql"]]
        assert len(queries) <= 7, query
        for statement in statements:
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN {statement}")
                plan = "\n".join(row[0] for row in cursor.fetchall())
            if "COUNT" in statement:
                assert "Limit" in plan, (query, statement, plan)  # no further than pages are turned
            else:
                assert "Index" in plan and "Seq Scan on agents_run" not in plan, (query, plan)


def test_a_filter_without_an_index_looks_among_the_newest_runs_and_says_so(
    staff: Client, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NewestChangeList, "NEWEST", 3)
    agent = create_agent(ada.id)
    made = [
        create_run(
            agent,
            state=Run.State.SUCCESS,
            trigger=Run.Trigger.SCHEDULE,
            created_at=timezone.now() + timedelta(days=1, hours=-number),
        )
        for number in range(6)
    ]
    scheduled = {"trigger__exact": Run.Trigger.SCHEDULE}
    assert listed(staff, RUNS, **scheduled) == {run.pk for run in made[:4]}
    page = staff.get(reverse(RUNS), scheduled).content.decode()
    assert "Among the newest 3. Search, or choose a period, to look further." in page
    everything = {run.pk for run in made}
    for more in ({"q": ada.email}, {"created_at__within": "month"}):
        assert listed(staff, RUNS, **scheduled, **more) >= everything
    assert listed(staff, RUNS, state__exact=Run.State.SUCCESS) >= everything
