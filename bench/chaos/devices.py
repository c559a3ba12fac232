"""Some of the devices, in a process of their own: `python -m bench.chaos.devices SERVER FILE FIRST LAST`.

They are the real headless device, each with its rows and its ledger of applied calls on the disk, so that the process
can be killed and started again. FILE has a line of JSON a device. Only the time between two tries is shortened.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import aiohttp

from adiuva.devices.client import Device, DeviceConfig

_AGAIN_WITHIN_S: Final = 2.0


async def _soon(seconds: float) -> None:
    await asyncio.sleep(min(seconds, _AGAIN_WITHIN_S))


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
            group.create_task(Device(config, http=http, sleep=_soon).run())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
