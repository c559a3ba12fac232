"""A Celery worker with one guarantee removed, to prove that the bench notices:
`python -m bench.mail.sabotaged_worker limiter -A adiuva worker …`. The product itself has no such switch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.harness import run_sabotaged_worker


def without_limiter() -> None:
    """Send as many requests at once as messages are prefetched, and ignore every Retry-After."""
    from integrations.mail import mailbox_limiter, sync

    sync._PREFETCHED_MESSAGES = 8  # type: ignore[misc]

    async def ignore(limiter: object, seconds: float) -> None:
        pass

    mailbox_limiter.MAX_CONCURRENT_REQUESTS = 100  # type: ignore[misc]
    mailbox_limiter.MailboxLimiter.block = ignore  # type: ignore[assignment,method-assign]


def with_premature_ledger() -> None:
    """Record a message as read as soon as it is listed."""
    from agents import ledger

    expected = ledger.needs_reading

    def due_once(job, files):  # type: ignore[no-untyped-def]
        from agents.extraction import SourceDocument
        from agents.models import Source

        found = expected(job, files)
        new = [SourceDocument("", "", "", *pair) for pair, is_due in zip(files, found, strict=True) if is_due]
        known = ledger.identify(job, new)
        done = Source.Outcome.DONE
        ledger.record_sources(job, [(each.key, each.content_hash, known[each.key], done) for each in new])
        return found

    ledger.needs_reading = due_once


SABOTAGES: Final[dict[str, Callable[[], None]]] = {
    "limiter": without_limiter,
    "ledger": with_premature_ledger,
}


if __name__ == "__main__":
    run_sabotaged_worker(SABOTAGES)
