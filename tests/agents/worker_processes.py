"""Worker processes of a test's own, each for one run."""

from __future__ import annotations

from adiuva.embedded.processes import Child, python
from tests.server_processes import Stack

WORKER_SCRIPT = """
import asyncio, sys, uuid, django
django.setup()
from agents import runner
asyncio.run(runner.execute(uuid.UUID(sys.argv[1])))
"""

# The script ends its own lease and sweeps: were the two apart, another test's sweep could give the run to another
# worker in between.
CRASHING_SCRIPT = """
import asyncio, datetime, os, sys, uuid, django
django.setup()
from django.utils import timezone
from agents import extraction, models, runner, runs
cut = extraction.cut_into_parts
extraction.cut_into_parts = lambda text, **how: os._exit(9) if "deadly" in text else cut(text, **how)
held = models.Run.objects.filter(pk=sys.argv[1], lease_until__isnull=False)
held.update(lease_until=timezone.now() - datetime.timedelta(seconds=1))
runs.sweep()
asyncio.run(runner.execute(uuid.UUID(sys.argv[1])))
"""


def start_worker(stack: Stack, run: str, script: str = WORKER_SCRIPT, **env: str) -> Child:
    """Start a worker for one run. Nobody listens to its broker, so no other worker takes the run."""
    broker = stack.env["REDIS_URL"].rsplit("/", 1)[0] + "/7"
    return stack.run("of one run", python("-c", script, run), REDIS_URL=broker, **env)
