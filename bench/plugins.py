"""The catalogue at 10,000 plugins, and 50 threads that approve, yank, revoke and install: `python -m bench.plugins`

`python -m bench.plugins catalogue 10000` or `at_once 1000` runs one of the two, with so many plugins or acts.

`catalogue`: the queries and times of lists, and of the same statements without the indexes of plugins. `at_once`: each
installation looks, in its own transaction, at the state of the version that it got; at the end the counts of installs
are compared with their rows.
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from bench.harness import bench_servers, median, record

THREADS: Final = 50
REPEATS: Final = 30
WORDS: Final = (
    "invoice",
    "calendar",
    "weekly",
    "report",
    "client",
    "hours",
    "theme",
    "notes",
    "mail",
    "budget",
)


# ── The catalogue ───────────────────────────────────────────────────────────────────────────────────────


def fill(count: int) -> None:
    """Listed plugins of a hundred developers, made as rows and past all of the triggers."""
    from django.db import connection, transaction
    from django.utils import timezone

    from adiuva.accounts.models import User
    from billing.models import Developer, Plugin, PluginCheck, PluginReview, PluginVersion

    chance, now = random.Random(1), timezone.now()
    users = User.objects.bulk_create(User(email=f"d{n}@example.com", password="!") for n in range(100))
    developers = Developer.objects.bulk_create(
        Developer(user=user, handle=f"dev-{n}", name=f"Developer {n}") for n, user in enumerate(users)
    )
    categories = Plugin.Category.values
    plugins = Plugin.objects.bulk_create(
        Plugin(
            slug=f"plugin-{n}",
            name=f"{chance.choice(WORDS)} {chance.choice(WORDS)} {n}",
            summary=" ".join(chance.choices(WORDS, k=8)),
            kind="theme",
            category=chance.choice(categories),
            developer=chance.choice(developers),
            installs=chance.randrange(5_000),
        )
        for n in range(count)
    )
    versions = PluginVersion.objects.bulk_create(
        PluginVersion(
            plugin=plugin,
            version="1.0.0",
            manifest={"id": plugin.slug, "name": plugin.name, "files": {}, "license": "MIT"},
            sha256=uuid.uuid4().hex * 2,
            size=1_000,
            object=f"bench/{uuid.uuid4().hex}",
            author=plugin.developer,
        )
        for plugin in plugins
    )
    PluginCheck.objects.bulk_create(
        PluginCheck(version=each, name="structure", result="passed") for each in versions
    )
    PluginReview.objects.bulk_create(
        PluginReview(version=each, reviewer=uuid.uuid4(), decision="approve", sha256=each.sha256)
        for each in versions
    )
    mine = PluginVersion.objects.filter(object__startswith="bench/")
    mine.update(state="approved", signature="x", key_id="bench", reviewed_at=now, list_at=now)
    with transaction.atomic(), connection.cursor() as cursor:
        mine.update(state="listed", listed_at=now)
        cursor.execute(
            "UPDATE billing_plugin AS plugin SET state = 'listed', current_version_id = version.id,"
            " listed_at = now() - random() * interval '900 days', ratings = 10, stars = 10 + (random() * 40)::int"
            " FROM billing_pluginversion AS version"
            " WHERE version.plugin_id = plugin.id AND version.object LIKE 'bench/%'"
        )
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")  # as autovacuum would: an index alone can answer then


def catalogue(count: int) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    from rest_framework.test import APIClient

    from adiuva.accounts.models import User
    from billing.marketplace import catalogue as listed

    began = time.perf_counter()
    fill(count)
    print(f"{count:,} plugins listed in {time.perf_counter() - began:.0f} s")
    client = APIClient(SERVER_NAME="localhost")  # the name of tests is no host of ours
    client.force_authenticate(User.objects.create_user("reader@example.com"))
    queries: tuple[dict[str, Any], ...] = (
        {},
        {"sort": "installs"},
        {"sort": "newest", "page": 100},
        {"page": 200},
        {"category": "finance"},
        {"category": "finance", "sort": "installs"},
        {"category": "finance", "sort": "newest", "page": 10},
        {"q": "invo"},
        {"q": "invoice weekly", "category": "planning"},
        {"q": "plugin 77"},
    )
    for query in queries:
        listed.forget_counts()
        with CaptureQueriesContext(connection) as first:
            answer = client.get("/api/v1/plugins", query)
        assert answer.status_code == 200, answer.data
        with CaptureQueriesContext(connection) as again:
            client.get("/api/v1/plugins", query)
        # Kept now: the next request empties Django's log.
        counts, sql = (len(first), len(again)), [each["sql"] for each in again.captured_queries]
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            client.get("/api/v1/plugins", query)
            times.append(time.perf_counter() - started)
        said = ", ".join(f"{name} {value}" for name, value in query.items()) or "first page"
        print(
            f"{said}: total {answer.data['total']:,}, queries {counts[0]}, then {counts[1]},"
            f" request {median(times) * 1000:.1f} ms"
        )
        with_index, without = _page_ms(sql[-1], indexed=True), _page_ms(sql[-1], indexed=False)
        record(f"{said}: PostgreSQL's time", with_index, "ms", beside=without, name="without indexes")


def _page_ms(statement: str, *, indexed: bool) -> list[float]:
    """PostgreSQL's time of a statement; without indexes on the plugins, but for the joins to what they refer to."""
    from django.db import connection, transaction

    names: list[str] = []
    with transaction.atomic(), connection.cursor() as cursor:
        if not indexed:
            cursor.execute(
                "SELECT indexname FROM pg_indexes WHERE tablename = 'billing_plugin' AND indexname LIKE 'plugin%'"
            )
            names = [name for (name,) in cursor.fetchall()]
            for name in names:
                cursor.execute(f'DROP INDEX "{name}"')
        found = []
        for _ in range(REPEATS):
            cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}")
            found.append(float(cursor.fetchone()[0][0]["Execution Time"]))
        transaction.set_rollback(True)
    return found


# ── All at once ─────────────────────────────────────────────────────────────────────────────────────────


def at_once(acts: int) -> None:
    """Fifty threads do so many random acts on five plugins with six versions each."""
    from adiuva.accounts.models import User
    from billing.models import Plugin, PluginInstall
    from tests.billing.marketplace.factories import a_plugin, a_version, approve

    plugins = [a_plugin() for _ in range(5)]
    versions = [
        approve(a_version(plugin, f"1.{n}.0", manifest=_manifest(plugin, n)))
        for plugin in plugins
        for n in range(6)
    ]
    fresh = [
        a_version(plugin, f"2.{n}.0", manifest=_manifest(plugin, n)) for plugin in plugins for n in range(20)
    ]
    users = User.objects.bulk_create(
        User(email=f"u{n}@example.com", password="!", tier="power") for n in range(200)
    )
    chance = random.Random(7)
    for each in fresh:
        _to_review(each)
    work = [_act(chance, plugins, versions, fresh, users) for _ in range(acts)]
    began, said = time.perf_counter(), Counter[str]()
    with ThreadPoolExecutor(THREADS) as threads:
        said.update(threads.map(_done, work))
    print(f"{acts:,} acts of {THREADS} threads in {time.perf_counter() - began:.1f} s")
    for what, times in sorted(said.items()):
        print(f"  {times:6,} {what}")
    wrong = sum(times for what, times in said.items() if "WRONG" in what or what.startswith("error"))
    off = sum(
        Plugin.objects.get(pk=plugin.pk).installs != PluginInstall.objects.filter(plugin=plugin).count()
        for plugin in plugins
    )
    record("installed what was not listed, or failed", wrong, most=0)
    record("counts of installs that are off", off, most=0)


def _manifest(plugin: Any, number: int) -> dict[str, Any]:
    return {
        "id": plugin.slug,
        "name": plugin.name,
        "summary": "",
        "kind": "theme",
        "files": {},
        "number": number,
    }


def _to_review(version: Any) -> None:
    from billing.models import PluginCheck, PluginVersion

    PluginCheck.objects.create(version=version, name="structure", result="passed")
    PluginVersion.objects.filter(pk=version.pk).update(state="in_review")


def _act(
    chance: random.Random, plugins: list[Any], versions: list[Any], fresh: list[Any], users: list[Any]
) -> tuple[str, Callable[[], str]]:
    from billing.marketplace import publication, staff_reviews

    version, new, user = chance.choice(versions + fresh), chance.choice(fresh), chance.choice(users).pk
    owner = {"user_id": version.author.user_id, "plugin_id": version.plugin_id, "version": version.version}
    staff = uuid.uuid4()

    def approve() -> None:
        staff_reviews.decide(
            version_id=new.pk,
            reviewer_id=staff,
            decision="approve",
            sha256=new.sha256,
            checklist=list(staff_reviews.CHECKLIST),
        )

    plugin = chance.choice(plugins).pk
    ways: dict[str, Callable[[], Any]] = {
        "approve": approve,
        "list": lambda: publication.list_now(version_id=version.pk),
        "yank": lambda: publication.yank(**owner, reason="x"),
        "unyank": lambda: publication.unyank(**owner),
        "revoke": lambda: publication.revoke(version_id=version.pk, by=staff, reason="x"),
        "restore": lambda: publication.restore(version_id=version.pk, by=staff),
        "suspend": lambda: publication.suspend(plugin_id=plugin, suspended=True),
        "allow": lambda: publication.suspend(plugin_id=plugin, suspended=False),
        "install": lambda: _install(user, plugin),
    }
    name = chance.choices(list(ways), [10, 12, 10, 10, 4, 6, 2, 6, 40])[0]
    return name, ways[name]


def _install(user: Any, plugin: Any) -> str:
    """Installed in a transaction that then looks at what it got, behind the same lock."""
    from django.db import transaction

    from billing.marketplace import installs
    from billing.models import Plugin, PluginInstall, PluginVersion

    with transaction.atomic():
        had = (
            PluginInstall.objects.filter(user_id=user, plugin_id=plugin)
            .values_list("version_id", flat=True)
            .first()
        )
        got = installs.install(user_id=user, plugin_id=plugin).version
        state = PluginVersion.objects.values_list("state", flat=True).get(pk=got.pk)
        offered = Plugin.objects.values_list("current_version_id", flat=True).get(pk=plugin)
    if state == "listed" and offered == got.pk:
        return "what was listed"
    if had == got.pk and state in ("listed", "yanked"):
        return "their own again, which is no longer offered"
    return f"WRONG: {state}"


def _done(work: tuple[str, Callable[[], Any]]) -> str:
    from django.db import connections

    from adiuva.core.errors import AdiuvaError

    name, act = work
    try:
        found = act()
    except AdiuvaError as error:
        return f"{name}: refused, {error.code}"
    except Exception as error:  # a bench counts what the product must not do
        return f"error of {name}: {type(error).__name__}"
    finally:
        connections.close_all()
    return f"{name}: {found}" if isinstance(found, str) else f"{name}: done"


def main() -> None:
    part, count = [*sys.argv[1:], "", "0"][:2]
    with bench_servers():
        if part in ("", "catalogue"):
            catalogue(int(count or 0) or 10_000)
        if part in ("", "at_once"):
            at_once(int(count or 0) or 5_000)


if __name__ == "__main__":
    main()
