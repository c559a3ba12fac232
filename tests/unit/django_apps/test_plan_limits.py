"""Agents that a plan lets run: pure arithmetic, so tried with many mixtures."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.models import Agent, AgentType
from agents.plan_limits import within
from tests.sampling import fewer

AGENTS = st.lists(st.builds(Agent, type=st.sampled_from(AgentType.values)), max_size=12)
LIMIT = st.none() | st.integers(0, 6)


@settings(max_examples=fewer(60))
@given(AGENTS, LIMIT, LIMIT)
def test_no_limit_is_passed_and_no_room_is_left_unused(
    agents: list[Agent], most: int | None, providers: int | None
) -> None:
    allowed = within(agents, agents_limit=most, providers_limit=providers)
    running = [agent for agent in agents if agent.pk in allowed]
    read = {agent.type for agent in running if not agent.is_local}
    assert most is None or len(running) <= most
    assert providers is None or len(read) <= providers
    for agent in agents:
        if agent.pk in allowed:
            continue
        is_full = most is not None and len(running) == most
        needs_provider = not agent.is_local and agent.type not in read
        assert is_full or (needs_provider and providers is not None and len(read) == providers)


@given(AGENTS)
def test_those_named_first_run_first(agents: list[Agent]) -> None:
    allowed = within(agents, agents_limit=3, providers_limit=None)
    assert allowed == {agent.pk for agent in agents[:3]}
