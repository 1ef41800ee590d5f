"""From a YAML spec to a compile: the target, the metric and the examples that the spec names."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..metrics import Metric
from ..metrics import metric as metric_of
from ..models.catalogue import CATALOGUE
from ..models.pull import Progress
from ..models.target import DEFAULT_MODEL, Target
from ..models.target import target as open_target
from ..optimizers.base import Budget
from ..optimizers.joint import strategy_named
from ..programs.graph import Graph, build
from ..programs.schema import ModelSpec, Spec
from ..programs.spec import load_spec
from .api import compile_task
from .compiled import Compiled
from .data import Examples, check_disjoint, load_examples, split
from .options import DEFAULT_METRIC_CALLS
from .pipeline import Reporter, Task
from .run_folder import RUNS

SPLITS = ("train", "dev", "test")
FRACTIONS = (0.4, 0.3, 0.3)


def compile_spec(
    path: str | PathLike[str],
    *,
    target: Target | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    budget: Budget | None = None,
    seed: int | None = None,
    fresh: bool = False,
    runs: str | PathLike[str] | None = None,
    allow_outside: bool = False,
    allow_code: bool = False,
    reporter: Reporter | None = None,
    output: str | PathLike[str] | None = None,
) -> Compiled:
    """Compile a YAML spec and write `NAME.compiled.yaml` beside it (or `output`).

    target, device, dtype: default the spec's `model`, then `smollm2-135m`; a model or dtype that is given stands in the
    compiled program's `model`, since it was compiled for that; budget and seed: default the spec's; runs: default
    `.cuecard/runs` in the current folder; allow_outside: paths may leave the spec's folder; allow_code: a metric may
    be `module:function`. Everything is checked before the model is opened. Raises `InputError` and `RunError`.
    """
    spec = load_spec(path, allow_outside=allow_outside, check_files=True)
    program = build(spec)
    metric = spec_metric(spec, allow_code=allow_code)
    if metric is None:
        raise InputError(
            "there is no `metric:`", path=spec.path, hint="Say what is to be optimized: `metric: exact_match`."
        )
    strategy_named(spec.optimize.optimizer)
    splits = spec_examples(spec, program)
    task = Task(
        name=spec.name,
        program=program,
        metric=metric,
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        target=spec_target(spec, target, device=device, dtype=dtype),
        columns=program.columns,
        budget=budget or spec_budget(spec),
        seed=spec.optimize.seed if seed is None else seed,
        optimizer=spec.optimize.optimizer,
        search=spec.optimize.search,
    )
    source = spec.to_data().get("metric")
    made_for = with_model(spec, target, dtype)
    compiled = compile_task(
        task, metric_source=source, runs=Path(runs or RUNS), fresh=fresh, reporter=reporter, spec=made_for
    )
    compiled.write(output or compiled_path(Path(path)))
    return compiled


def compiled_path(path: Path) -> Path:
    """Where the compiled program of a spec is written: `NAME.compiled.yaml` beside it."""
    stem = path.name.removesuffix(".yaml").removesuffix(".yml").removesuffix(".compiled")
    return path.with_name(f"{stem}.compiled.yaml")


def spec_metric(spec: Spec, *, allow_code: bool = False) -> Metric | None:
    """The spec's metric; None when it names none."""
    given: Any = spec.to_data().get("metric")
    if given is None:
        return None
    return metric_of(given, allow_code=allow_code, path=spec.path, line=spec.line("metric"), folder=spec.folder)


def spec_target(
    spec: Spec,
    target: Target | str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Target:
    """The target to use: the one given, else the spec's `model`, else the default; device and dtype likewise."""
    if isinstance(target, Target):
        return target
    ours = spec.model if target is None else None
    return open_target(
        target or spec_model(spec),
        device=device or (ours.device if ours else None) or "auto",
        dtype=dtype or (ours.dtype if ours else None) or "auto",
        progress=progress,
    )


def spec_model(spec: Spec) -> str:
    """The spec's `model`, as `models.loading.find` takes it; the default where it names none.

    A folder or file beside the spec goes before a name.
    """
    if spec.model is None:
        return DEFAULT_MODEL
    beside = spec.folder / spec.model.id
    return str(beside) if beside.exists() else spec.model.id


def with_model(spec: Spec, target: Target | str | None, dtype: str | None) -> Spec:
    """The spec with the model and the dtype that were given in place of its own. A folder or file as a whole path."""
    if not isinstance(target, str) and dtype is None:
        return spec
    given: dict[str, Any] = spec.model.model_dump(exclude_unset=True) if spec.model else {"id": DEFAULT_MODEL}
    if isinstance(target, str):
        kept = {"options": given["options"]} if "options" in given else {}
        named = target not in CATALOGUE and Path(target).expanduser().exists()
        given = {"id": str(Path(target).expanduser().resolve()) if named else target, **kept}
    if dtype is not None:
        given["dtype"] = dtype
    return spec.model_copy(update={"model": ModelSpec.model_validate(given)})


def spec_budget(spec: Spec) -> Budget:
    """The spec's budget; 2,000 metric calls when it sets none."""
    budget = spec.optimize.budget
    if budget.metric_calls is None and budget.seconds is None:
        return Budget(metric_calls=DEFAULT_METRIC_CALLS)
    return Budget(budget.metric_calls, budget.seconds)


def read_examples(path: Path, program: Graph, *, require_outputs: bool = True) -> Examples:
    """The examples of a file, checked against the program."""
    return load_examples(
        path,
        inputs=program.input_types,
        outputs=program.output_types,
        extra=program.label_types,
        require_outputs=require_outputs,
    )


def spec_examples(spec: Spec, program: Graph) -> dict[str, Examples]:
    """The spec's train, dev and test examples. With `train` alone, dev and test are split off it by the seed."""
    if spec.data is None or not (spec.data.train or spec.data.dev):
        raise InputError(
            "there is no `data:`",
            path=spec.path,
            hint="Name the examples: `data: {train: train.jsonl, dev: dev.jsonl}`.",
        )
    found: dict[str, Examples] = {}
    for name in SPLITS:
        place = getattr(spec.data, name)
        if place is not None:
            found[name] = read_examples(spec.folder / place, program)
    if "dev" not in found:
        parts = split(found["train"], spec.optimize.seed, FRACTIONS if "test" not in found else FRACTIONS[:2])
        found |= dict(zip(SPLITS, parts, strict=False))
    check_disjoint(**found)
    empty = next(iter(found.values()))[:0]
    return {name: found.get(name, empty) for name in SPLITS}
