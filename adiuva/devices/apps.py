import asyncio
from typing import Final

from django.apps import AppConfig

from adiuva.core import metrics

_CLOSE_WITHIN_S: Final = 1.0


class DevicesConfig(AppConfig):
    name = "adiuva.devices"
    label = "devices"

    def ready(self) -> None:
        from adiuva.core.shutdown import Phase, on_shutdown

        on_shutdown(Phase.CLOSE_CONNECTIONS, _close_sockets)
        metrics.at_scrape(
            "adiuva_outbox_records", "Records that wait for a device or its answer.", ("state",), _outbox
        )
        metrics.at_scrape("adiuva_devices_online", "Devices that are connected now.", (), _online)


async def _close_sockets() -> None:
    """Close every socket with 1012, which tells its client to reconnect."""
    from adiuva.devices import connections
    from adiuva.devices.protocol import Close

    registry = connections.current()
    await registry.close_all(Close.RESTARTING, within_s=_CLOSE_WITHIN_S)
    async with asyncio.timeout(_CLOSE_WITHIN_S):
        await registry.leave()


def _outbox() -> metrics.Samples:
    from adiuva.devices import outbox

    return [((state,), count) for state, count in outbox.count_undelivered().items()]


def _online() -> metrics.Samples:
    from adiuva.devices.models import Device

    return [((), Device.objects.online().count())]
