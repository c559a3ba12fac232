"""Resets and presets what processes have learnt of models, for tests that need a known start."""

from __future__ import annotations

from adiuva.core.redis import sync_redis
from adiuva.llm import learnt
from adiuva.llm.capabilities import Feature


def forget_all() -> None:
    """No process knows anything of any model, once it looks."""
    learnt.forget()
    redis = sync_redis("heartbeat")
    if keys := list(redis.scan_iter("adiuva:model_learnt:*", count=1_000)):
        redis.delete(*keys)


def know_that_it_shows_no_thoughts(endpoint: str, model: str) -> None:
    """The model's first answer streams: nothing of it is held back to see whether it begins within a thought."""
    sync_redis("heartbeat").hset(learnt.redis_key(endpoint, model), "thoughts", "none")


def know_that_it_takes_everything(endpoint: str, model: str) -> None:
    """A 400 of the model is final: it is not asked again with less, nor are later tests' requests sent with less."""
    facts = dict.fromkeys(Feature, "taken")
    sync_redis("heartbeat").hset(learnt.redis_key(endpoint, model), mapping=facts)
