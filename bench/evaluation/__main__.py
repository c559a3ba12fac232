"""Evaluate a model: `make eval MODEL=openai/… BASE_URL=… KEY=…`, or `python -m bench.evaluation`.

The model is that of ADIUVA_MODEL, ADIUVA_MODEL_API_BASE and ADIUVA_MODEL_API_KEY; without one, the offline model. The
one called `labels` knows what is right, and must have no fault. The model is compared with the offline model, unless
--no-floor. Starts PostgreSQL, Valkey, a web process and a worker of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adiuva.embedded.ports import free_port
from adiuva.offline_llm import CHAT_MODEL
from bench.evaluation.cases import Cases, load_cases, sample
from bench.evaluation.endpoint import Endpoint, Recording
from bench.harness import BenchServers, bench_servers, listens

PARTS: Final = ("documents", "chats", "memory")
LABELS: Final = "labels"
OFFLINE: Final = f"openai/{CHAT_MODEL}"
_OPENAI: Final = "https://api.openai.com/v1"
# What a user may have configured besides for the model that is compared, and what is none of the offline model's.
_OTHER_SETTINGS: Final = ("CHAT", "EXTRACTION", "MEMORY", "EXTRAS", "FALLBACKS")


@dataclass
class Model:
    """`upstream`: the address of its endpoint; "" where LiteLLM knows it, and then its use is not counted."""

    name: str
    upstream: str
    key: str = ""
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Evaluation:
    figures: dict[str, dict[str, Any]]
    faults: dict[str, Any]
    missing: int
    by_words: int


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    cases = _chosen(load_cases(), options.sample)
    with bench_servers() as servers, ExitStack() as running:
        os.environ["ADIUVA_EMBEDDING_MODEL"] = os.environ.get("ADIUVA_EMBEDDING_MODEL", "")
        offline = _offline_llm(servers)
        name = os.environ.get("ADIUVA_MODEL") or OFFLINE
        base = os.environ.get("ADIUVA_MODEL_API_BASE", "")
        key = os.environ.get("ADIUVA_MODEL_API_KEY", "")
        if name == LABELS:
            model = _label_model(cases, running)
        else:
            model = offline if name == OFFLINE else Model(name, base or _default_base(name), key)
        recording = (
            Recording.read(options.replay) if options.replay else Recording() if options.record else None
        )
        evaluations = {}
        try:
            for each in [model] + ([offline] if name != OFFLINE and options.floor else []):
                print(f"Evaluating {each.name} ...", flush=True)
                used = recording if each is model else None
                evaluations[each.name] = _evaluate(servers, each, cases, options, used, running)
        finally:  # what was paid for is kept, also when the rest fails
            if options.record and recording is not None:
                recording.write(options.record)
                print(f"{len(recording)} answers are recorded in {options.record}.", flush=True)
    print(f"\n═══ All together\n{_table(evaluations)}")
    if options.json:
        options.json.write_text(json.dumps(_json(evaluations), ensure_ascii=False, indent=1), "utf-8")
    mine = evaluations[model.name]
    if mine.by_words:
        print(f"{mine.by_words} requests were answered by what was said in them: prompts or memory differ.")
    if mine.missing:
        print(f"{mine.missing} requests are not in the recording: its figures say less, the more there are.")
        return 1
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.evaluation", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of documents, chats, memory")
    parser.add_argument("--sample", type=int, default=0, help="so many cases of each part at most")
    parser.add_argument("--at-once", type=int, default=4, help="chats at the same time")
    parser.add_argument("--json", type=Path, help="also write the figures, and what was wrong, to this file")
    parser.add_argument("--record", type=Path, help="write all answers to this file (.jsonl or .jsonl.gz)")
    parser.add_argument("--replay", type=Path, help="take all answers from this file, without an endpoint")
    parser.add_argument("--no-floor", dest="floor", action="store_false", help="without the offline model")
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]}; there are {', '.join(PARTS)}")
    if options.record and options.replay:
        parser.error("either --record or --replay")
    return options


def _chosen(cases: Cases, most: int) -> Cases:
    """A sample of the cases; conversations are needed as a whole, for the questions about them."""
    questions = sample(cases.questions, most)
    sessions = cases.sessions
    if most and len(questions) < len(cases.questions):
        sessions = sessions[: max(most, 1)]
        known = {each.id for each in sessions}
        questions = [each for each in cases.questions if each.session in known][:most]
    return Cases(sample(cases.documents, most), sample(cases.chats, most), sessions, questions, cases.rows)


def _offline_llm(servers: BenchServers) -> Model:
    port = free_port()
    child = servers.run("offline-model", "-m", "adiuva.offline_llm", "--port", str(port))
    child.wait_until(lambda: listens(port), within_s=30)
    nothing = {f"ADIUVA_MODEL_{name}": "" for name in _OTHER_SETTINGS}
    return Model(OFFLINE, f"http://127.0.0.1:{port}/v1", env=nothing)


def _label_model(cases: Cases, running: ExitStack) -> Model:
    from bench.evaluation.label_model import LabelModel
    from tests.fakes.provider import Provider

    answers = LabelModel(cases)
    provider = running.enter_context(Provider(default=answers))
    provider.memory = answers
    return Model("openai/labels", provider.url)


def _default_base(name: str) -> str:
    return _OPENAI if name.startswith("openai/") else ""


def _evaluate(
    servers: BenchServers,
    model: Model,
    cases: Cases,
    options: argparse.Namespace,
    recording: Recording | None,
    running: ExitStack,
) -> Evaluation:
    from bench.evaluation import report

    env = {"ADIUVA_MODEL": model.name, "ADIUVA_MODEL_API_KEY": model.key} | model.env
    counted = Endpoint(
        "" if options.replay and recording else model.upstream, recording=recording, key=model.key
    )
    if model.upstream or options.replay:
        running.enter_context(counted)
        env["ADIUVA_MODEL_API_BASE"] = counted.url
    web, web_process = servers.web_process("bench.evaluation.fixed_clock", **env)
    celery = ("-A", "adiuva", "worker", "--without-mingle", "--without-gossip")
    worker = servers.run(
        f"worker-{time.monotonic_ns()}", "-m", "bench.evaluation.fixed_clock", *celery, **env
    )
    try:
        documents, chats, memory = asyncio.run(_parts(servers, web, cases, options))
    finally:
        worker.stop()
        web_process.stop()
    figures: report.Figures = {}
    if documents is not None:
        figures |= report.document_figures(documents)
    if chats:
        figures |= report.chat_figures(chats)
    if memory is not None:
        figures |= report.memory_figures(memory)
    if counted.use:
        figures |= report.use_figures(counted.use, options.price and tuple(options.price))
    faults = report.faults(documents, chats, memory)
    print(report.examples(faults), flush=True)
    return Evaluation(figures, faults, counted.missing, counted.by_words)


async def _parts(servers: BenchServers, web: str, cases: Cases, options: argparse.Namespace) -> Any:
    """The parts that were asked for. Each is printed when it ends: with a slow model, hours before the last."""
    from bench.evaluation import report
    from bench.evaluation.chats_part import hold_chats
    from bench.evaluation.documents_part import read_documents
    from bench.evaluation.memory_part import remember_sessions

    documents = chats = memory = None
    if "documents" in options.parts:
        folder = servers.folder / f"documents-{time.monotonic_ns()}"
        documents = await read_documents(web, cases.documents, folder, cases.rows)
        print(report.table({"": report.document_figures(documents)}), flush=True)
    if "chats" in options.parts:
        chats = await hold_chats(web, cases.chats, cases.rows, at_once=options.at_once)
        print(report.table({"": report.chat_figures(chats)}), flush=True)
    if "memory" in options.parts:
        memory = await remember_sessions(web, cases.sessions, cases.questions, cases.rows)
        print(report.table({"": report.memory_figures(memory)}), flush=True)
    return documents, chats, memory


def _table(evaluations: dict[str, Evaluation]) -> str:
    from bench.evaluation import report

    return report.table({name: each.figures for name, each in evaluations.items()})


def _json(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return value._asdict() if hasattr(value, "_asdict") else value

    return {
        name: {
            "figures": {
                section: {what: plain(value) for what, value in rows.items()}
                for section, rows in each.figures.items()
            },
            "faults": each.faults,
        }
        for name, each in evaluations.items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
