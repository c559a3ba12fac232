"""Every endpoint of the published schema, asked whatever schemathesis thinks of, in and out of its bounds: no 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.factories import Person, somebody
from tests.sampling import few
from tests.server_processes import ROOT

# What uploads send are bytes by another name.
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
schemathesis.serializer.alias("application/zip", "application/octet-stream")
schema = schemathesis.openapi.from_path(str(ROOT / "docs" / "openapi.yaml"))
OPERATIONS = {found.ok().label: found.ok() for found in schema.get_all_operations()}

no_clocks = settings(
    max_examples=10,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def asked(operation: Any, of_mine: list[str]) -> st.SearchStrategy[Any]:
    """What the schema allows and what it does not; about something of mine, or about anything."""
    modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    return st.tuples(st.one_of(modes), st.sampled_from([*of_mine, None]))


def status(case: Any, mine: str | None, base: str, token: str | None) -> tuple[int, str]:
    if mine is not None:
        given = case.path_parameters or {}
        case.path_parameters = {name: value if name == "tier" else mine for name, value in given.items()}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = case.call(base_url=base, headers=headers, timeout=60)
    return answer.status_code, answer.text[:500]


@pytest.fixture(scope="module")
def of_mine(web: str) -> tuple[Person, list[str]]:
    """A person with an agent, a run and a conversation, and their ids."""
    person = somebody()
    agent = {
        "name": "Desk",
        "device_id": "desk",
        "directory_paths": ["/home/ada"],
        "data_types": ["tasks"],
        "prompt_template": "",
        "file_extensions": [],
        "schedule_cron": "",
    }
    with person.rest(web) as rest:
        made = rest.post("/agents/local", json=agent).json()["id"]
        run = rest.post(f"/agents/{made}/run").json()["run_id"]
    return person, [made, run]


@pytest.mark.parametrize("label", few(OPERATIONS, 10))
def test_no_endpoint_fails_whatever_it_is_asked(
    web: str, of_mine: tuple[Person, list[str]], label: str
) -> None:
    person, ids = of_mine
    token = person.access_token
    if label.partition(" ")[2].startswith(("/auth/", "/api/v1/auth/")):
        token = somebody().access_token  # it may be gone after the first example

    @no_clocks
    @given(asked(OPERATIONS[label], ids), st.booleans())
    def ask(what: tuple[Any, str | None], signed_in: bool) -> None:
        code, text = status(*what, web, token if signed_in else None)
        assert code != 500, text

    ask()
