from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "chat"

    def ready(self) -> None:
        from adiuva.core.shutdown import Phase, on_shutdown

        on_shutdown(Phase.FINISH_WORK, _end_turns)


async def _end_turns() -> None:
    from chat.turn_registry import registry

    await registry().stop()
