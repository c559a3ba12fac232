"""Context that all model calls of a turn share: its model, limits and counts, and the data for its tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext
from langchain_core.tools import BaseTool

from adiuva import llm
from chat.context_budget import ContextBudget
from chat.turn_steps import TurnSteps


class LimitReached(Exception):
    """The turn reached one of its limits; `code` says which."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class ToolInvocation:
    """A tool call that can be carried out. `arguments` are as the model gave them."""

    id: str
    tool: BaseTool
    arguments: dict[str, Any]

    @property
    def action(self) -> str:
        return str((self.tool.metadata or {}).get("action", ""))

    @property
    def table(self) -> str:
        return str((self.tool.metadata or {}).get("table", ""))

    @property
    def label(self) -> str:
        """The text that the user is shown while the call runs."""
        return str((self.tool.metadata or {}).get("label", ""))

    @property
    def row_argument(self) -> str:
        """The argument that names the row that the call is about."""
        return str((self.tool.metadata or {}).get("key", "id"))


async def _allow_all(calls: Sequence[ToolInvocation]) -> dict[str, str]:
    return {}


@dataclass
class TurnContext:
    """State shared by all model calls of a turn, including those of its sub-agents.

    `tool_config`: what tools find in their config. `authorize`: called before tools run; returns by call id why a call
    may not run. `on_tool_start`: called for each call that runs. `resolve`: returns the tool and the arguments that a
    call means, with ids for aliases; raises ToolException. `failed_calls`: how often the same call has failed.
    `conclude_at`: the loop's time at which the turn stops waiting for tools, so that there is time for an answer.
    `has_changed`: whether a call that writes has succeeded. `budget`: what fits the model's context window. `usage`,
    `model_calls`, `tool_calls`: counted so far. `steps`: the calls, for people. `stand_ins`: the models that answered
    in place of `model`. `lacks_tools`: whether an answer was given without tools, because the endpoint takes none.
    """

    model: llm.ChatModel
    max_model_calls: int
    tool_config: dict[str, Any] = field(default_factory=dict)
    authorize: Callable[[Sequence[ToolInvocation]], Awaitable[dict[str, str]]] = _allow_all
    on_tool_start: Callable[[ToolInvocation], None] = lambda call: None
    resolve: Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]] = lambda name, arguments: (
        name,
        arguments,
    )
    failed_calls: Counter[str] = field(default_factory=Counter)
    conclude_at: float | None = None
    has_changed: bool = False
    budget: ContextBudget = field(init=False)
    usage: llm.Usage = field(default_factory=llm.Usage)
    model_calls: int = 0
    tool_calls: int = 0
    steps: TurnSteps = field(default_factory=TurnSteps)
    stand_ins: dict[str, None] = field(default_factory=dict)
    lacks_tools: bool = False

    def __post_init__(self) -> None:
        self.budget = ContextBudget(self.model)

    def count_model_call(self) -> None:
        if self.model_calls >= self.max_model_calls:
            raise LimitReached("too_many_model_calls")
        self.model_calls += 1

    def note_step(self, call: ToolInvocation, *, model_call: int, ok: bool) -> None:
        self.steps.add(call=model_call, label=gettext(call.label), table=call.table, ok=ok)

    def note_answer(self, finish: llm.Finish) -> None:
        self.usage += finish.usage
        self.lacks_tools = self.lacks_tools or finish.lacks_tools
        if (answering := finish.usage.model) and answering != self.model.name:
            self.stand_ins[answering] = None
