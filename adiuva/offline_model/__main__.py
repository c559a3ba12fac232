"""`python -m adiuva.offline_model --port N`: serves the offline model on loopback until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from adiuva.offline_model.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m adiuva.offline_model", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="the port on 127.0.0.1; 0 picks a free one")
    port = parser.parse_args().port
    try:
        asyncio.run(_run(port))
    except (OSError, OverflowError) as error:
        sys.exit(f"the offline model cannot listen on port {port}: {error}")


async def _run(port: int) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await serve(port, stop)


if __name__ == "__main__":
    main()
