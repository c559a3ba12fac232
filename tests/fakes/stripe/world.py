"""State of the fake Stripe: objects by id, a clock that can be moved, events, and parts that several kinds share."""

from __future__ import annotations

import copy
import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

API_VERSION = "2026-10-28.endive"
DAY_S = 86_400
_EVENTS_KEPT_S = 30 * DAY_S

Row = dict[str, Any]


class StripeError(Exception):
    """An error that Stripe's own rules demand."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: Row = {"type": kind, "message": message}
        self.body |= {name: value for name, value in (("code", code), ("param", param)) if value}


def missing(kind: str, object_id: str) -> StripeError:
    return StripeError(404, f"No such {kind}: '{object_id}'", code="resource_missing", param="id")


class World:
    """All objects, each as Stripe's API shows it. Names that begin with "_" are ours and are shown to nobody.

    With a `path` they are kept in that file and are there after a restart. `on_event` is called with each new event.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.base_url = ""
        self.on_event: Callable[[Row], None] = lambda _: None
        self.rows: dict[str, Row] = {}
        self._by_kind: dict[str, list[Row]] = {}
        self.clock_offset_s = 0
        self.tax = False  # whether prices include a tax of 22 %, see `tax_in`
        self._path = path
        self._former_url = ""
        if path is not None and path.exists():
            kept = json.loads(path.read_text())
            self.rows, self.clock_offset_s = kept["rows"], kept["clock_offset_s"]
            self._former_url = kept["base_url"]
            for row in self.rows.values():
                self._by_kind.setdefault(row["object"], []).append(row)

    def save(self) -> None:
        if self._path is not None:
            kept = json.dumps(
                {"rows": self.rows, "clock_offset_s": self.clock_offset_s, "base_url": self.base_url}
            )
            new = self._path.with_suffix(".new")
            new.write_text(kept)
            new.replace(self._path)

    def serve_at(self, url: str) -> None:
        """Say where the pages are; addresses of former pages follow."""
        self.base_url = url
        for row in self.rows.values():
            for name in ("url", "hosted_invoice_url"):
                if self._former_url and str(row.get(name)).startswith(self._former_url):
                    row[name] = url + row[name].removeprefix(self._former_url)

    def now(self) -> int:
        return int(time.time()) + self.clock_offset_s

    def make(self, kind: str, prefix: str, **fields: Any) -> Row:
        row = {
            "id": f"{prefix}_{secrets.token_hex(12)}",
            "object": kind,
            "created": self.now(),
            "livemode": False,
            **fields,
        }
        self.rows[row["id"]] = row
        self._by_kind.setdefault(kind, []).append(row)
        return row

    def get(self, kind: str, object_id: str) -> Row:
        row = self.rows.get(object_id)
        if row is None or row["object"] != kind:
            raise missing(kind, object_id)
        return row

    def of(self, kind: str, **fields: Any) -> Iterator[Row]:
        """Latest first, as lists have them. A field that is None is not looked at."""
        wanted = {name: value for name, value in fields.items() if value is not None}
        for row in reversed(list(self._by_kind.get(kind, []))):
            # What was deleted is of another kind by now.
            if row["object"] == kind and all(row.get(name) == value for name, value in wanted.items()):
                yield row

    def emit(self, kind: str, row: Row) -> None:
        shown = show(row)
        event = self.make(
            "event", "evt", type=kind, api_version=API_VERSION, data={"object": shown}, request={"id": None}
        )
        self.on_event(event)

    def events(self) -> Iterator[Row]:
        """Latest first; older ones than 30 days are gone."""
        return (event for event in self.of("event") if event["created"] > self.now() - _EVENTS_KEPT_S)

    def expand(self, shown: Row, paths: list[str]) -> Row:
        """Put objects in place of their ids; a path goes through lists, such as `data.customer`."""
        for path in paths:
            self._expand(shown, path.split("."))
        return shown

    def _expand(self, node: Any, path: list[str]) -> None:
        if isinstance(node, list):
            for each in node:
                self._expand(each, path)
            return
        if not isinstance(node, dict) or path[0] not in node:
            raise StripeError(400, f"This property cannot be expanded ({path[0]}).", param="expand")
        value = node[path[0]]
        if isinstance(value, str):
            if value not in self.rows:
                raise StripeError(400, f"This property cannot be expanded ({path[0]}).", param="expand")
            value = node[path[0]] = show(self.rows[value])
        if path[1:] and value is not None:
            self._expand(value, path[1:])


def tax_in(world: World, cents: int) -> int:
    """What is tax in a price, if there is one: 22 % that the price includes."""
    return cents - cents * 100 // 122 if world.tax else 0


def show(row: Row) -> Row:
    """A copy without what is ours."""
    return {name: copy.deepcopy(value) for name, value in row.items() if not name.startswith("_")}


def page(rows: Iterator[Row], params: Row, url: str) -> Row:
    """A page of a list, latest first, with Stripe's cursors."""
    found = list(rows)
    created = params.get("created") or {}
    if isinstance(created, str):
        created = {"gte": created, "lte": created}
    tests: dict[str, Callable[[int, int], bool]] = {
        "gt": int.__gt__,
        "gte": int.__ge__,
        "lt": int.__lt__,
        "lte": int.__le__,
    }
    for name, value in created.items():
        found = [row for row in found if tests[name](row["created"], int(value))]
    size = int(params.get("limit", 10))
    if not 1 <= size <= 100:
        raise StripeError(400, "limit must be between 1 and 100", param="limit")
    ids = [row["id"] for row in found]
    if (after := params.get("starting_after")) is not None:
        found = found[_place(ids, after, "starting_after") + 1 :]
        more = len(found) > size
        found = found[:size]
    elif (before := params.get("ending_before")) is not None:
        found = found[: _place(ids, before, "ending_before")]
        more = len(found) > size
        found = found[-size:]
    else:
        more = len(found) > size
        found = found[:size]
    return {"object": "list", "url": url, "has_more": more, "data": [show(row) for row in found]}


def _place(ids: list[str], object_id: str, param: str) -> int:
    if object_id not in ids:
        raise StripeError(400, f"No such object: '{object_id}'", code="resource_missing", param=param)
    return ids.index(object_id)
