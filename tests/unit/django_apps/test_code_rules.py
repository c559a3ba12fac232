"""Rules that the product's code keeps, read from its source."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from adiuva.celery import app

ROOT = Path(settings.BASE_DIR)
PACKAGES = ("adiuva", "agents", "billing", "chat", "integrations", "memory")
# Programs of their own, which log for their owner.
PROGRAMS = ("adiuva/offline_llm/", "adiuva/devices/client/")
# Tools around the server: they print to a terminal, and do not import its logging.
TOOLS = ("adiuva/embedded/", *PROGRAMS)
# Functions that keep an error in a handler, and raise it in another task.
RAISED_LATER = {
    "adiuva/llm/streamed_body.py:hand_on",
    "agents/mailbox.py:_read",
    "agents/group_commit.py:_write",
}
# Functions that log with frames whatever they did not expect.
LOGGING = {"log_failure", "as_client_error"}
# Where a lease is written by hand: presence's is that of a process, which nobody claims.
OWN_LEASES = {"adiuva/core/leases.py", "adiuva/devices/presence.py"}

# Log entries are events: a noun, a dot, and what happened to it.
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
EVENT = re.compile(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*")

# Each with the name of its file.
Calls = list[tuple[str, ast.Call]]


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if "/migrations/" not in name and not name.startswith(PROGRAMS):
                yield name, ast.parse(path.read_text(), name)


# Read and walked through once, and not kept beyond this module: the trees take much memory.
@pytest.fixture(scope="module")
def all_trees() -> list[tuple[str, ast.Module]]:
    return list(sources())


@pytest.fixture(scope="module")
def trees(all_trees: list[tuple[str, ast.Module]]) -> list[tuple[str, ast.Module]]:
    """Without those of tools."""
    return [(name, tree) for name, tree in all_trees if not name.startswith(TOOLS)]


@pytest.fixture(scope="module")
def calls_of_all(all_trees: list[tuple[str, ast.Module]]) -> Calls:
    return [(name, node) for name, tree in all_trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.fixture(scope="module")
def calls(calls_of_all: Calls) -> Calls:
    """Without those of tools."""
    return [(name, node) for name, node in calls_of_all if not name.startswith(TOOLS)]


def handlers(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.ExceptHandler]]:
    """All exception handlers below a node, each with the name of the function it is in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ExceptHandler):
            yield function, child
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from handlers(child, child.name if is_function else function)


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        each is None or (isinstance(each, ast.Name) and each.id in ("Exception", "BaseException"))
        for each in caught
    )


def is_found_again(handler: ast.ExceptHandler) -> bool:
    """Whether the handler raises, or logs the failure with its frames."""
    for node in ast.walk(handler):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and _name(node) in LOGGING:
            return True
    return False


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def test_a_large_class_says_why_it_is_one(trees: list[tuple[str, ast.Module]]) -> None:
    """In a comment above it: that it has more than 15 methods or 250 lines, and the reason."""
    large = [
        (name, node.name, min([node.lineno, *(each.lineno for each in node.decorator_list)]))
        for name, tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and (
            sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body) > 15
            or (node.end_lineno or 0) - node.lineno >= 250
        )
    ]
    assert len(large) > 5
    silent = [f"{name}:{of}" for name, of, line in large if "# More than " not in _comment_above(name, line)]
    assert silent == []


def _comment_above(name: str, line: int) -> str:
    above = (ROOT / name).read_text().splitlines()[line - 2 :: -1]
    return "\n".join(itertools.takewhile(lambda each: each.startswith("#"), above))


def test_every_broad_except_raises_or_calls_log_failure(trees: list[tuple[str, ast.Module]]) -> None:
    silent = {
        f"{name}:{function}"
        for name, tree in trees
        for function, handler in handlers(tree)
        if is_broad(handler) and not is_found_again(handler)
    }
    assert silent == RAISED_LATER


@pytest.mark.parametrize(
    ("code", "silent"),
    [
        ("except Exception: pass", True),
        ("except: pass", True),
        ("except (ValueError, BaseException) as error: log.error('x', error=type(error).__name__)", True),
        ("except Exception as error: log_failure('x', error)", False),
        ("except Exception as error: raise Other from error", False),
        ("except ValueError: pass", False),
    ],
)
def test_a_silent_handler_is_found(code: str, silent: bool) -> None:
    (handler,) = (
        node for node in ast.walk(ast.parse(f"try: f()\n{code}")) if isinstance(node, ast.ExceptHandler)
    )
    assert (is_broad(handler) and not is_found_again(handler)) == silent


def test_every_task_that_is_enqueued_or_scheduled_is_registered(calls: Calls) -> None:
    app.loader.import_default_modules()
    enqueued = {
        node.args[0].value
        for _, node in calls
        if _name(node) == "enqueue_on_commit"
        if isinstance(node.args[0], ast.Constant)
    }
    scheduled = {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}
    assert "export.make" in enqueued and "export.sweep" in scheduled
    assert sorted((enqueued | scheduled) - app.tasks.keys()) == []


def test_every_task_is_enqueued_by_its_name_as_it_stands(calls: Calls) -> None:
    unnamed = [
        f"{name}:{node.lineno}"
        for name, node in calls
        if _name(node) == "enqueue_on_commit"
        if not (node.args and isinstance(node.args[0], ast.Constant))
    ]
    assert unnamed == []


def test_a_lease_is_written_by_nobody_but_core_leases(calls: Calls) -> None:
    written = {name for name, node in calls if any(each.arg == "lease_until" for each in node.keywords)}
    assert written - OWN_LEASES == set()


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated when a module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [*child.decorator_list, *child.args.defaults, *filter(None, child.args.kw_defaults)]
        else:
            inner = [] if isinstance(child, ast.Lambda) else [child]
        for each in inner:
            yield each
            yield from _at_import(each)


def test_no_setting_is_read_at_import(trees: list[tuple[str, ast.Module]]) -> None:
    """`override_settings` must work. Django's models are the exception: they name the model of users."""
    read = {
        f"{name}:{node.lineno}"
        for name, tree in trees
        if name != "adiuva/settings.py"
        for node in _at_import(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "settings"
        if node.attr != "AUTH_USER_MODEL"
    }
    assert read == set()


def test_every_call_of_a_model_has_a_limit_and_a_temperature(calls: Calls) -> None:
    """`structured` has its own for both; the model's own clients are below them."""
    missing = [
        f"{name}:{node.lineno}"
        for name, node in calls
        if not name.startswith("adiuva/llm/")
        if ast.unparse(node.func).endswith(("model.complete", "model.stream"))
        if not {"max_tokens", "temperature"} <= {each.arg for each in node.keywords}
    ]
    assert missing == []


def test_no_place_of_a_sealed_value_is_spelled_by_hand(calls: Calls) -> None:
    """Only the fields of core.sealed know table and column; others name a row at most."""
    spelled = [
        f"{name}:{node.lineno}"
        for name, node in calls
        if not name.startswith("adiuva/core/")
        if _name(node) in ("place", "associated_data")
    ]
    assert spelled == []


def event_of(call: ast.Call) -> str | None:
    """The first argument of a call that logs, if it is a literal."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="log" | "logger"), attr=level) if level in LEVELS:
            pass
        case ast.Name(id="log_failure"):
            pass
        case _:
            return None
    match call.args:
        case [ast.Constant(value=str(event)), *_]:
            return event
    return None


def test_events_are_a_noun_and_what_happened(calls_of_all: Calls) -> None:
    wrong = [
        f"{name}:{node.lineno} {event!r}"
        for name, node in calls_of_all
        if (event := event_of(node)) and not EVENT.fullmatch(event)
    ]
    assert wrong == []


def test_loggers_are_named_after_their_module(calls_of_all: Calls) -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, node in calls_of_all
        if isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get_logger", "getLogger")
        and isinstance(node.args[0] if node.args else None, ast.Constant)
    ]
    assert wrong == []
