"""Whether the engine can be trusted: what it leaves behind, how typed outputs are read back, what rounding changes.

    python benchmarks/trust.py soak [--requests 20000] [--model NAME]
    python benchmarks/trust.py typed [--outputs 10000]
    python benchmarks/trust.py rounding [--prompts 100]

    soak        mixed requests, some of which must fail, through one engine and from several threads
                (`trust_soak.py`); exit code 1 if memory, blocks or requests are left behind, or a result is wrong.
                Without --model through a tiny model with random weights
    typed       outputs drawn at temperature 1 over the output types and formats (`trust_typed.py`), and how many of
                them are read back; exit code 1 if one is not, of the types that bound themselves
    rounding    the share of greedy outputs that depend on how many prompts stand in a batch: near ties fall either
                way in bfloat16. With --dtype float32 there should be none

For example, in a minute or two:

    python benchmarks/trust.py soak --requests 2000
    python benchmarks/trust.py typed --outputs 310 --kinds date "record, nested"
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import trust_typed
from engine_workloads import WORKLOADS, prompts
from rich.console import Console
from rich.table import Table
from trust_soak import Look, Soaked, capacity_of, mib, soak, soak_engine

import cuecard
from cuecard.errors import CuecardError, InputError
from cuecard.models.engine import Decoding, Engine, GenerateRequest, Generation
from cuecard.models.loading import find, load

DEFAULT = "smollm2-135m"
BATCH_SIZES = (1, 7, 64)
ROUNDED = ("labels", "extraction")


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    began = time.perf_counter()
    try:
        code = {"soak": run_soak, "typed": run_typed, "rounding": run_rounding}[options.part](options, console)
    except CuecardError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2 if isinstance(error, InputError) else 3
    console.print(f"{time.perf_counter() - began:.0f} seconds")
    return code


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True, metavar="soak | typed | rounding")
    one = parts.add_parser("soak", help="mixed requests: what is left behind")
    one.add_argument("--requests", type=positive, default=20_000)
    one.add_argument("--model", help="a model to run (default: a tiny one with random weights)")
    one.add_argument("--dtype", default="auto", help="of --model; the tiny one runs in float32")
    one.add_argument("--bound", type=positive, metavar="MIB",
                     help="by which resident memory may grow (default: 32, and 256 with --model)")  # fmt: skip
    one.add_argument("--seed", type=int, default=0)
    two = parts.add_parser("typed", help="typed outputs: how many are read back")
    two.add_argument("--outputs", "--n", type=positive, default=10_000, help="of the types that bound themselves")
    two.add_argument("--model", default=DEFAULT)
    two.add_argument("--dtype", default="auto")
    two.add_argument("--batch", type=positive, default=128)
    two.add_argument("--kinds", nargs="+", choices=[kind.name for kind in trust_typed.KINDS], metavar="KIND")
    two.add_argument("--formats", nargs="+", choices=trust_typed.all_formats(), default=trust_typed.all_formats())
    two.add_argument("--failures", type=int, default=10, help="how many to show")
    two.add_argument("--seed", type=int, default=0, help="of the first output; the next one's is one more")
    three = parts.add_parser("rounding", help="greedy outputs that change with the batch's size")
    three.add_argument("--prompts", type=positive, default=100)
    three.add_argument("--model", default=DEFAULT)
    three.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


# Soak


def run_soak(options: argparse.Namespace, console: Console) -> int:
    with tempfile.TemporaryDirectory(prefix="cuecard-soak-") as folder:
        if options.model is None:
            from tiny import build_tiny_model  # found beside `mixed`, see `trust_soak.py`

            loaded = load(find(build_tiny_model(Path(folder) / "tiny")), device="cpu", dtype="float32")
        else:
            loaded = load(find(options.model), device="auto", dtype=options.dtype)
        engine = soak_engine(loaded)

    def told(look: Look) -> None:
        console.print(f"{look.requests:,} requests, {look.seconds:.0f} s, {mib(look.rss)}", soft_wrap=True)

    found = soak(engine, options.requests, options.seed, told)
    show_soak(found, engine, console)
    bound = options.bound or (32 if options.model is None else 256)
    leaks = found.leaks(capacity_of(engine), bound << 20)
    for line in [*leaks, *found.wrong[:10]]:
        console.print(line, style="red", markup=False, soft_wrap=True)
    if not leaks and not found.wrong:
        console.print(f"nothing is left behind; resident memory grew by {mib(found.growth)} since the first quarter")
    return 1 if leaks or found.wrong else 0


def show_soak(found: Soaked, engine: Engine, console: Console) -> None:
    table = Table("requests", "seconds", "resident", "tensors", "stores", "blocks kept", "dropped", "waiting",
                  title=f"Soak of {engine.name}: what the process holds")  # fmt: skip
    for look in found.looks:
        counts = (look.tensors, look.stores, look.kept, look.evicted, look.waiting)
        table.add_row(f"{look.requests:,}", f"{look.seconds:.0f}", mib(look.rss), *(f"{count:,}" for count in counts))
    console.print(table)
    console.print(", ".join(f"{kind} {count:,}" for kind, count in sorted(found.counts.items())))
    console.print(f"wrong results: {len(found.wrong)}")


# Typed outputs


def run_typed(options: argparse.Namespace, console: Console) -> int:
    kinds = [kind for kind in trust_typed.KINDS if options.kinds is None or kind.name in options.kinds]
    bounded, open_ = ([kind for kind in kinds if kind.open is wanted] for wanted in (False, True))
    engine = cuecard.target(options.model, dtype=options.dtype).engine
    drawn = trust_typed.draws(options.outputs, bounded, options.formats, options.seed) if bounded else []
    if open_:  # as many of each as of the others
        each = -(-options.outputs // max(1, len(bounded)))
        drawn += trust_typed.draws(each * len(open_), open_, options.formats, options.seed)
    last = time.perf_counter()

    def told(done: int) -> None:
        nonlocal last
        if time.perf_counter() - last > 30:
            last = time.perf_counter()
            console.print(f"{done:,} of {len(drawn):,}")

    found = trust_typed.run(engine, drawn, options.batch, options.failures, told)
    show_typed(found, options.model, console)
    total = found.bounded()
    console.print(f"read back: {total.parsed:,} of {total.drawn:,} of the types that bound themselves")
    for line in found.failures:
        console.print(line, style="red", markup=False, soft_wrap=True)
    return 1 if total.parsed < total.drawn else 0


def show_typed(found: trust_typed.Typed, model: str, console: Console) -> None:
    title = f"Outputs drawn at temperature 1 from {model}"
    for head, tallies in (("type", found.by_kind), ("format, without open types", found.by_format)):
        table = Table(head, "drawn", "read", "cut off", "unreadable", "masked", title=title)
        for name, tally in tallies.items():
            if tally.drawn:
                unreadable = tally.drawn - tally.parsed - tally.cut
                counts = (tally.drawn, tally.parsed, tally.cut, unreadable)
                table.add_row(name, *(f"{count:,}" for count in counts), f"{tally.masked / tally.drawn:.2f}")
        console.print(table)


# Rounding


def run_rounding(options: argparse.Namespace, console: Console) -> int:
    engine = cuecard.target(options.model, dtype=options.dtype).engine
    pairs = list(itertools.combinations(BATCH_SIZES, 2))
    table = Table(
        "workload", "prompts", "tokens", *(f"{a} or {b}" for a, b in pairs), "first other token",
        title=f"Greedy outputs that change with the batch's size: {options.model}, {options.dtype}",
    )  # fmt: skip
    for workload in (workload for workload in WORKLOADS if workload.name in ROUNDED):
        asked = [
            GenerateRequest(prompt, Decoding(max_tokens=workload.output))
            for prompt in prompts(workload, options.prompts, engine.tokenizer.encode)
        ]
        outputs = {size: in_batches(engine, asked, size) for size in BATCH_SIZES}
        shares, places = [], []
        for a, b in pairs:
            changed = [(x, y) for x, y in zip(outputs[a], outputs[b], strict=True) if x != y]
            shares.append(f"{len(changed) / len(asked):.1%}")
            places += [first_other(x, y) for x, y in changed]
        where = f"{statistics.median(places):.0f} (median)" if places else "none"
        table.add_row(workload.name, str(len(asked)), str(workload.output), *shares, where)
    console.print(table)
    return 0


def in_batches(engine: Engine, asked: Sequence[GenerateRequest], size: int) -> list[tuple[int, ...]]:
    """The tokens of every output, `size` requests at a time."""
    results = [r for first in range(0, len(asked), size) for r in engine.generate(asked[first : first + size])]
    for result in results:
        if not isinstance(result, Generation):
            raise InputError(f"a prompt has no output: {result.error}")
    return [result.samples[0].tokens for result in results if isinstance(result, Generation)]


def first_other(a: Sequence[int], b: Sequence[int]) -> int:
    """The number, from 1, of the first token in which two outputs differ."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False), 1) if x != y), min(len(a), len(b)) + 1)


if __name__ == "__main__":
    sys.exit(main())
