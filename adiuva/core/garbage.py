"""Garbage collection in our processes, while they load and afterwards."""

from __future__ import annotations

import gc


def collect_rarely_while_loading() -> None:
    """Collect rarely while modules are imported and Django is set up: the objects made then stay, and looking through
    them again and again takes up to a fifth of the time. A server calls `tune` when it has loaded everything."""
    gc.set_threshold(100_000, 20, 100)


def tune() -> None:
    """Collect less often, never look through what was loaded at the start, and little at a time.

    A full collection went through all loaded modules and stopped every stream for 0.4 s. What streams and runs allocate
    lives long, so a collection every 700 allocations finds nothing. But the middle generation holds ten times what
    starts one: with one every 10,000 allocations, it stopped 100 streams for 0.1 s of CPU. Full collections are as
    frequent with both, and must not become rarer: REST requests leave reference cycles, and with rarer ones 3,000
    requests grew a process to 360 MB instead of 250 MB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 10, 25)
