"""What the engine's benchmark makes of its measurements: a row for each workload, and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from engine_limits import Limit, Machine, Shape, limit
from rich.console import Console
from rich.table import Table

from cuecard.models.tree import build

OURS = "cuecard"


def estimate(found: dict[str, Any], workload: dict[str, Any]) -> float:
    """The seconds of the whole workload; what was timed in two halves goes on as the second did."""
    first, *rest = found["parts"]
    if not rest:
        return float(first["seconds"])
    left = len(workload["prompts"]) - first["requests"]
    return float(first["seconds"] + rest[0]["seconds"] * left / rest[0]["requests"])


def row(
    workload: dict[str, Any], runs: dict[str, list[dict[str, Any]]], shape: Shape, machine: Machine
) -> dict[str, Any]:
    """What is known about one workload: its tokens, its limit, and each engine's times and outputs."""
    name, prompts = workload["name"], workload["prompts"]
    tree = build(prompts)
    leaves = len(set(tree.leaves))
    requests, output = len(prompts), workload["output"]
    best = limit(shape, machine, unique=len(tree), leaves=leaves, requests=requests, output=output)
    ours = runs[OURS][0]["workloads"][name]
    engines = {}
    for engine, of_engine in runs.items():
        found = [run["workloads"][name] for run in of_engine]
        seconds = [estimate(one, workload) for one in found]
        outputs = found[0]["outputs"]
        engines[engine] = {
            "seconds": seconds,
            "median": statistics.median(seconds),
            "measured": len(outputs),
            "same_outputs": sum(a == b for a, b in zip(outputs, ours["outputs"], strict=False)) / len(outputs),
        }
    return {
        "requests": requests,
        "output": output,
        "prompt_tokens": sum(map(len, prompts)),
        "unique_tokens": len(tree),
        "ledger": ours["ledger"],
        "limit": {**vars(best), "seconds": best.seconds},
        "engines": engines,
    }


def show(rows: dict[str, Any], given: dict[str, Any], threads: int, machine: Machine, console: Console) -> None:
    """The two tables: the engines side by side, and what the limit is made of."""
    model = f"random {given['random_weights']}" if given["random_weights"] else given["model"]
    requests = max(found["requests"] for found in rows.values())
    title = f"{requests} requests a workload: {model}, {given['dtype']}, {given['device']}, {threads} threads"
    table = Table("workload", "engine", "seconds", "from", "to", "ms a call", "ours = 1", "same outputs", title=title)
    limits = Table(
        "workload", "prompts", "unique", "computed", "generated", "passes", "prefill", "head", "decode", "limit",
        "taken", "share",
        title=f"The limit in seconds, at {machine.matrix / 1e12:.3g} TFLOP/s and {machine.bandwidth / 1e9:.3g} GB/s",
    )  # fmt: skip
    for name, found in rows.items():
        for place, (engine, times) in enumerate(found["engines"].items()):
            table.add_row(name if place == 0 else "", *_engine_row(engine, times, found))
        best, ours = found["limit"]["seconds"], found["engines"][OURS]["median"]
        per_call = f"{1000 * best / found['requests']:.2f}"
        table.add_row("", "limit", f"{best:.3f}", "", "", per_call, f"{best / ours:.2f}", "", end_section=True)
        limits.add_row(name, *_limit_row(found))
    console.print(table)
    console.print(limits)


def _engine_row(engine: str, times: dict[str, Any], found: dict[str, Any]) -> Sequence[str]:
    scaled = f", scaled from {times['measured']} calls" if times["measured"] < found["requests"] else ""
    return (
        f"{engine}{scaled}",
        f"{times['median']:.3f}",
        f"{min(times['seconds']):.3f}",
        f"{max(times['seconds']):.3f}",
        f"{1000 * times['median'] / found['requests']:.2f}",
        f"{times['median'] / found['engines'][OURS]['median']:.2f}",
        f"{times['same_outputs']:.0%}" if engine != OURS else "",
    )


def _limit_row(found: dict[str, Any]) -> Sequence[str]:
    ledger, best, taken = found["ledger"], found["limit"], found["engines"][OURS]["median"]
    return (
        f"{found['prompt_tokens']:,}",
        f"{found['unique_tokens']:,}",
        f"{ledger['prompt_tokens'] - ledger['cached_tokens']:,}",
        f"{ledger['generated_tokens']:,}",
        str(ledger["forward_passes"]),
        *(f"{best[part]:.3f}" for part in Limit.__dataclass_fields__),
        f"{best['seconds']:.3f}",
        f"{taken:.3f}",
        f"{best['seconds'] / taken:.0%}",
    )


def show_changes(changed: dict[str, dict[str, float]], given: dict[str, Any], console: Console) -> None:
    """The share of outputs that differ between two batch sizes."""
    title = f"Outputs that change with the batch's size: {given['model']}, {given['dtype']}, {given['device']}"
    pairs = next(iter(changed.values()), {})
    table = Table("workload", "requests", "tokens", *pairs, title=title)
    for workload in given["workloads"]:
        counts = str(len(workload["prompts"])), str(workload["output"])
        table.add_row(workload["name"], *counts, *(f"{share:.1%}" for share in changed[workload["name"]].values()))
    console.print(table)
