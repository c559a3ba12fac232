"""The examples of docs/guide.md work as they are written: its first block, then what follows it, in one shell."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.factories import Person
from tests.server_processes import ROOT
from tests.socket_client import Socket

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
GUIDE = (ROOT / "docs" / "guide.md").read_text()
# A block with an ellipsis after the first needs a value from somewhere else, such as a second factor's code.
FIRST, *OTHERS = BLOCK.findall(GUIDE)
SENT = [block for block in OTHERS if "curl" in block and "…" not in re.sub(r"#.*", "", block)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_the_examples_work_in_the_order_of_the_page(web: str, person: Person) -> None:
    assert len(SENT) >= 2
    first = re.sub(r"^SERVER=.*", f"SERVER={web}", FIRST, flags=re.M)
    first = re.sub(r"^EMAIL=.*", f"EMAIL={person.email}", first, flags=re.M)
    first = re.sub(r"^PASSWORD=.*", f"PASSWORD='{person.password}'", first, flags=re.M)
    script = "\n".join([first, *SENT]).replace("curl ", "curl --fail-with-body -sS ")
    async with Socket(web, person.access_token) as device:
        await device.hello(device_id="guide-device")
        done = subprocess.run(  # the socket has nothing to answer meanwhile
            ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stdout + done.stderr
    with person.rest(web) as rest:
        agent = rest.get("/agents/local").json()[0]
        assert (agent["device_id"], agent["name"]) == ("guide-device", "Clients")
        assert rest.get("/agents/runs").json()[0]["agent_id"] == agent["id"]
