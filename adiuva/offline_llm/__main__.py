"""`python -m adiuva.offline_llm --port N`: serves the offline model on loopback until SIGTERM or SIGINT."""

from __future__ import annotations

from adiuva.core.openai_server import run
from adiuva.offline_llm.server import create_application

if __name__ == "__main__":
    run(create_application(), module="adiuva.offline_llm", description=__doc__)
