from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "chat"

    def ready(self) -> None:
        from adiuva.core import readiness
        from adiuva.core.shutdown import Phase, on_shutdown

        on_shutdown(Phase.FINISH_WORK, _end_turns)
        readiness.register("followups", _backlog)


def _backlog() -> dict[str, float]:
    from agents import run_watches

    due, dead = run_watches.backlog()
    return {"due": due, "dead": dead}


async def _end_turns() -> None:
    from chat.turn_registry import registry

    await registry().stop()
