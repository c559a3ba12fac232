from __future__ import annotations

import pytest

from tests.fakes.provider import Provider
from tests.server_processes import Stack


@pytest.fixture
def chat_web(stack: Stack, provider: Provider) -> str:
    """A web process whose model is the scripted provider."""
    return stack.web()
