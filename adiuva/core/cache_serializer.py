"""JSON serializer of Django's Redis cache. The default would unpickle, and so execute, whatever is stored there."""

from __future__ import annotations

from typing import Any

import orjson


class JSONSerializer:
    """Serializer for django.core.cache.backends.redis. Values that are not JSON are broken and raise ValueError."""

    def dumps(self, value: Any) -> bytes | int:
        # Redis itself increments integers, so they are written bare, as Django's own serializer does.
        return value if type(value) is int else orjson.dumps(value)

    def loads(self, data: bytes | int) -> Any:
        return data if isinstance(data, int) else orjson.loads(data)
