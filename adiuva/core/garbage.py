"""The garbage collector of our processes: while they load what they need, and afterwards."""

from __future__ import annotations

import gc


def collect_rarely_while_loading() -> None:
    """Before modules are imported and Django is set up: what that makes stays, and to look through it again and again
    takes up to a fifth of the time. A server calls `tune` when it has loaded all."""
    gc.set_threshold(100_000, 20, 100)


def tune() -> None:
    """Collect less often, and never look through what was loaded at the start.

    A full collection went through all loaded modules and stopped every stream for 0.4 s. What streams and runs allocate
    lives for long, so a collection every 700 allocations finds nothing. Full collections must not become rarer than
    this: REST requests leave reference cycles, and 3,000 requests then grew a process to 360 MB instead of 250 MB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 5)
