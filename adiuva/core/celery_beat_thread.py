"""Thread for beat in one worker (`celery worker --with-beat`), for a machine with few workers.

Celery's own `--beat` starts a process for it. A second beat elsewhere does no harm: it sends only hints, and rows
decide.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from celery import Celery, bootsteps
from click import Option

from adiuva.core.logging import log_failure

_PAUSE_S: Final = 5.0  # after a failure, such as a database that does not answer
_LONGEST_SLEEP_S: Final = 1  # how long a worker's end waits for it


class BeatThread(bootsteps.StartStopStep):
    """Bootstep that starts beat with the worker, and ends it with it. If beat fails, it logs that and starts it
    again."""

    def __init__(self, worker: Any, with_beat: bool = False, **options: Any) -> None:
        super().__init__(worker, **options)
        self.enabled = with_beat
        self._ending = threading.Event()
        self._service: Any = None
        self._thread = threading.Thread(target=self._run, args=(worker.app,), name="beat", daemon=True)

    def start(self, worker: Any) -> None:
        self._thread.start()

    def stop(self, worker: Any) -> None:
        self._ending.set()
        if service := self._service:
            service.stop()
        self._thread.join(_LONGEST_SLEEP_S * 3)

    def _run(self, app: Celery) -> None:
        from celery.beat import Service  # not at the top, because web processes import this module, too

        app.set_current()
        while not self._ending.is_set():
            try:
                self._service = Service(app, _LONGEST_SLEEP_S, scheduler_cls=app.conf.beat_scheduler)
                self._service.start()
            except Exception as error:
                log_failure("beat.failed", error)
                self._ending.wait(_PAUSE_S)


def connect(app: Celery) -> None:
    """Give this application's workers the option `--with-beat`."""
    app.user_options["worker"].add(
        Option(["--with-beat"], is_flag=True, help="Run beat in a thread of this worker.")
    )
    app.steps["worker"].add(BeatThread)
