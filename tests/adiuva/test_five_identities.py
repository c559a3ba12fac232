"""Every route of the URL conf, every page of the admin and every frame, by five identities: nobody, the owner, another
user, a member of staff without rights, a superuser. A new route, model or frame is in it by itself."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.permissions import AllowAny

from adiuva.accounts.models import Session, User
from adiuva.core import db
from adiuva.devices.models import Device, OutboxRecord
from adiuva.devices.protocol import ClientFrame
from adiuva.export.models import Export
from adiuva.vault.models import Backup, Record, Upload
from agents.models import Agent, JourneySession, Run
from billing.sso.models import IdentityProvider
from chat.models import Conversation, Message, Turn
from integrations.models import Connection
from memory.models import Entry
from tests.factories import Person, somebody
from tests.memory.test_export import lived
from tests.sampling import few
from tests.socket_client import Socket

METHODS = ("options", "get", "head", "post", "put", "patch", "delete")
OWNED = (
    Agent,
    Run,
    Device,
    Conversation,
    Turn,
    Connection,
    Entry,
    Export,
    Session,
    OutboxRecord,
    JourneySession,
    Backup,
    Upload,
)
PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>|\(\?P<(\w+)>([^)]*)\)")


@dataclass(frozen=True)
class Route:
    path: str  # with `{}` for the id of an object
    methods: tuple[str, ...]
    is_open: bool


def _routes() -> Iterator[Route]:
    def walk(patterns: list[Any], above: str) -> Iterator[tuple[str, URLPattern]]:
        for pattern in patterns:
            path = above + str(pattern.pattern).removeprefix("^").removesuffix("$")
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            else:
                yield path, pattern

    for path, pattern in walk(get_resolver().url_patterns, ""):
        view = getattr(pattern.callback, "cls", None)
        if view is None or not path.startswith("api/v1/") or "format" in path:
            continue
        actions = getattr(pattern.callback, "actions", None)
        methods = tuple(
            name
            for name in METHODS
            if name in ("options", *(actions or ())) or (actions is None and hasattr(view, name))
        )
        given = pattern.callback.initkwargs.get("permission_classes", view.permission_classes)  # type: ignore[attr-defined]
        for word in _words(path):
            yield Route("/" + word.replace("\\", ""), methods, AllowAny in given)


def _words(path: str) -> list[str]:
    """The path with each word that a parameter allows, or with `{}` for an id."""
    found = PARAMETER.search(path)
    if found is None:
        return [path]
    choices = (found[3] or "").split("|") if "|" in (found[3] or "") else ["{}"]
    if found[1] == "provider":
        choices = ["gmail"]
    return [done for word in choices for done in _words(path.replace(found[0], word, 1))]


ROUTES = sorted(set(_routes()), key=lambda route: route.path)


def _ids(person: Person) -> list[str]:
    """One id of each kind of object that the person has."""
    found = [model.objects.filter(user_id=person.id).values_list("pk", flat=True).first() for model in OWNED]
    found.append(Record.objects.filter(user_id=person.id).values_list("id", flat=True).first())
    request_id = Turn.objects.filter(user_id=person.id).values_list("request_id", flat=True).first()
    return [str(each) for each in (*found, request_id) if each]


@cache
def _fitting(path: str) -> list[str]:
    """Ids of the owner's with which a path leads to an object, the first of all if none does."""
    if "{}" not in path:
        return [""]
    owner = _owner[0]
    ids = _ids(owner)
    return [each for each in ids if _ask(owner, "get", path.replace("{}", each)).status_code == 200] or ids[
        :1
    ]


_owner: list[Person] = []


@pytest.fixture(scope="module")
def word() -> str:
    return f"heron{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def owner(committed_db: str, word: str) -> Person:
    person = somebody()
    lived(person, word)
    Export.objects.create(user_id=person.id, state=Export.State.FAILED)
    JourneySession.objects.create(
        user_id=person.id, agent_type="gmail", state=b"x", expires_at="2100-01-01T00:00Z"
    )
    _owner[:] = [person]
    return person


@pytest.fixture
def strangers(committed_db: str) -> dict[str, Person | None]:
    return {
        "nobody": None,
        "another": somebody(),
        "staff": somebody(is_staff=True),
        "superuser": somebody(is_staff=True, is_superuser=True),
    }


def _ask(person: Person | None, method: str, path: str) -> Any:
    client = Client(raise_request_exception=False)
    headers = {"Authorization": f"Bearer {person.access_token}"} if person else {}
    return getattr(client, method)(path, headers=headers, content_type="application/json") if method not in (
        "get", "head"
    ) else getattr(client, method)(path, headers=headers)  # fmt: skip


def _state(person: Person) -> dict[str, Any]:
    """What of a person's must not change by others."""
    rows = {
        model.__name__: sorted(map(str, model.objects.filter(user_id=person.id).values_list("pk", flat=True)))
        for model in OWNED
        if model is not Session
    }
    rows["records"] = sorted(map(str, Record.objects.filter(user_id=person.id).values_list("id", "version")))
    rows["sessions"] = sorted(
        map(str, Session.objects.live().filter(user_id=person.id).values_list("pk", flat=True))
    )
    rows["runs"] = sorted(Run.objects.filter(user_id=person.id).values_list("state", "cancel_requested_at"))
    rows["messages"] = Message.objects.filter(conversation__user_id=person.id).count()
    rows["user"] = list(User.objects.filter(pk=person.id).values("email", "password", "tier", "is_active"))
    return rows


def test_the_routes_are_found() -> None:
    paths = {route.path for route in ROUTES}
    assert {"/api/v1/auth/me", "/api/v1/agents/local/{}", "/api/v1/memory/core/{}", "/api/v1/chat"} <= {
        path.rstrip("/") for path in paths
    }
    assert len(paths) > 50


@pytest.mark.parametrize("route", few(ROUTES, 12), ids=lambda route: route.path)
def test_a_route_gives_others_nothing_of_the_owners(
    route: Route, owner: Person, strangers: dict[str, Person | None], word: str
) -> None:
    before = _state(owner)
    for who, person in strangers.items():
        for method in route.methods:
            for one in _fitting(route.path)[:1]:
                answer = _ask(person, method, route.path.replace("{}", one))
                said = (who, method, route.path, answer.status_code)
                assert answer.status_code < 500 or answer.status_code == 503, said
                body = b"" if answer.streaming else answer.content
                assert word.encode() not in body and owner.email.encode() not in body, said
                if person is None and not route.is_open:
                    assert answer.status_code == 401, said
                elif "{}" in route.path and not route.is_open and method in ("get", "delete", "patch", "put"):
                    assert answer.status_code in (400, 403, 404, 405), said
    assert _state(owner) == before


@pytest.mark.parametrize("route", few(ROUTES, 12), ids=lambda route: route.path)
def test_no_route_fails_for_its_owner(route: Route, owner: Person) -> None:
    person = (
        owner if "{}" in route.path else somebody()
    )  # what has no id in it may end the account or its sessions
    methods = (
        route.methods if "{}" not in route.path else [name for name in route.methods if name != "delete"]
    )
    for method in methods:
        for one in [*_fitting(route.path)[:1], str(uuid.uuid4())] if "{}" in route.path else [""]:
            status = _ask(person, method, route.path.replace("{}", one)).status_code
            assert status < 500 or status == 503, (method, status)


# ── The admin ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", few(admin.site._registry, 6), ids=lambda model: model._meta.label)
def test_pages_of_the_admin_are_for_those_who_may(
    model: Any, owner: Person, strangers: dict[str, Person | None], word: str
) -> None:
    place = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
    owners = {"pk": owner.id} if model is User else {"user_id": owner.id} if hasattr(model, "user_id") else {}
    row = model._base_manager.filter(**owners).first()
    pages = [place, f"{place}add/"]
    pages += [f"{place}{row.pk}/{view}/" for view in ("change", "delete", "history")] if row else []
    for who, person in {**strangers, "owner": owner}.items():
        browser = Client(raise_request_exception=False)
        if person is not None:
            browser.force_login(User.objects.get(pk=person.id))
        for page in pages:
            answer = browser.get(page)
            if who == "superuser":
                assert answer.status_code in (200, 302, 403), (page, answer.status_code)
            else:  # the page to sign in, or a refusal
                assert answer.status_code == (403 if who == "staff" else 302), (who, page, answer.status_code)
            # How a team signs in is what staff are asked about.
            is_shown = who == "superuser" and model is IdentityProvider
            assert is_shown or word.encode() not in answer.content, page


# ── Frames ──────────────────────────────────────────────────────────────────────────────────────────────

FRAMES = list(get_args(get_args(ClientFrame)[0]))


def _example(schema: dict[str, Any], root: dict[str, Any], one: str) -> Any:
    """A value that a schema allows; texts are an id of the owner's."""
    if "$ref" in schema:
        return _example(root["$defs"][schema["$ref"].rpartition("/")[2]], root, one)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], root, one)
    match schema.get("type"):
        case "object":
            needed = schema.get("required", [])
            return {name: _example(schema["properties"][name], root, one) for name in needed}
        case "array":
            return [_example(schema.get("items", {"type": "string"}), root, one)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "string":
            return "0" * 64 if "64" in schema.get("pattern", "") else one
    return {}


@pytest.mark.parametrize("who", ["another", "staff", "superuser"])
async def test_frames_of_others_change_nothing_of_the_owners(
    web: str, owner: Person, strangers: dict[str, Person | None], word: str, who: str
) -> None:
    person = strangers[who]
    assert person is not None
    ids = await db.run(_ids, owner)
    before = await db.run(_state, owner)
    seen = ""
    for model in FRAMES:
        schema = model.model_json_schema()
        if model.__name__ in (
            "DeviceHello",
            "HomeRequest",
            "FloatingRequest",
        ):  # they begin something of one's own
            continue
        async with Socket(web, person.access_token) as socket:
            await socket.hello()
            for one in ids:
                frame = _example(schema, schema, one) | {"type": model.model_fields["type"].default}
                await socket.send(frame)
            await socket.send({"type": "are_you_there", "id": "end"})
            while (got := await socket.receive()) and got.get("ref") != "end":
                seen += str(got)
    assert word not in seen and owner.email not in seen
    assert await db.run(_state, owner) == before


async def test_nobody_gets_a_socket(web: str) -> None:
    async with Socket(web) as socket:
        assert await socket.code() == 4401
