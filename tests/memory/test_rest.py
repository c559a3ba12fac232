"""The memory over REST: its owner sees, corrects and forgets all of it, and nobody else does."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from adiuva import llm
from adiuva.accounts.models import User
from adiuva.core import lexical_embedding
from memory import entries
from memory.entries import SourceRef
from memory.models import Embedding, Entry, Exchange, Receipt, SourceKind, Tier
from tests.factories import Person, somebody
from tests.fakes.provider import Provider

if TYPE_CHECKING:
    from rest_framework.test import APIClient

API = "/api/v1/memory"
NOBODY = "0b8f1d7e-0f5c-4a57-9f7b-3f6d3b0f6c11"
GOOD: dict[str, dict[str, Any]] = {
    "core": {"key": "Drink", "content": "tea"},
    "associative": {"content": "Anna moves to Turin in March."},
    "episodic": {
        "content": "The contract was drafted.",
        "began_at": "2026-11-02T09:00:00Z",
        "ended_at": "2026-11-02T10:30:00Z",
    },
    "proactive": {"content": "Invoices go out on Fridays.", "confidence": 0.7},
}
ROW = {
    *("id", "tier", "state", "content", "valid_from", "valid_to"),
    *("uses", "used_at", "created_at", "updated_at"),
}


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


def made(rest: APIClient, tier: str, **values: Any) -> dict[str, Any]:
    answer = rest.post(f"{API}/{tier}", GOOD[tier] | values)
    assert answer.status_code in (200, 201), answer.json()
    body: dict[str, Any] = answer.json()
    return body


# ── Entries ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tier", Tier.values)
def test_an_entry_is_added_shown_corrected_and_forgotten_by_hand(rest: APIClient, tier: str) -> None:
    row = made(rest, tier)
    assert row.keys() - {"key", "confidence", "began_at", "ended_at"} == ROW
    assert {name: row[name] for name in GOOD[tier]} == GOOD[tier]
    place = f"{API}/{tier}/{row['id']}"
    detail = rest.get(place).json()
    assert [(source["kind"], source["id"]) for source in detail["sources"]] == [("user", None)]
    assert detail["history"] == [] and {name: detail[name] for name in row} == row
    corrected = rest.patch(place, {"content": "Something else"}).json()
    assert (corrected["id"], corrected["content"]) == (row["id"], "Something else")
    (before,) = rest.get(place).json()["history"]
    assert (before["content"], before["replaced_by"]) == (row["content"], row["id"])
    assert before["valid_to"] == corrected["valid_from"]
    assert rest.get(f"{place}/history").json() == [before]
    assert rest.delete(place).json() == {"ok": True}
    assert rest.get(place).status_code == rest.delete(place).status_code == 404
    assert rest.get(f"{API}/{tier}?current=all").json() == []


def test_a_list_shows_current_entries_history_or_both(rest: APIClient) -> None:
    made(rest, "core")
    changed = rest.post(f"{API}/core", GOOD["core"] | {"key": " drink ", "content": "water"})
    again = rest.post(f"{API}/core", {"key": "DRINK", "content": "Water"})
    assert (changed.status_code, again.status_code) == (200, 200)
    shown = {
        current: [(row["content"], "replaced_by" in row) for row in rest.get(f"{API}/core?{current}").json()]
        for current in ("", "current=true", "current=false", "current=all")
    }
    now, before = ("water", False), ("tea", True)
    assert shown == {
        "": [now],
        "current=true": [now],
        "current=false": [before],
        "current=all": [now, before],
    }
    assert rest.get(f"{API}/core?current=perhaps").json()["fields"].keys() == {"current"}


def test_lists_come_in_pages_for_two_queries_whatever_their_length(rest: APIClient, ada: Person) -> None:
    for number in range(7):
        made(rest, "associative", content=f"Thing {number}")
    with CaptureQueriesContext(connection) as queries:
        first = rest.get(f"{API}/associative", {"limit": 5})
    asked = [each["sql"] for each in queries if "memory_" in each["sql"]]
    assert len(asked) == 2, asked  # how many, and the page
    assert "terms" not in asked[1]
    second = rest.get(f"{API}/associative", {"limit": 5, "page": 2}).json()
    assert first["X-Total-Count"] == "7"
    assert [row["content"] for row in [*first.json(), *second]] == [f"Thing {n}" for n in reversed(range(7))]
    with CaptureQueriesContext(connection) as queries:
        rest.get(f"{API}/associative/{second[0]['id']}")
    assert (
        len([each for each in queries if "memory_" in each["sql"]]) == 3
    )  # the entry, its sources, its history


def test_an_entry_shows_its_sources(rest: APIClient, ada: Person) -> None:
    places = [uuid.uuid4() for _ in range(3)]
    for seq, place in enumerate(places, 1):
        entry = entries.remember(
            user_id=ada.id,
            tier=Tier.ASSOCIATIVE,
            content="Anna likes tea",
            source=SourceRef(SourceKind.CONVERSATION, place, seq),
        ).entry
    page = rest.get(f"{API}/associative/{entry.pk}/sources", {"limit": 2})
    assert page["X-Total-Count"] == "3"
    assert {
        (source["kind"], source["id"], source["seq"])
        for source in rest.get(f"{API}/associative/{entry.pk}").json()["sources"]
    } == {("conversation", str(place), seq) for seq, place in enumerate(places, 1)}


def test_a_correction_to_existing_content_names_the_other_entry(rest: APIClient) -> None:
    milan = made(rest, "associative", content="Anna lives in Milan")
    turin = made(rest, "associative", content="Anna lives in Turin")
    answer = rest.patch(f"{API}/associative/{turin['id']}", {"content": "anna lives in  milan"})
    assert (answer.status_code, answer.json()["code"]) == (409, "memory_known_already")
    assert answer.json()["entry_id"] == milan["id"]
    drink, food = made(rest, "core"), made(rest, "core", key="Food", content="rice")
    answer = rest.patch(f"{API}/core/{food['id']}", {"key": "drink"})
    assert (answer.status_code, answer.json()["entry_id"]) == (409, drink["id"])
    rest.patch(f"{API}/core/{food['id']}", {"content": "pasta"})
    (past,) = rest.get(f"{API}/core?current=false").json()
    answer = rest.patch(f"{API}/core/{past['id']}", {"content": "bread"})
    assert (answer.status_code, answer.json()["code"]) == (409, "memory_is_history")
    assert rest.put(f"{API}/core/{food['id']}", GOOD["core"]).status_code == 405


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("core", {"key": None}, "key"), ("core", {"key": ""}, "key"), ("core", {"key": "k" * 101}, "key"),
    ("core", {"key": "a\u0007b"}, "key"), ("core", {"key": ["a"]}, "key"), ("core", {"content": ""}, "content"),
    ("core", {"content": "x" * 4001}, "content"), ("core", {"content": None}, "content"),
    ("core", {"confidence": 0.5}, "confidence"), ("core", {"began_at": "2026-01-01T00:00:00Z"}, "began_at"),
    ("associative", {"key": "k"}, "key"), ("associative", {"content": {}}, "content"),
    ("proactive", {"confidence": 1.1}, "confidence"), ("proactive", {"confidence": -1}, "confidence"),
    ("proactive", {"confidence": "nan"}, "confidence"), ("proactive", {"confidence": None}, "confidence"),
    ("episodic", {"began_at": "9999-12-31T23:59:59Z"}, "began_at"),
    ("episodic", {"ended_at": "0001-01-01T00:00:00Z"}, "ended_at"),
    ("episodic", {"began_at": "soon"}, "began_at"), ("episodic", {"ended_at": "2026-11-01T00:00:00Z"}, "ended_at"),
]  # fmt: skip


@pytest.mark.parametrize("tier", Tier.values)
def test_an_invalid_value_is_refused_with_the_name_of_its_field(
    rest: APIClient, ada: Person, tier: str
) -> None:
    row = made(rest, tier)
    for wrong, field in [(wrong, field) for where, wrong, field in BAD if where == tier]:
        for answer in (
            rest.post(f"{API}/{tier}", GOOD[tier] | {"content": "new"} | wrong),
            rest.patch(f"{API}/{tier}/{row['id']}", wrong),
        ):
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), wrong
            assert list(answer.json()["fields"]) == [field]
    assert Entry.objects.of(ada.id).count() == 1


def test_the_times_of_an_episode_cannot_be_corrected(rest: APIClient) -> None:
    row = made(rest, "episodic")
    answer = rest.patch(f"{API}/episodic/{row['id']}", {"began_at": "2026-01-01T00:00:00Z"})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["began_at"])
    sure = made(rest, "proactive", confidence=0.5)
    assert rest.patch(f"{API}/proactive/{sure['id']}", {"confidence": 1}).json()["confidence"] == 1
    assert "confidence" not in made(rest, "associative")


def test_entries_of_another_user_are_not_found(rest: APIClient) -> None:
    theirs = made(client_of(somebody()), "core")
    for method, more, body in [
        ("get", "", None), ("patch", "", {"content": "x"}), ("patch", "", {"content": 5}), ("delete", "", None),
        ("get", "/sources", None), ("get", "/history", None),
    ]:  # fmt: skip
        answers = [
            getattr(rest, method)(f"{API}/{place}{more}", body)
            for place in (f"core/{theirs['id']}", f"core/{NOBODY}", "core/no-id", f"episodic/{theirs['id']}")
        ]
        assert [answer.status_code for answer in answers] == [404] * 4, (method, more)
        assert answers[0].json() == answers[1].json()
    assert rest.get(f"{API}/dreams").status_code == 404
    assert rest.get(f"{API}/core").json() == []


def test_anonymous_requests_are_refused(db: None) -> None:
    from rest_framework.test import APIClient

    for place in ("core", f"core/{NOBODY}", "policy", "receipts"):
        answer = APIClient().get(f"{API}/{place}")
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


def test_staff_can_use_their_own_memory_in_the_browser(db: None) -> None:
    person = somebody(is_staff=True)
    browser = Browser()
    browser.force_login(User.objects.get(pk=person.id))
    place = f"{API}/core/{made(client_of(person), 'core')['id']}"
    for page in (
        f"{API}/core",
        place,
        f"{place}/sources",
        f"{place}/history",
        f"{API}/policy",
        f"{API}/receipts",
    ):
        shown = browser.get(page, headers={"Accept": "text/html"})
        assert (shown.status_code, shown["Content-Type"]) == (200, "text/html; charset=utf-8"), page
    for page in (f"{API}/search", f"{API}/forget", "/api/v1/storage/vectors/embed", "/api/v1/account/export"):
        shown = browser.get(page, headers={"Accept": "text/html"})
        assert (shown.status_code, "<form" in shown.content.decode()) in ((405, True), (200, True)), page
    sent = browser.post(f"{API}/core", {"key": "Food", "content": "rice"}, headers={"Accept": "text/html"})
    assert sent.status_code == 201


# ── Search, forgetting ──────────────────────────────────────────────────────────────────────────────────


def test_search_finds_what_fits_with_a_score(rest: APIClient) -> None:
    made(client_of(somebody()), "core", key="Harbour", content="of somebody else")
    wanted = made(rest, "core", key="Harbour", content="Trieste")
    made(rest, "associative", content="The harbour café opens at nine")
    found = rest.post(f"{API}/search", {"q": "which harbour?"}).json()
    assert len(found) == 2 and found[0]["score"] >= found[1]["score"]
    (core,) = rest.post(f"{API}/search", {"q": "which harbour?", "tier": "core", "limit": 5}).json()
    assert {name: core[name] for name in wanted} == wanted
    assert (
        rest.get(f"{API}/search", {"q": "harbour"}).status_code == 405
    )  # the question stays out of addresses


def test_an_invalid_search_is_refused_with_the_name_of_its_field(rest: APIClient) -> None:
    for asked, field in [
        ({}, "q"), ({"q": " "}, "q"), ({"q": "x" * 1001}, "q"), ({"q": "x", "tier": "dreams"}, "tier"),
        ({"q": "x", "limit": 0}, "limit"), ({"q": "x", "limit": 101}, "limit"),
    ]:  # fmt: skip
        answer = rest.post(f"{API}/search", asked)
        assert (answer.status_code, list(answer.json()["fields"])) == (400, [field])


def test_forgetting_a_source_deletes_entries_known_only_from_it(rest: APIClient, ada: Person) -> None:
    here = uuid.uuid4()

    def told(content: str, seq: int, place: uuid.UUID = here) -> Entry:
        origin = SourceRef(SourceKind.CONVERSATION, place, seq)
        return entries.remember(user_id=ada.id, tier=Tier.ASSOCIATIVE, content=content, source=origin).entry

    told("one", 1), told("two", 2), told("three", 3)
    both = told("both", 4)
    told("both", 9, uuid.uuid4())
    made(rest, "core")
    source = {"kind": "conversation", "id": str(here)}
    assert client_of(somebody()).post(f"{API}/forget", {"source": source}).json()["forgotten"] == 0
    assert rest.post(f"{API}/forget", {"source": source | {"seq": 2}}).json() == {"ok": True, "forgotten": 1}
    assert rest.post(f"{API}/forget", {"source": source}).json() == {"ok": True, "forgotten": 2}
    assert [row["id"] for row in rest.get(f"{API}/associative").json()] == [str(both.pk)]
    assert rest.post(f"{API}/forget", {"source": {"kind": "user"}}).json()["forgotten"] == 1
    assert set(Embedding.objects.filter(user_id=ada.id).values_list("entry_id", flat=True)) <= {both.pk}


ACCIDENTS: list[tuple[dict[str, Any], str]] = [
    ({}, "non_field_errors"), ({"everything": True}, "confirm"), ({"everything": True, "confirm": "yes"}, "confirm"),
    ({"confirm": "forget everything"}, "non_field_errors"),
    ({"everything": True, "confirm": "forget everything", "source": {"kind": "user"}}, "non_field_errors"),
    ({"source": {"kind": "run"}}, "source.id"), ({"source": {"kind": "user", "id": NOBODY}}, "source.id"),
    ({"source": {"kind": "dream", "id": NOBODY}}, "source.kind"),
    ({"source": {"kind": "run", "id": "x"}}, "source.id"),
    ({"source": {"kind": "run", "id": NOBODY, "seq": 0}}, "source.seq"), ({"source": NOBODY}, "source"),
]  # fmt: skip


def test_nothing_is_forgotten_by_accident(rest: APIClient) -> None:
    made(rest, "core")
    for asked, field in ACCIDENTS:
        answer = rest.post(f"{API}/forget", asked)
        assert (answer.status_code, list(answer.json()["fields"])) == (400, [field])
    assert len(rest.get(f"{API}/core").json()) == 1
    assert rest.delete(f"{API}/core").status_code == 405


def test_everything_is_forgotten_when_confirmed(rest: APIClient, ada: Person) -> None:
    other = client_of(somebody())
    made(other, "core")
    for tier in Tier.values:
        made(rest, tier)
    made(rest, "core", content="water")
    meant = {"everything": True, "confirm": "forget everything"}
    assert rest.post(f"{API}/forget", meant).json() == {"ok": True, "forgotten": 5}
    assert not Entry.objects.of(ada.id).exists() and not Embedding.objects.filter(user_id=ada.id).exists()
    assert len(other.get(f"{API}/core").json()) == 1


# ── Policy and receipts ─────────────────────────────────────────────────────────────────────────────────


def test_the_switch_and_the_policy_are_set_and_changed(rest: APIClient) -> None:
    free = dict.fromkeys(Tier.values)
    first = rest.get(f"{API}/policy").json()
    assert (first["enabled"], first["tiers"]) == (True, free)
    assert first["providers"] == {"chat": llm.chat_model().provider, "embedding": None}
    changed = rest.patch(f"{API}/policy", {"tiers": {"core": ["OpenAI", "openai"], "episodic": []}}).json()
    assert changed["tiers"] == free | {"core": ["openai"], "episodic": []}
    changed = rest.patch(f"{API}/policy", {"tiers": {"core": None}, "enabled": False}).json()
    assert (changed["enabled"], changed["tiers"]) == (False, free | {"episodic": []})
    whole = rest.put(
        f"{API}/policy", {"enabled": True, "tiers": {"proactive": ["models.example:8080"]}}
    ).json()
    assert (whole["enabled"], whole["tiers"]) == (True, free | {"proactive": ["models.example:8080"]})
    assert rest.get(f"{API}/policy").json() == whole
    for method, body, field in [
        (rest.put, {"enabled": True}, "tiers"), (rest.put, {"tiers": {}}, "enabled"),
        (rest.patch, {"enabled": None}, "enabled"), (rest.patch, {"tiers": {"core": "openai"}}, "tiers.core"),
        (rest.patch, {"tiers": {"core": ["a b"]}}, "tiers.core"), (rest.patch, {"tiers": []}, "tiers"),
    ]:  # fmt: skip
        answer = method(f"{API}/policy", body)
        assert (answer.status_code, list(answer.json()["fields"])) == (400, [field])
    assert rest.get(f"{API}/policy").json() == whole


def test_a_memory_that_is_off_keeps_its_entries_and_adds_none(rest: APIClient, ada: Person) -> None:
    row = made(rest, "core")
    Exchange.objects.create(user_id=ada.id, kind=SourceKind.REQUEST, source_id=uuid.uuid4(), sealed=b"")
    rest.patch(f"{API}/policy", {"enabled": False})
    refused = rest.post(f"{API}/core", {"key": "Food", "content": "rice"})
    assert (refused.status_code, refused.json()["code"]) == (409, "memory_off")
    assert [found["id"] for found in rest.get(f"{API}/core").json()] == [row["id"]]
    assert rest.patch(f"{API}/core/{row['id']}", {"content": "water"}).status_code == 200
    assert not Exchange.objects.filter(user_id=ada.id).exists()
    assert rest.delete(f"{API}/core/{row['id']}").status_code == 200


def test_receipts_name_the_entries_sent_and_their_reader(rest: APIClient, ada: Person) -> None:
    turn, place = uuid.uuid4(), uuid.uuid4()
    ids = [uuid.uuid4() for _ in range(2)]
    for purpose, who, turn_id in (
        ("turn", ada.id, turn),
        ("embed", ada.id, None),
        ("turn", somebody().id, turn),
    ):
        Receipt.objects.create(
            user_id=who, purpose=purpose, turn_id=turn_id, conversation_id=place if turn_id else None,
            provider="openai", model="openai/some", entries=ids, withheld=["core"],
        )  # fmt: skip
    shown = rest.get(f"{API}/receipts", {"turn_id": str(turn)})
    assert shown["X-Total-Count"] == "1"
    (receipt,) = shown.json()
    assert receipt.pop("id") and receipt.pop("at")
    assert receipt == {
        "purpose": "turn", "turn_id": str(turn), "conversation_id": str(place), "provider": "openai",
        "model": "openai/some", "entries": [str(one) for one in ids], "withheld": ["core"],
    }  # fmt: skip
    for query, count in (
        ({}, 2),
        ({"purpose": "embed"}, 1),
        ({"conversation_id": str(place)}, 1),
        ({"page": 2}, 0),
    ):
        assert len(rest.get(f"{API}/receipts", query).json()) == count
    for field in ("turn_id", "conversation_id", "purpose"):
        assert list(rest.get(f"{API}/receipts", {field: "x"}).json()["fields"]) == [field]


# ── Vectors ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_gets_a_vector_without_any_configuration(rest: APIClient) -> None:
    answers = [
        rest.post("/api/v1/storage/vectors/embed", {"text": text}).json()
        for text in ("The harbour café", "The harbour café", "harbour café of The")
    ]
    assert answers[0] == answers[1] and answers[0]["model"] == "lexical"
    assert answers[0]["provider"] is None and rest.get(f"{API}/receipts").json() == []
    vector, _, alike = (answer["vector"] for answer in answers)
    assert len(vector) == lexical_embedding.DIMENSIONS
    assert sum(a * b for a, b in zip(vector, alike, strict=True)) > 0.5
    # Hashed with the user's key: a dump confirms no guess.
    assert vector != lexical_embedding.embed("The harbour café")
    for text in ("", " ", None, 5, "x" * 20_001):
        refused = rest.post("/api/v1/storage/vectors/embed", {"text": text} if text != 5 else {})
        assert (refused.status_code, list(refused.json()["fields"])) == (400, ["text"])


def test_a_text_gets_the_vector_of_the_configured_model(
    committed_db: str, provider: Provider, settings: Any
) -> None:
    rest = client_of(
        somebody()
    )  # not in a transaction: the view gives its connection back while the model thinks
    settings.EMBEDDING_MODEL = {"model": "openai/vectors", "api_base": provider.url, "api_key": ""}
    answer = rest.post("/api/v1/storage/vectors/embed", {"text": "The harbour café"}).json()
    assert (answer["model"], len(answer["vector"]) > 0) == ("openai/vectors", True)
    (receipt,) = rest.get(f"{API}/receipts").json()
    assert (receipt["purpose"], receipt["provider"], receipt["entries"]) == ("text", answer["provider"], [])
    assert receipt["provider"] == urlsplit(provider.url).hostname
    rest.patch(f"{API}/policy", {"tiers": {"core": ["openai"]}})
    asked = len(provider.calls)
    withheld = rest.post("/api/v1/storage/vectors/embed", {"text": "The harbour café"})
    assert (withheld.status_code, withheld.json()["code"]) == (403, "provider_withheld")
    assert (withheld.json()["tiers"], len(provider.calls)) == (["core"], asked)
    rest.patch(f"{API}/policy", {"tiers": {"core": ["openai", receipt["provider"]]}})
    settings.EMBEDDING_MODEL = settings.EMBEDDING_MODEL | {
        "api_base": provider.url.replace("/v1", "/nowhere")
    }
    refused = rest.post("/api/v1/storage/vectors/embed", {"text": "The harbour café"})
    assert (refused.status_code, refused.json()["code"]) == (502, "model_rejected")


def test_the_openapi_document_describes_every_endpoint(rest: APIClient) -> None:
    schema = rest.get("/api/v1/schema/", HTTP_ACCEPT="application/vnd.oai.openapi+json").json()
    wanted = {
        f"{API}/{{tier}}": {"get", "post"},
        f"{API}/{{tier}}/{{id}}": {"get", "patch", "delete"},
        f"{API}/{{tier}}/{{id}}/sources": {"get"},
        f"{API}/{{tier}}/{{id}}/history": {"get"},
        f"{API}/search": {"post"},
        f"{API}/forget": {"post"},
        f"{API}/policy": {"get", "put", "patch"},
        f"{API}/receipts": {"get"},
        "/api/v1/storage/vectors/embed": {"post"},
        "/api/v1/account/export": {"get", "post"},
        "/api/v1/account/export/{export_id}": {"get", "delete"},
        "/api/v1/account/export/{export_id}/archive": {"get"},
    }
    methods = {"get", "post", "put", "patch", "delete"}
    assert {place: set(schema["paths"].get(place, ())) & methods for place in wanted} == wanted
