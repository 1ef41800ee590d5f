"""One process of the engine's benchmark: opens one engine, answers the plan's workloads and prints JSON.

    python benchmarks/engine_worker.py PLAN.json PART

PART is an engine's name, or `machine` (the rates that the limit is computed from), or `batch-shape` (our engine's
outputs at several batch sizes). The last line printed is the result. Opening the engine and a warm-up before each
workload are not timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from engine_limits import measure, shape_of, synchronise
from engine_rivals import (
    Run,
    config_of,
    continuous_ready,
    cuecard_engine,
    cuecard_ready,
    generate_ready,
    llama_cpp_build,
    llama_cpp_ready,
    open_model,
)
from engine_workloads import Prompt

from cuecard.errors import RunError

WARM_UP_TOKENS = 4


def timed(run: Run, prompts: Sequence[Prompt], output: int, device: str) -> tuple[float, list[list[int]]]:
    """The seconds of a run and its outputs, which must have the length asked for."""
    synchronise(device)
    began = time.perf_counter()
    outputs = run(prompts, output)
    synchronise(device)
    seconds = time.perf_counter() - began
    if wrong := {len(tokens) for tokens in outputs} - {output}:
        raise RunError(f"outputs of {sorted(wrong)} tokens", expected=f"{output} each")
    return seconds, outputs


def parts(prompts: list[Prompt], measured: int) -> list[list[Prompt]]:
    """What is timed on its own: all the prompts, or the two halves of the first `measured`."""
    if measured >= len(prompts):
        return [prompts]
    return [prompts[: measured // 2], prompts[measured // 2 : measured]]


def rival(plan: dict[str, Any], part: str) -> dict[str, Any]:
    """The seconds and outputs of an engine, for each workload."""
    engine = None
    if part == "llama.cpp":
        ready = llama_cpp_ready(plan["gguf"], plan["device"], torch.get_num_threads(), plan["llama_cpp"])
    else:
        loaded = open_model(plan)
        if part == "cuecard":
            shape = shape_of(loaded.model)
            engine = cuecard_engine(loaded)
            ready = cuecard_ready(engine)
        elif part == "generate":
            ready = generate_ready(loaded)
        else:
            ready = continuous_ready(loaded, plan["continuous"])
    workloads = {}
    for workload in plan["workloads"]:
        with ready(workload) as run:
            run(workload["warm_up"], WARM_UP_TOKENS)
            before = engine.ledger.copy() if engine else None
            done = [
                timed(run, prompts, workload["output"], plan["device"])
                for prompts in parts(workload["prompts"], plan["measured"].get(part, len(workload["prompts"])))
            ]
        found: dict[str, Any] = {
            "parts": [{"requests": len(outputs), "seconds": seconds} for seconds, outputs in done],
            "outputs": [tokens for _, outputs in done for tokens in outputs],
        }
        if engine and before:
            found["ledger"] = asdict(engine.ledger - before)
        workloads[workload["name"]] = found
    if part == "llama.cpp":
        return {"workloads": workloads, "build": llama_cpp_build()}
    return {"workloads": workloads, **({"shape": asdict(shape)} if engine else {})}


def machine(plan: dict[str, Any], part: str) -> dict[str, Any]:
    """The machine's rates."""
    return asdict(measure(config_of(plan), plan["device"], plan["dtype"]))


def batch_shape(plan: dict[str, Any], part: str) -> dict[str, Any]:
    """Our outputs for each workload and batch size."""
    engine = cuecard_engine(open_model(plan))
    outputs: dict[str, dict[str, list[list[int]]]] = {}
    for workload in plan["workloads"]:
        prompts = workload["prompts"]
        with cuecard_ready(engine)(workload) as run:
            outputs[workload["name"]] = {
                str(size): [
                    tokens
                    for first in range(0, len(prompts), size)
                    for tokens in run(prompts[first : first + size], workload["output"])
                ]
                for size in plan["batch_sizes"]
            }
    return {"outputs": outputs}


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    part = sys.argv[2]
    if plan["threads"]:
        torch.set_num_threads(plan["threads"])
    others: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
        "machine": machine,
        "batch-shape": batch_shape,
    }
    found = others.get(part, rival)(plan, part)
    print(json.dumps({"threads": torch.get_num_threads(), **found}))


if __name__ == "__main__":
    main()
