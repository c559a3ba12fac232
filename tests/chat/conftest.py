from __future__ import annotations

import pytest

from tests.fakes.provider import Provider
from tests.stack import Stack


@pytest.fixture
def chat_web(stack: Stack, provider: Provider) -> str:
    """A web process whose model is the scripted provider."""
    return stack.web(
        ADIUVA_MODEL="openai/scripted",
        ADIUVA_MODEL_API_BASE=provider.url,
        ADIUVA_EMBEDDING_MODEL="openai/scripted",
        ADIUVA_EMBEDDING_MODEL_API_BASE=provider.url,
    )
