"""From a YAML spec to a compile: the target, the metric and the examples that the spec names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InputError
from ..metrics import Metric
from ..models.address import is_address, shown
from ..models.catalogue import CATALOGUE
from ..models.pull import Progress
from ..models.server import server_target
from ..models.server.opening import DEFAULT_KEY, api_key
from ..models.target import DEFAULT_MODEL, Target, check_server_options
from ..models.target import target as open_target
from ..optimizers.base import Budget
from ..optimizers.front import FrontRule
from ..optimizers.joint import check_joins, strategy_named
from ..optimizers.stopping import StopRules
from ..programs.graph import Graph, build
from ..programs.schema import ModelSpec, SearchSpec, Spec
from ..programs.spec import load_spec
from .api import compile_task
from .compiled import Compiled
from .data import Examples, check_disjoint, load_examples, split
from .judging import Models, metric_of
from .label_metrics import knowing_labels
from .options import budget_of, check_stop, source_of
from .run_folder import RUNS
from .task import Reporter, Task

SPLITS = ("train", "dev", "test")
FRACTIONS = (0.4, 0.3, 0.3)


def compile_spec(
    path: str | PathLike[str],
    *,
    target: Target | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    budget: Budget | None = None,
    seed: int | None = None,
    fresh: bool = False,
    runs: str | PathLike[str] | None = None,
    allow_outside: bool = False,
    allow_code: bool = False,
    study: str | None = None,
    reporter: Reporter | None = None,
    output: str | PathLike[str] | None = None,
) -> Compiled:
    """Compile a YAML spec and write `NAME.compiled.yaml` beside it (or `output`).

    target, device, dtype, weights: default the spec's `model`, then `smollm2-135m`; a model, dtype or kind of weights
    that is given stands in the compiled program's `model`, since it was compiled for that; budget and seed: default the
    spec's; runs: default `.cuecard/runs` in the current folder; allow_outside: paths may leave the spec's folder;
    allow_code: a metric may be `module:function`; study: where other processes search with this one. Everything is
    checked before the model is opened. Raises `InputError` and `RunError`.
    """
    spec, task = spec_task(
        path,
        target=target,
        device=device,
        dtype=dtype,
        weights=weights,
        budget=budget,
        seed=seed,
        allow_outside=allow_outside,
        allow_code=allow_code,
        study=study,
    )
    compiled = compile_task(
        task,
        metric_source=source_of(task.metric),
        runs=Path(runs or RUNS),
        fresh=fresh,
        reporter=reporter,
        spec=with_model(spec, target, dtype, weights),
    )
    compiled.write(output or compiled_path(Path(path)))
    return compiled


def spec_task(
    path: str | PathLike[str],
    *,
    target: Target | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    budget: Budget | None = None,
    seed: int | None = None,
    allow_outside: bool = False,
    allow_code: bool = False,
    study: str | None = None,
) -> tuple[Spec, Task]:
    """A spec, and the task of its compile, on an opened target. See `compile_spec` for the arguments."""
    spec = load_spec(path, allow_outside=allow_outside, check_files=True)
    program = build(spec)
    metric = spec_metric(spec, allow_code=allow_code)
    if metric is None:
        raise InputError(
            "there is no `metric:`", path=spec.path, hint="Say what is to be optimized: `metric: exact_match`."
        )
    strategy_named(spec.optimize.optimizer)
    shared = None if study is None else check_joins(study, spec.optimize.optimizer)
    stop = StopRules(**spec.optimize.stop.model_dump())
    check_stop(stop, metric, spec.optimize.optimizer, path=spec.path, line=spec.line("optimize", "stop"))
    splits = spec_examples(spec, program)
    return spec, Task(
        name=spec.name,
        program=program,
        metric=knowing_labels(metric, program),
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        target=spec_target(spec, target, device=device, dtype=dtype, weights=weights),
        columns=program.columns,
        budget=budget or spec_budget(spec),
        stop=stop,
        choose=FrontRule(**spec.optimize.choose.model_dump()),
        seed=spec.optimize.seed if seed is None else seed,
        optimizer=spec.optimize.optimizer,
        options=spec.optimize.options,
        search=spec.optimize.search,
        proposer=proposer_of(spec, spec.optimize.search),
        description=spec.description or "",
        study=shared,
    )


def compiled_path(path: Path) -> Path:
    """Where the compiled program of a spec is written: `NAME.compiled.yaml` beside it."""
    stem = path.name.removesuffix(".yaml").removesuffix(".yml").removesuffix(".compiled")
    return path.with_name(f"{stem}.compiled.yaml")


def proposer_of(spec: Spec, search: SearchSpec) -> Target | None:
    """The model that a search asks for instructions, where it names one, opened as the spec's own `model` would be."""
    named = search.instructions.proposer
    return None if named is None else spec_target(spec.model_copy(update={"model": named}))


def spec_metric(spec: Spec, *, allow_code: bool = False) -> Metric | None:
    """The spec's metric; None when it names none."""
    given: Any = spec.to_data().get("metric")
    if given is None:
        return None
    return metric_of(
        given,
        allow_code=allow_code,
        path=spec.path,
        line=spec.line("metric"),
        folder=spec.folder,
        models=judge_models(spec),
        allow_outside=spec.allow_outside,
    )


def judge_models(spec: Spec) -> Models:
    """The models that a spec's judges name: opened as the spec's own `model` would be, each once."""

    def opened(model: str | Mapping[str, Any]) -> Target:
        given = {"id": model} if isinstance(model, str) and not is_address(model) else model
        told = {"server": given} if isinstance(given, str) else given
        try:
            read = ModelSpec.model_validate(told)
        except ValidationError as error:
            first = error.errors()[0]
            expected = first["msg"].removeprefix("Input should be ")
            field = ".".join(map(str, ("judge", "model", *first["loc"])))
            raise InputError(f"found {first['input']!r}", path=spec.path, field=field, expected=expected) from None
        return spec_target(spec.model_copy(update={"model": read}))

    return Models(opened)


def spec_target(
    spec: Spec,
    target: Target | str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Target:
    """The target to use: the one given, else the spec's `model`, else the default; device, dtype, weights likewise.

    A server's address that is given stands in place of the spec's; what else the spec says of its server is kept.
    """
    if isinstance(target, Target):
        return target
    served = spec_server(spec, target)
    if served is not None:
        check_server_options(device, dtype, weights)
        return _open_server(spec, served, told=target is not None)
    ours = spec.model if target is None else None
    return open_target(
        target or spec_model(spec),
        device=device or (ours.device if ours else None) or "auto",
        dtype=dtype or (ours.dtype if ours else None) or "auto",
        weights=weights or (ours.weights if ours else None) or "full",
        progress=progress,
    )


def spec_server(spec: Spec, target: str | None = None) -> ModelSpec | None:
    """The server that the program runs on, by the spec or by the address `target`; None for a model in process."""
    ours = spec.model if spec.model is not None and spec.model.server is not None else None
    if target is None:
        return ours
    if not is_address(target):
        return None
    return ModelSpec.model_validate({**(_given(ours) if ours else {}), "server": target})


def _open_server(spec: Spec, served: ModelSpec, *, told: bool) -> Target:
    """Open a server. `told`: the user has named it, and not the spec, which a stranger may have written."""
    assert served.server is not None, "the caller has looked"
    options = served.server_options
    if not told and served.api_key_env is None:
        _check_default_key(spec, served.server)
    if served.tokenizer is not None:
        options["tokenizer"] = beside(spec, served.tokenizer)
    return server_target(served.server, served.id, **options)


def _check_default_key(spec: Spec, address: str) -> None:
    """Refuse to send a key to a server elsewhere that the spec names, unless it also says which: it would be seen."""
    here = api_key(None, re.sub("^https", "http", address.strip(), flags=re.IGNORECASE), os.environ)
    if here is None and api_key(None, address, os.environ) is not None:
        raise InputError(
            f"the spec does not say which key {shown(address)} gets, and ${DEFAULT_KEY} is set",
            path=spec.path,
            line=spec.line("model"),
            field="model.server",
            expected=f"api_key_env: {DEFAULT_KEY}, if it is that one",
            hint=f"For another, name its variable; for none, unset {DEFAULT_KEY}; or give the address with --model.",
        )


def spec_model(spec: Spec) -> str:
    """The spec's `model`, as `models.loading.find` takes it; the default where it names none."""
    return DEFAULT_MODEL if spec.model is None or spec.model.id is None else beside(spec, spec.model.id)


def beside(spec: Spec, name: str) -> str:
    """A folder or file beside the spec, which goes before a name."""
    place = spec.folder / name
    return str(place) if place.exists() else name


def _given(model: ModelSpec) -> dict[str, Any]:
    """The keys of a spec's `model` that are given."""
    return {key: getattr(model, key) for key in ModelSpec.model_fields if key in model.model_fields_set}


def with_model(spec: Spec, target: Target | str | None, dtype: str | None, weights: str | None = None) -> Spec:
    """The spec with the model, the dtype and the kind of weights that were given in place of its own. A folder or file
    as a whole path.
    """
    if isinstance(target, Target) or (target is None and dtype is None and weights is None):
        return spec  # an opened target is what it is
    given: dict[str, Any] = _given(spec.model) if spec.model else {"id": DEFAULT_MODEL}
    if isinstance(target, str) and is_address(target):
        served = spec_server(spec, target)
        assert served is not None, "an address is a server's"
        given = {**({"options": given["options"]} if "options" in given else {}), **_given(served)}
    elif isinstance(target, str):
        kept = {"options": given["options"]} if "options" in given else {}
        named = target not in CATALOGUE and Path(target).expanduser().exists()
        given = {"id": str(Path(target).expanduser().resolve()) if named else target, **kept}
    if "server" not in given:
        told = {"dtype": dtype, "weights": weights}
        given |= {key: value for key, value in told.items() if value is not None}
    return spec.model_copy(update={"model": ModelSpec.model_validate(given)})


def spec_budget(spec: Spec) -> Budget:
    """The spec's budget; 2,000 metric calls when it sets none."""
    return budget_of(spec.optimize.budget)


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
