"""Runs several headless devices in one process: `python -m bench.chaos.devices SERVER FILE FIRST LAST`.

Each is the real headless device with its rows and its ledger of applied calls on disk, so the process can be killed and
started again. FILE has one line of JSON for each device. Only the pause between two connection attempts is shortened.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import aiohttp

from adiuva.devices.client import Device, DeviceConfig

_MAX_RETRY_S: Final = 2.0


async def _sleep_briefly(seconds: float) -> None:
    await asyncio.sleep(min(seconds, _MAX_RETRY_S))


async def main(server: str, file: str, first: str, last: str) -> None:
    lines = Path(file).read_text("utf-8").splitlines()[int(first) : int(last)]
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        asyncio.TaskGroup() as group,
    ):
        for line in lines:
            about = json.loads(line)
            config = DeviceConfig(
                server=server,
                workspace=about["workspace"],
                grants=[about["folder"]],
                email=about["email"],
                password=about["password"],
                device_id=about["device_id"],
            )
            group.create_task(Device(config, http=http, sleep=_sleep_briefly).run())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
