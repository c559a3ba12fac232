"""JSON serializer of Django's Redis cache. The default would unpickle, and so execute, whatever is stored there."""

from __future__ import annotations

from typing import Any

import orjson


class JSONSerializer:
    """For django.core.cache.backends.redis. What is not JSON counts as broken and raises ValueError."""

    def dumps(self, value: Any) -> bytes | int:
        # Redis itself increments integers, so they are written bare, as in Django's own serializer.
        return value if type(value) is int else orjson.dumps(value)

    def loads(self, data: bytes | int) -> Any:
        return data if isinstance(data, int) else orjson.loads(data)
