from typing import Final

from django.apps import AppConfig

_CLOSE_WITHIN_S: Final = 1.0


class DevicesConfig(AppConfig):
    name = "adiuva.devices"
    label = "devices"

    def ready(self) -> None:
        from adiuva.core.shutdown import Phase, on_shutdown

        on_shutdown(Phase.CLOSE_CONNECTIONS, _close_sockets)


async def _close_sockets() -> None:
    """Close every socket with 1012, which tells its client to reconnect."""
    from adiuva.devices import connections
    from adiuva.devices.protocol import Close

    await connections.current().close_all(Close.RESTARTING, within_s=_CLOSE_WITHIN_S)
