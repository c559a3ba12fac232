"""Garbage collection in our processes, while they load and afterwards."""

from __future__ import annotations

import gc


def collect_rarely_while_loading() -> None:
    """Collect rarely while modules are imported and Django is set up: the objects made then stay, and looking through
    them again and again takes up to a fifth of the time. A server calls `tune` when it has loaded everything."""
    gc.set_threshold(100_000, 20, 100)


def tune() -> None:
    """Collect less often, and never look through what was loaded at the start.

    A full collection went through all loaded modules and stopped every stream for 0.4 s. What streams and runs allocate
    lives long, so a collection every 700 allocations finds nothing. Full collections must not become rarer than this:
    REST requests leave reference cycles, and with rarer ones 3,000 requests grew a process to 360 MB instead of 250 MB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 5)
