"""What a compile is worth: the test score of the program as written and of the compiled one, on public task sets.

    python benchmarks/compile_quality.py --data DIR [--tasks trec6 snips squad_xquad e2e_nlg] [--seconds 540] [--seed
    0]
    python benchmarks/compile_quality.py --data DIR --tasks trec6 snips boolq bbh_navigate --readouts text head

DIR holds one folder a task with train.jsonl, dev.jsonl and test.jsonl. Prints one row a task: baseline and compiled
test score with 95 % intervals, model calls and seconds of the whole run (baseline, search and both test runs), and
what was chosen. For labels it also prints a TF-IDF + logistic regression fitted on the same train rows, which needs
no model. A head is fitted after the search, on top of the seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from task_sets import TASKS, program_of, splits, without_a_model

import cuecard
from cuecard.compiler.api import Silent


class Lines(Silent):
    """Prints a line for every new best."""

    def __init__(self, console: Console, verbose: bool) -> None:
        self.console = console
        self.verbose = verbose

    def trial(self, trial: Any, share: float, seconds: float) -> None:
        if trial.best or self.verbose:
            state = next(iter(trial.candidate.states.values()))
            score = "-" if trial.score is None else f"{trial.score:.3f}"
            settings = {name.rpartition(".")[2]: value for name, value in trial.params.items()}
            self.console.print(
                f"  {seconds:6.1f} s  trial {trial.number:3d} {trial.status:8s} n={trial.examples:3d} {score} "
                f"{'best ' if trial.best else ''}{state.format} {settings}",
                highlight=False,
                soft_wrap=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["trec6", "snips", "squad_xquad", "e2e_nlg"])
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readouts", nargs="+", help="see search.readouts; default: all that need no head")
    parser.add_argument("--verbose", action="store_true", help="a line for every trial")
    parser.add_argument("--runs", type=Path, help="keep the run folders here")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("task", "metric", "baseline test", "compiled test", "no model", "model calls", "seconds", "chosen")
    runs = options.runs or Path(tempfile.mkdtemp(prefix="cuecard-quality-"))
    for name in options.tasks:
        table.add_row(*one(name, options, runs, console))
        console.print(table)


def one(name: str, options: argparse.Namespace, runs: Path, console: Console) -> tuple[str, ...]:
    task = TASKS[name]
    train, dev, test = splits(options.data, name)
    program = cuecard.Predictor(program_of(name, train).signature)
    console.print(f"{name}: {len(train)} train, {len(dev)} dev, {len(test)} test", highlight=False)
    began = time.monotonic()
    compiled = cuecard.compile(
        program,
        trainset=train,
        devset=dev,
        testset=test,
        metric=task.metric,
        target=cuecard.target("smollm2-135m"),
        budget={"seconds": options.seconds},
        seed=options.seed,
        search={"readouts": options.readouts} if options.readouts else None,
        name=name,
        runs=runs,
        reporter=Lines(console, options.verbose),
    )
    seconds = time.monotonic() - began
    result = compiled.compilation
    state = next(iter(result.candidate.states.values()))
    calibration = state.readout.calibration.method if state.readout.calibration else "none"
    return (
        name,
        task.metric,
        _interval(result.baseline["test"]),
        _interval(result.compiled["test"]),
        f"{without_a_model(train, test, task):.2f}" if task.label else "",
        str(result.ledger["calls"]),
        f"{seconds:.0f}",
        f"{state.format}, {_demos(state)}, {state.readout.kind} ({calibration})",
    )


def _demos(state: Any) -> str:
    near = f"the {state.nearest.count} nearest of {len(state.nearest.pool)}" if state.nearest else ""
    return " and ".join(part for part in (f"{len(state.demos)} demos" if state.demos or not near else "", near) if part)


def _interval(score: Any) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


if __name__ == "__main__":
    main()
