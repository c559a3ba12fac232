"""Staff see how large a memory is and who read of it, and read nothing of what it says."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from adiuva.export.models import Export
from memory import entries
from memory.entries import BY_HAND
from memory.models import Entry, Memory, Receipt, Tier
from tests.factories import Person, somebody

LISTS = {
    "memory_memory": "admin:memory_memory_changelist",
    "memory_entry": "admin:memory_entry_changelist",
    "memory_receipt": "admin:memory_receipt_changelist",
    "export_export": "admin:export_export_changelist",
}


@pytest.fixture
def staff(db: None) -> Client:
    from adiuva.accounts.models import User

    browser = Client()
    browser.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    return browser


@pytest.fixture
def ada(db: None) -> Person:
    return somebody()


def remembered(person: Person) -> Entry:
    """A core entry with history, and what comes with it."""
    for content in ("canary tea", "canary water"):
        entry = entries.remember(
            user_id=person.id, tier=Tier.CORE, key="canary drink", content=content, source=BY_HAND
        ).entry
    Receipt.objects.create(
        user_id=person.id,
        purpose="turn",
        provider="openai",
        model="openai/x",
        entries=[entry.pk],
        withheld=[],
    )
    Export.objects.create(user_id=person.id)
    return entry


def listed(browser: Client, page: str, **query: str) -> set[Any]:
    answer = browser.get(reverse(page), query)
    assert answer.status_code == 200
    return {row.pk for row in answer.context["cl"].result_list}


def test_a_memory_shows_its_switch_counts_and_sizes(staff: Client, ada: Person) -> None:
    remembered(ada), remembered(somebody())
    assert listed(staff, LISTS["memory_memory"], q=ada.email) == {ada.id}
    assert listed(staff, LISTS["memory_memory"], q=str(ada.id)) == {ada.id}
    assert (
        'field-entries">2<' in staff.get(reverse(LISTS["memory_memory"]), {"q": ada.email}).content.decode()
    )
    shown = staff.get(reverse("admin:memory_memory_change", args=[ada.id])).content.decode()
    assert re.search(r"<td>core</td><td>1</td><td>1</td><td>\d+\xa0bytes</td>", shown)
    assert "1 of lexical" in shown


def test_entries_receipts_and_exports_are_found_by_id_and_address(staff: Client, ada: Person) -> None:
    entry, foreign = remembered(ada), remembered(somebody())
    mine = set(Entry.objects.of(ada.id).values_list("pk", flat=True))
    page = LISTS["memory_entry"]
    assert listed(staff, page, q=ada.email) == listed(staff, page, q=str(ada.id)) == mine
    assert listed(staff, page, q=str(entry.pk), tier__exact="core") == {entry.pk}
    assert listed(staff, page, q=str(entry.pk), tier__exact="episodic") == set()
    assert listed(staff, page, q=str(foreign.pk)) == {foreign.pk}
    for page in (LISTS["memory_receipt"], LISTS["export_export"]):
        assert len(listed(staff, page, q=ada.email)) == 1


def test_nothing_that_is_remembered_is_on_any_page_and_nothing_is_edited(staff: Client, ada: Person) -> None:
    entry = remembered(ada)
    sealed, row = bytes(entry.sealed), Entry.objects.get(pk=entry.pk)
    pages = [
        *(reverse(page) for page in LISTS.values()),
        reverse("admin:memory_memory_change", args=[ada.id]),
        *(reverse("admin:memory_entry_change", args=[one.pk]) for one in Entry.objects.of(ada.id)),
        reverse("admin:memory_entry_history", args=[entry.pk]),
        reverse("admin:memory_receipt_change", args=[Receipt.objects.get(user_id=ada.id).pk]),
        reverse("admin:export_export_change", args=[Export.objects.get(user_id=ada.id).pk]),
    ]
    for page in pages:
        answer = staff.get(page)
        assert answer.status_code == 200, page
        shown = answer.content.decode()
        hidden = ["canary", sealed.hex(), repr(sealed)[2:20], bytes(row.fingerprint).hex(), str(row.terms[0])]
        assert [word for word in hidden if word in shown] == [], page
    for name, key in (("memory_memory", ada.id), ("memory_entry", entry.pk)):
        for action in ("add", "change", "delete"):
            page = reverse(f"admin:{name}_{action}", args=[] if action == "add" else [key])
            assert staff.post(page, {"post": "yes", "enabled": ""}).status_code == 403
        form = {"action": "delete_selected", "_selected_action": [str(key)], "post": "yes"}
        staff.post(reverse(LISTS[name]), form)
    assert Memory.objects.get(pk=ada.id).enabled and Entry.objects.filter(pk=entry.pk).exists()
    assert not re.search(
        "/admin/(memory/(embedding|exchange|source)|export/exportchunk)/",
        staff.get("/admin/").content.decode(),
    )


_MANY = [
    """INSERT INTO accounts_user (id, password, is_superuser, email, new_email, tier, timezone, locale, is_staff,
    is_active, created_at)
    SELECT gen_random_uuid(), '', false, 'u' || number || '@example.org', '', 'free', 'UTC', 'en', false, true, now()
    FROM generate_series(1, 3000) AS series (number)""",
    """INSERT INTO memory_memory (user_id, enabled, policy, fence, created_at)
    SELECT id, true, '{}', 0, now() - random() * interval '9 days' FROM accounts_user
    WHERE email LIKE 'u%%@example.org'""",
    """INSERT INTO memory_entry (id, user_id, tier, sealed, fingerprint, terms, derived, proposed, uses, valid_from)
    SELECT gen_random_uuid(), user_id, 'associative', '\\x00', decode(md5(user_id::text || n), 'hex'), '{}', false,
    false, 0,
    now() FROM memory_memory CROSS JOIN generate_series(1, 4) AS n""",
    """INSERT INTO memory_receipt (id, user_id, purpose, provider, model, entries, withheld, at)
    SELECT gen_random_uuid(), user_id, 'turn', 'p', 'm', '{}', '{}', now() - random() * interval '9 days'
    FROM memory_memory CROSS JOIN generate_series(1, 3)""",
    """INSERT INTO export_export (id, user_id, state, code, attempt, size, chunks, fence, created_at)
    SELECT gen_random_uuid(), user_id, 'expired', '', 1, 1, 1, 0, now() - random() * interval '9 days'
    FROM memory_memory""",
    "ANALYZE accounts_user, memory_memory, memory_entry, memory_receipt, export_export",
]


def test_with_many_of_each_a_list_costs_few_queries_and_reads_by_index(staff: Client, ada: Person) -> None:
    entry = remembered(ada)
    with connection.cursor() as cursor:
        for statement in _MANY:
            cursor.execute(statement)
    looks = [{}, {"p": "7"}, {"q": ada.email}, {"q": str(entry.pk)}, {"q": str(uuid.uuid4())}]
    for table, page in LISTS.items():
        more = [{"tier__exact": "associative"}] if table == "memory_entry" else []
        for query in [*looks, *more]:
            with CaptureQueriesContext(connection) as queries:
                assert len(listed(staff, page, **query)) <= 50
            # The session, the user, how many, the page, and what is counted for it.
            assert len(queries) <= 6 + (table == "memory_memory"), (
                page,
                query,
                [each["sql"] for each in queries],
            )
            for statement in [each["sql"] for each in queries if f'FROM "{table}"' in each["sql"]]:
                with connection.cursor() as cursor:
                    cursor.execute(f"EXPLAIN {statement}")
                    plan = "\n".join(row[0] for row in cursor.fetchall())
                if "COUNT" in statement:
                    assert "Limit" in plan, (query, statement, plan)
                else:
                    assert "Index" in plan and f"Seq Scan on {table}" not in plan, (query, plan)
