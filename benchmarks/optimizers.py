"""Optimizers side by side: the same model, engine, rows and number of metric calls under each of them.

    python benchmarks/optimizers.py --data DIR --out results.jsonl [--tasks trec6 snips] [--calls 1600] [--seeds 0 1 2]
    python benchmarks/optimizers.py --data DIR --out quick.jsonl --quick
    python benchmarks/optimizers.py --out results.jsonl --table

DIR holds one folder a task with train.jsonl, dev.jsonl and test.jsonl. Each line of the file is one compile: task,
model, optimizer, seed, test score with its 95 % interval, what was measured of every test row, metric calls, seconds,
those of the search alone, and why it ended. What stands in it already (the same task, model, optimizer, seed, calls and
rows) is not run again, so that a long series can be stopped and taken up. The table has one row a task and optimizer:
the mean over seeds, its difference from the best of DSPy's with a 95 % interval, and the seconds next to `joint`'s: of
the whole compile, and of the search alone, from the baseline's end on dev to the last trial's. (What is not search is
the same for all: the program as written runs on dev and on test, and writes until its token limit where it does not
know what to say.) Run it with nothing beside it: seconds are compared.

The difference is the metric's own, of corpus BLEU that of the corpus scores, over the seeds that both have; its
interval is the paired bootstrap's over test rows. The same rows are drawn again under other seeds: a row's measurements
under all of them are one, so that what is resampled are rows, and not answers.

`as written` is the program before any search, in the prompts of DSPy. `joint / 4` is the search with a quarter of the
metric calls. DSPy's optimizers run with their own defaults (auto=light for MIPROv2 and GEPA) on our engine, until
they are done or have spent the metric calls; one that breaks counts with the best that it had, as a compile does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from task_sets import TASKS, program_of, splits

import cuecard
from cuecard.compiler.baseline import row_key
from cuecard.metrics import Measurement, Metric, metric, paired_test

OPTIMIZERS: Mapping[str, tuple[str | dict[str, Any], float]] = {
    "as written": ("random", 0.0),
    "labeled_few_shot": ("labeled_few_shot", 1.0),
    "dspy.BootstrapFewShotWithRandomSearch": ("dspy.BootstrapFewShotWithRandomSearch", 1.0),
    "dspy.MIPROv2": ({"name": "dspy.MIPROv2", "auto": "light"}, 1.0),
    "dspy.GEPA": ({"name": "dspy.GEPA", "auto": "light"}, 1.0),
    "dspy.SIMBA": ("dspy.SIMBA", 1.0),
    "simba": ("simba", 1.0),
    "joint / 4": ("joint", 0.25),
    "joint": ("joint", 1.0),
}
DEFAULT_MODEL = "smollm2-135m"
QUICK_ROWS, QUICK_CALLS = (60, 60, 100), 480
QUICK_TASKS = ("trec6", "snips", "svamp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="one line a compile; what is there is not run again")
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--calls", type=int, default=1600, help="metric calls of a compile, without the test split")
    parser.add_argument("--rows", type=int, nargs=3, default=(200, 200, 300), metavar=("TRAIN", "DEV", "TEST"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--quick", action="store_true", help="three tasks, 60/60/100 rows, 480 metric calls")
    parser.add_argument("--table", action="store_true", help="run nothing; print what the file holds")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.calls = QUICK_ROWS, QUICK_CALLS
    tasks = options.tasks or (QUICK_TASKS if options.quick else TASKS)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not options.table:
        if options.data is None:
            parser.error("--data is missing")
        for seed in options.seeds:
            for task in tasks:
                for optimizer in options.optimizers:
                    run(task, optimizer, seed, options, console)
    for table in tables(known(options.out)):
        console.print(table)


def run(task: str, optimizer: str, seed: int, options: argparse.Namespace, console: Console) -> None:
    """One compile, added to the file; nothing where the file has it."""
    what = {"task": task, "model": options.model, "optimizer": optimizer, "seed": seed}
    what |= {"calls": options.calls, "rows": list(options.rows)}
    if any(what.items() <= line.items() for line in known(options.out)):
        return
    train, dev, test = splits(options.data, task, options.rows, seed)
    chosen, share = OPTIMIZERS[optimizer]
    budget = cuecard.Budget(metric_calls=int(share * options.calls)) if share else cuecard.Budget(trials=1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as runs:
        try:
            found = cuecard.compile(
                program_of(task, [*train, *dev, *test]),
                trainset=train,
                devset=dev,
                testset=test,
                metric=TASKS[task].metric,
                target=cuecard.target(options.model),
                budget=budget,
                seed=seed,
                optimizer=chosen,
                name=task,
                runs=runs,
            )
        except cuecard.CuecardError as error:
            console.print(f"{task}, {optimizer}, seed {seed}: {error}", style="red")
            return
        seconds = time.monotonic() - began
        folder = found.compilation.folder
        told = json.loads(folder.run.read_text(encoding="utf-8"))
        ends = [json.loads(trial)["seconds"] for trial in folder.trials.read_text(encoding="utf-8").splitlines()]
    outcomes = cuecard.evaluate(found, test, TASKS[task].metric, target=cuecard.target(options.model)).outcomes
    line = {
        **what,
        "test": told["compiled"]["test"],
        "dev": told["compiled"]["dev"],
        "measured": [
            [row_key(outcome.row.inputs, outcome.row.labels), *outcome.measurement.row]
            for outcome in outcomes
            if outcome.measurement is not None
        ],
        "metric_calls": told["spent"]["metric_calls"],
        "model_calls": told["ledger"]["calls"],
        "seconds": round(seconds, 1),
        "search_seconds": round(ends[-1] - ends[0], 1),
        "stopped_by": told["search"]["stopped_by"],
        "reason": told["search"].get("reason"),
    }
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    console.print(f"{task}, {optimizer}, seed {seed}: {line['test']['value']:.3f} in {seconds:.0f} s", highlight=False)


def known(path: Path) -> list[dict[str, Any]]:
    """The compiles that the file holds. Those that name no model ran on the only one that there was then."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{"model": DEFAULT_MODEL, **line} for line in lines]


def tables(lines: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """A table for each task and model."""
    for task, model in dict.fromkeys((line["task"], line["model"]) for line in lines):
        mine = [line for line in lines if (line["task"], line["model"]) == (task, model)]
        by_optimizer = {
            name: [line for line in mine if line["optimizer"] == name]
            for name in OPTIMIZERS
            if any(line["optimizer"] == name for line in mine)
        }
        means = {name: float(np.mean([line["test"]["value"] for line in own])) for name, own in by_optimizer.items()}
        theirs = [name for name in means if name.startswith("dspy.")]
        best = max(theirs, key=lambda name: means[name], default=None)
        paces = {kind: _mean(kind, by_optimizer.get("joint", [])) for kind in ("seconds", "search_seconds")}
        title = f"{task} on {model}: {TASKS[task].metric}, test" + (f"; the best of DSPy's is {best}" if best else "")
        columns = (
            "optimizer",
            "score",
            "against DSPy's best",
            "metric calls",
            "seconds",
            "x joint",
            "search",
            "x joint",
        )
        table = Table(*columns, title=title)
        for name, own in by_optimizer.items():
            against = "" if best is None or name == best else _against(TASKS[task].metric, own, by_optimizer[best])
            calls = round(float(np.mean([line["metric_calls"] for line in own])))
            ended = "" if all(line["stopped_by"] != "crashed" for line in own) else " (broke)"
            row = [f"{means[name]:.3f} ({len(own)})", against, f"{calls:,}{ended}"]
            for kind, pace in paces.items():
                seconds = _mean(kind, own)
                row += [f"{seconds:.0f}", f"{seconds / pace:.2f}" if pace > 0 else ""]
            table.add_row(name, *row)
        yield table


def _mean(kind: str, lines: Sequence[Mapping[str, Any]]) -> float:
    """The mean of one number of the compiles; nan where none has it."""
    return float(np.mean([line[kind] for line in lines if kind in line] or [math.nan]))


def _against(named: Any, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> str:
    """The difference of the scores by the metric, with its interval."""
    scored = metric(named)
    a, b = (_by_run(lines, scored) for lines in (ours, theirs))
    shared = [run for run in a if run in b]
    mine, yours = (_by_row({run: found[run] for run in shared}) for found in (a, b))
    if len(mine) < 2:
        return "-"
    found = paired_test(scored, [mine[key] for key in sorted(mine)], [yours[key] for key in sorted(mine)])
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _by_run(lines: Sequence[Mapping[str, Any]], scored: Metric) -> dict[tuple[int, str], Sequence[float]]:
    """What was measured of each row under each seed; of a line that holds scores alone, for a mean, those."""
    found: dict[tuple[int, str], Sequence[float]] = {}
    for line in lines:
        measured = line.get("measured")
        if measured is None and not scored.width:
            scores = line.get("scores", ())
            measured = [(f"{line['seed']} {place}", 1.0, s) for place, s in enumerate(scores) if s is not None]
        found |= {(line["seed"], key): row for key, *row in measured or ()}
    return found


def _by_row(runs: Mapping[tuple[int, str], Sequence[float]]) -> dict[str, Measurement]:
    """One measurement of each row: the sums over the seeds that drew it."""
    sums: dict[str, list[float]] = {}
    for (_, key), row in runs.items():
        sums[key] = [x + y for x, y in zip(sums.get(key, [0.0] * len(row)), row, strict=True)]
    return {key: Measurement(row[1] / row[0] if row[0] else 0.0, tuple(row)) for key, row in sums.items()}


if __name__ == "__main__":
    sys.exit(main())
