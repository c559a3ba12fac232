"""A run over private papers, and what all logs of the servers say of it: ids and counts, and none of the rest."""

from __future__ import annotations

import base64
from pathlib import Path
from uuid import uuid4

from adiuva.core import db
from tests.agents.device_owner import DeviceOwner, connected, tasks_from_lines
from tests.factories import somebody
from tests.fakes.provider import Provider
from tests.server_processes import Stack


async def test_logs_hold_ids_and_no_content(
    web: str, worker: None, stack: Stack, provider: Provider, tmp_path: Path
) -> None:
    canary = f"canary{uuid4().hex}"
    provider.script(tasks_from_lines, f"no JSON but {canary}")
    provider.default = f"no JSON but {canary}"
    folder = tmp_path / f"of-{canary}"
    folder.mkdir()
    desk = DeviceOwner(web, await db.run(somebody), folder)
    desk.write("a.md", f"do whisper {canary}")
    desk.write(f"b-{canary}.md", f"do hide {canary}")
    async with connected(desk):
        agent = await desk.agent(name=canary, prompt_template=f"Look for {canary}.")
        seen = await desk.run(agent)
    await desk.rest.aclose()
    assert seen["state"] == "partial"
    logs = "".join(log.read_text(errors="replace") for log in stack.folder.glob("*.log"))
    assert f'"run_id": "{seen["id"]}"' in logs
    assert "run.finished" in logs
    secrets = [canary, base64.b64encode(canary.encode()).decode(), desk.person.email, desk.person.password]
    secrets += [desk.person.access_token, desk.person.refresh_token]
    assert [secret for secret in secrets if secret in logs] == []
