"""What is found out once for many requests: statements of querysets, and the form of rows."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.db.models import Model
from django.db.models.sql.compiler import SQLCompiler
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework import renderers, serializers
from rest_framework.test import APIClient

from adiuva.accounts.models import Session, User
from adiuva.core import representation
from adiuva.core.paging import PreparedList
from adiuva.core.prepared import PreparedQuery
from adiuva.core.renderers import JSONRenderer
from agents.models import Agent, Run
from agents.run_serializers import RunSerializer
from agents.serializers import CloudAgentSerializer, LocalAgentSerializer
from billing.serializers import MeSerializer
from chat.models import Conversation
from chat.serializers import ConversationSerializer
from memory.models import Entry
from tests.agents.factories import create_agent, create_run
from tests.factories import Person, somebody

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> Person:
    return somebody()


@pytest.fixture
def run(ada: Person) -> Run:
    agent = create_agent(ada.id, schedule_cron="0 8 * * *", file_extensions=["md"])
    return create_run(
        agent, passed_over={".zip": 2}, started_at=timezone.now(), files_seen=3, phase="extracting"
    )


def state(instance: Model) -> dict[str, Any]:
    return {name: value for name, value in vars(instance).items() if name != "_state"}


# ── Statements ──────────────────────────────────────────────────────────────────────────────────────────


def test_reads_the_rows_of_its_queryset(ada: Person, run: Run) -> None:
    """With columns of JSON, arrays, times and sealed bytes, deferred columns, and rows of another table."""
    prepared = PreparedQuery(lambda user_id: Run.objects.of(user_id).select_related("agent"))
    (found,), (expected,) = prepared(ada.id), Run.objects.of(ada.id).select_related("agent")
    assert state(found) == state(expected)
    assert state(found.agent) == state(expected.agent)
    assert found.get_deferred_fields() == {"preview"}
    assert found == expected and not found._state.adding and found._state.db == "default"
    assert found.preview is None  # read when it is asked for


def test_gives_each_call_its_own_rows(ada: Person, run: Run) -> None:
    prepared = PreparedQuery(lambda user_id, state: Run.objects.of(user_id).filter(state=state))
    assert [found.pk for found in prepared(ada.id, "queued")] == [run.pk]
    assert prepared(ada.id, "running") == []
    assert prepared(somebody().id, "queued") == []


def test_compiles_its_queryset_once(ada: Person) -> None:
    built = []

    def mine(user_id: Any) -> Any:
        built.append(user_id)
        return Agent.objects.of(user_id)

    prepared = PreparedQuery(mine)
    with CaptureQueriesContext(connection) as asked:
        for _ in range(3):
            prepared(ada.id)
    assert len(built) == 1 and len(asked) == 3


def test_leaves_out_a_row_that_there_is_not(ada: Person, run: Run) -> None:
    agent = PreparedQuery(lambda pk: Agent.objects.filter(pk=pk).select_related("connection"))
    assert [found.connection for found in agent(run.agent_id)] == [None]


def test_the_first_page_of_a_list_is_that_of_its_queryset(ada: Person, run: Run) -> None:
    for _ in range(3):
        create_agent(ada.id)
    prepared = PreparedList(lambda user_id: Agent.objects.of(user_id).select_related("user"))
    rows = prepared.of(ada.id)
    for start, end in ((0, 2), (0, 9), (2, 9), (9, 12)):
        assert rows.cut(start, end) == list(
            Agent.objects.of(ada.id).order_by("-created_at", "-id")[start:end]
        )
    assert list(rows.after(rows.cursor(rows.first(1)[0]))) == rows.cut(1, 9)


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_was_read_is_saved_as_usual(run: Run) -> None:
    found = Run.objects.get(pk=run.pk)
    found.set(files_done=2)
    found.refresh_from_db()
    assert (found.files_done, Run.objects.only("id").get(pk=run.pk).files_done) == (2, 2)


# ── Forms ───────────────────────────────────────────────────────────────────────────────────────────────


def rendered(value: Any) -> bytes:
    return renderers.JSONRenderer().render(value)


class ByDrf:
    """Has a serializer give its rows their form in DRF's way."""

    @staticmethod
    def form(serializer: Any) -> Any:
        return serializers.Serializer.to_representation(serializer, serializer.instance)


def test_gives_rows_the_form_that_drf_gives_them(ada: Person, run: Run) -> None:
    user, agent, read = (
        User.objects.get(pk=ada.id),
        Agent.objects.get(pk=run.agent_id),
        Run.objects.get(pk=run.pk),
    )
    talk = Conversation.objects.create(user_id=ada.id)
    contexts: dict[type[Any], tuple[Model, dict[str, Any]]] = {
        MeSerializer: (user, {}),
        LocalAgentSerializer: (agent, {}),
        CloudAgentSerializer: (agent, {}),
        RunSerializer: (read, {"problems": {}, "left": {read.pk: {"waiting": 1, "expired": 0}}}),
        ConversationSerializer: (Conversation.objects.get(pk=talk.pk), {"titles": {talk.pk: "Tea"}}),
    }
    for kind, (row, context) in contexts.items():
        serializer = kind(row, context=context)
        assert representation._plan_of(kind) is not None, kind
        assert JSONRenderer().render(serializer.data, "application/json") == rendered(
            ByDrf.form(serializer)
        ), kind


def test_goes_drfs_way_where_a_field_depends_on_more() -> None:
    class Followed(representation.ModelSerializer[Session]):
        email = serializers.CharField(source="user.email")

        class Meta:
            model = Session
            fields = ["id", "email"]

    class Called(representation.ModelSerializer[Agent]):
        kind = serializers.CharField(source="get_type_display")

        class Meta:
            model = Agent
            fields = ["kind"]

    class Dated(representation.ModelSerializer[Agent]):
        created_at = serializers.DateTimeField(format="%Y")

        class Meta:
            model = Agent
            fields = ["created_at"]

    assert representation._plan_of(Followed) is None and representation._plan_of(Called) is None
    assert Followed(Session(user=User(email="a@b.c"))).data["email"] == "a@b.c"
    assert Called(Agent()).data == {"kind": "Local folders"}
    assert Dated(Agent(created_at=dt.datetime(2026, 3, 1, tzinfo=dt.UTC))).data == {"created_at": "2026"}


def test_a_serializer_of_one_field_has_a_form() -> None:
    class Named(representation.ModelSerializer[Agent]):
        class Meta:
            model = Agent
            fields = ["id"]

    assert Named(Agent(id=UUID(int=7))).data == {"id": UUID(int=7)}


def test_hot_lists_compile_nothing(ada: Person, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read once before; from then on Django builds no statement for it."""
    rest = APIClient(headers={"authorization": f"Bearer {ada.access_token}"})
    paths = ("auth/me", "agents/local", "agents/runs", "chat/conversations", "memory/core")
    for path in paths:
        assert rest.get(f"/api/v1/{path}").status_code == 200

    compile_it = SQLCompiler.as_sql

    def as_sql(compiler: SQLCompiler, *more: Any, **others: Any) -> Any:
        assert compiler.query.model not in {Agent, Conversation, Entry, Run, Session, User}
        return compile_it(compiler, *more, **others)

    monkeypatch.setattr(SQLCompiler, "as_sql", as_sql)
    for path in paths:
        assert rest.get(f"/api/v1/{path}").status_code == 200, path
