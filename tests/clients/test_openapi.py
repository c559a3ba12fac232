"""The published OpenAPI document, as developers of clients use it: linted, generated from, its examples sent."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from django.core.cache import cache
from django.test import Client

from tests.agents.mailbox_scenario import connect_account
from tests.clients import node
from tests.factories import Person, confirmed
from tests.fakes.mailboxes import Box
from tests.fakes.provider import Provider
from tests.server_processes import ROOT

FILE = ROOT / "docs" / "openapi.yaml"
DOCUMENT = yaml.load(FILE.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
OPERATIONS = {
    operation["operationId"]: (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
# What brings bytes has no example: tests/vault and tests/billing/marketplace send it.
BYTES = {"application/octet-stream", "application/offset+octet-stream", "application/zip"}
WITH_BODY = sorted(
    name
    for name, (_, _, operation) in OPERATIONS.items()
    if set(operation.get("requestBody", {}).get("content", ())) - BYTES
)

# What an example names must come from another answer, or belongs to an account in another state.
REFUSED = {
    "agents_journey_message": {404},
    "agents_keep": {404},
    "plugin_agent_try_out": {404},
    "plugin_give": {404},
    "plugin_install": {403, 404},
    # Who has no developer's handle has no plugin, either.
    "plugins_create": {404},
    "plugins_partial_update": {404},
    "plugins_rate": {404},
    "plugins_report": {404},
    "plugins_submit": {404},
    "plugins_yank": {404},
    "team_seats": {404},
    "team_accept": {404},
    "team_sso_set": {503},
    "team_sso_require": {404},
    "team_sso_domain_add": {404},
    "auth_sso_begin": {404},
    "auth_sso_finish": {400},
    "auth_email_confirm_change_create": {400},
    "auth_email_verify_create": {400},
    "auth_login_passkey_create": {400, 401},
    "auth_login_second_factor_create": {401},
    "auth_passkeys_create": {400},
    "auth_password_reset_confirm_create": {400},
    "auth_recovery_codes_create": {409},  # no second factor yet
    "auth_refresh_create": {401},
    "auth_totp_confirm_create": {400},
    "agents_journey_start": {200, 502, 503, 504},
    "billing_checkout": {503},  # without Stripe
    "billing_webhook": {503},
    "memory_forget": {200},
    "oauth_complete": {400, 404, 503},
    "oauth_refresh": {404, 503},
    "storage_vectors_embed": {200, 502, 503, 504},
}


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = operation["requestBody"]["content"]
    assert list(content) == ["application/json"]
    found: dict[str, Any] = content["application/json"]
    return found


@pytest.mark.parametrize("name", WITH_BODY)
def test_each_request_body_is_json_with_an_example_that_its_schema_allows(name: str) -> None:
    body = body_of(OPERATIONS[name][2])
    whole = {**body["schema"], "components": DOCUMENT["components"]}
    jsonschema.validate(body["example"], whole, cls=jsonschema.Draft202012Validator)


def test_each_operation_says_what_it_is_for_and_who_may() -> None:
    for name, (_, _, operation) in OPERATIONS.items():
        assert 3 < len(operation["summary"]) < 140, name
        assert "security" in operation, name


def test_a_patch_has_no_defaults_and_requires_nothing() -> None:
    patched = {
        name: schema
        for name, schema in DOCUMENT["components"]["schemas"].items()
        if name.startswith("Patched")
    }
    assert patched
    for name, schema in patched.items():
        assert not schema.get("required"), name
        assert not [field for field, body in schema["properties"].items() if "default" in body], name


def test_all_times_have_one_form_except_those_that_say_seconds() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, body in schema.get("properties", {}).items():
            if field.endswith("_at") or field == "at":
                seconds = "Unix seconds" in body.get("description", "")
                assert seconds or body.get("format") == "date-time", f"{name}.{field}"


@pytest.fixture
def account(db: None) -> Iterator[Person]:
    cache.clear()
    person = confirmed()
    connect_account(person, Box("mara"))
    yield person


@pytest.mark.parametrize("name", [name for name in WITH_BODY if name != "chat"])
def test_the_example_of_a_body_works(account: Person, name: str) -> None:
    method, path, operation = OPERATIONS[name]
    path = path.replace("{record_id}", "{id}")
    client = Client(
        headers={"Authorization": f"Bearer {account.access_token}"}, raise_request_exception=False
    )
    places = {
        "tier": "core",
        "provider": "gmail",
        "id": "",
        "version": "1.0.0",
        "plugin_id": str(uuid.uuid4()),
    }
    if "{id}" in path:
        places["id"] = _something_at(client, path)
    example = json.loads(json.dumps(body_of(operation)["example"]).replace(*_own_password(account)))
    if name == "auth_login_create":
        example["email"] = account.email
    answer = getattr(client, method)(path.format(**places), example, content_type="application/json")
    assert answer.status_code in REFUSED.get(name, {200, 201, 202}), answer.content[:500]
    assert str(answer.status_code) in operation["responses"]


def _own_password(account: Person) -> tuple[str, str]:
    return "correct horse battery staple", account.password


def _something_at(client: Client, path: str) -> str:
    """The id of a thing to change at this path, made by the example that makes one."""
    folder = path.rpartition("/")[0]
    if "conversations" in path:
        return _conversation_of(client)
    makes = next(
        found
        for _, place, found in OPERATIONS.values()
        if place == folder and found["operationId"].endswith("create")
    )
    made = client.post(folder.format(tier="core"), body_of(makes)["example"], content_type="application/json")
    found: str = made.json()["id"]
    return found


def _conversation_of(client: Client) -> str:
    from chat.models import Conversation

    user = client.get("/api/v1/auth/me").json()["id"]
    return str(Conversation.objects.create(user_id=user).pk)


@node.needs_node
def test_redocly_finds_no_error() -> None:
    node.run("redocly", "lint", "--config", "redocly.yaml", str(FILE))


# ── Generated clients ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package that openapi-python-client makes of the document."""
    from openapi_python_client import generate
    from openapi_python_client.config import Config, ConfigFile, MetaType

    folder = tmp_path_factory.mktemp("python client")
    binary = dict.fromkeys(("application/zip", *BYTES), "application/octet-stream")
    options = ConfigFile(post_hooks=[], content_type_overrides=binary)
    config = Config.from_sources(
        options, MetaType.NONE, FILE, "utf-8", overwrite=True, output_path=folder / "generated_adiuva"
    )
    assert generate(config=config) == []  # neither an error nor a warning: nothing was left out
    sys.path.insert(0, str(folder))
    yield importlib.import_module("generated_adiuva")
    sys.path.remove(str(folder))


def test_all_modules_of_the_python_client_import(generated: ModuleType) -> None:
    names = [found.name for found in pkgutil.walk_packages(generated.__path__, "generated_adiuva.")]
    assert len(names) > len(OPERATIONS)
    for name in names:
        importlib.import_module(name)


def test_the_python_client_reads_the_server_s_answers(
    generated: ModuleType, web: str, person: Person, provider: Provider
) -> None:
    api = importlib.import_module
    models = api("generated_adiuva.models")
    example = body_of(OPERATIONS["agents_local_create"][2])["example"]
    with generated.AuthenticatedClient(base_url=web, token=person.access_token) as client:
        me = api("generated_adiuva.api.auth.auth_me_retrieve").sync(client=client)
        assert me.email == person.email
        made = api("generated_adiuva.api.agents.agents_local_create").sync(
            client=client, body=models.LocalAgentRequest.from_dict(example)
        )
        assert len(made.next_runs) == 5
        changed = api("generated_adiuva.api.agents.agents_local_partial_update").sync(
            made.id, client=client, body=models.PatchedLocalAgentRequest(name="Renamed")
        )
        assert (changed.name, changed.enabled, changed.file_extensions) == (
            "Renamed",
            True,
            example["file_extensions"],
        )
        assert [
            agent.id for agent in api("generated_adiuva.api.agents.agents_local_list").sync(client=client)
        ] == [made.id]
        refused = api("generated_adiuva.api.agents.agents_local_create").sync(
            client=client, body=models.LocalAgentRequest.from_dict({**example, "schedule_cron": "61 * * * *"})
        )
        assert isinstance(refused, models.Problem)
        assert "schedule_cron" in refused.fields.to_dict()
        said = api("generated_adiuva.api.chat.chat").sync(
            client=client, body=models.ChatRequest.from_dict(body_of(OPERATIONS["chat"][2])["example"])
        )
        assert isinstance(said, models.Answer | models.Failed)


@node.needs_node
def test_the_typescript_types_take_the_server_s_answers(web: str, person: Person, tmp_path: Path) -> None:
    example = body_of(OPERATIONS["agents_local_create"][2])["example"]
    with person.rest(web) as rest:
        agent = rest.post("/agents/local", json=example).json()
        answers = {
            "Me": rest.get("/auth/me").json(),
            "LocalAgent": agent,
            "Started": rest.post(f"/agents/{agent['id']}/run").json(),
            "Run": rest.get("/agents/runs").json()[0],
            "Session": rest.get("/auth/sessions").json()[0],
            "Problem": rest.get("/agents/local/none").json(),
            "Policy": rest.get("/memory/policy").json(),
            "PatchedLocalAgentRequest": {"name": "Only this"},
        }
    lines = ['import type { components } from "./rest.js";', 'type All = components["schemas"];']
    lines += [f'export const a{name}: All["{name}"] = {json.dumps(body)};' for name, body in answers.items()]
    (tmp_path / "answers.ts").write_text("\n".join(lines))
    node.run("openapi-typescript", str(FILE), "-o", str(tmp_path / "rest.ts"))
    options = {"strict": True, "noEmit": True, "module": "nodenext", "types": [], "lib": ["es2022"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    node.run("tsc", "-p", str(tmp_path))
