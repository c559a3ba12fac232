"""Python programs of `make run`: which process each is forked from, and which secrets it gets."""

from __future__ import annotations

import os
from typing import Final

from adiuva import env_variables as env
from adiuva.core.env import BASE_DIR
from adiuva.embedded import forks
from adiuva.embedded.processes import Child, Supervisor, python
from adiuva.embedded.state_folder import StateFolder

# Secrets for processes of the server alone: the device and the models are programs of their own.
_SECRETS: Final = frozenset(
    variable.name
    for variable in (
        env.MODEL_API_KEY,
        env.EMBEDDING_MODEL_API_KEY,
        env.GOOGLE_CLIENT_SECRET,
        env.MICROSOFT_CLIENT_SECRET,
        env.MAIL_URL,
        env.STRIPE_SECRET_KEY,
        env.STRIPE_WEBHOOK_SECRETS,
        env.SECRET_KEY,
        env.SECRET_KEY_FALLBACKS,
        env.KEYS,
        env.PLUGIN_KEYS,
        env.DATABASE_URL,
        env.KEYS_DATABASE_URL,
        env.REDIS_URL,
    )
)
# Forks of a process that has read all settings.
_APPLICATION: Final = frozenset({"web", "worker-runs", "worker-short", "migrate", "publish-examples"})
_WITH_SECRETS: Final = _APPLICATION | {"preload-django", "check-models"}


class Programs:
    """Factory for the programs' children. Where forks are safe, they share the modules of `adiuva.embedded.preload`."""

    def __init__(self, state: StateFolder, supervisor: Supervisor) -> None:
        self._state, self._supervisor = state, supervisor
        self._libraries: forks.ForkServer | None = None
        self._application: forks.ForkServer | None = None
        self.env: dict[str, str] = {}
        self.has_stripe_double = False

    def preload_libraries(self) -> None:
        """Begin to import modules that need no configuration, while the servers start."""
        if forks.ARE_SAFE:
            self._libraries = self._start_server("preload", None)

    def preload_application(self) -> None:
        """Begin to import the rest. `env` must be complete."""
        if self._libraries:
            self._application = self._start_server("preload-django", self._libraries, "django")

    def child(self, name: str, *arguments: str, **more: str) -> Child:
        """Return the program that `python` runs with these arguments, with more variables in its environment."""
        return Child(
            name,
            python(*arguments),
            self._state.log(name),
            env=self._environment(name) | more,
            cwd=BASE_DIR,
            keeps=(self._state.lock,),
            forked_by=self._application if name in _APPLICATION else self._libraries,
        )

    def start(self, name: str, *arguments: str, vital: bool = True, **more: str) -> Child:
        """Start a program, and again whenever it ends by itself."""
        child = self.child(name, *arguments, **more)
        child.vital = vital
        return self._supervisor.start(child)

    def _start_server(
        self, name: str, forked_by: forks.ForkServer | None, *arguments: str
    ) -> forks.ForkServer:
        server = forks.ForkServer(
            name,
            python("-m", "adiuva.embedded.preload", *arguments),
            self._state.log(name),
            env=self._environment(name),
            cwd=BASE_DIR,
            keeps=(self._state.lock,),
            forked_by=forked_by,
        )
        self._supervisor.start(server)
        return server

    def _environment(self, name: str) -> dict[str, str]:
        kept = frozenset() if name in _WITH_SECRETS else _SECRETS
        if self.has_stripe_double:  # its key opens nothing
            kept -= {env.STRIPE_SECRET_KEY.name}
        return {each: value for each, value in (os.environ | self.env).items() if each not in kept}
