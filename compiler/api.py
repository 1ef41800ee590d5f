"""The Python API: load and compile (`scoring.py` evaluates).

>>> import cuecard
>>> program = cuecard.load("ticket_triage.yaml", target="smollm2-135m")
>>> program(ticket="I was charged twice").queue
'billing'
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import dspy

from ..errors import InputError, nearest
from ..models.target import Target
from ..optimizers.base import Budget, Row, Trial
from ..optimizers.front import FrontRule
from ..optimizers.joint import check_joins
from ..optimizers.shared import check_study
from ..optimizers.stopping import StopRules
from ..optimizers.told import ADDRESS
from ..programs.graph import Graph, build
from ..programs.heads import check_target
from ..programs.learned import apply_spec
from ..programs.predictor import adopt
from ..programs.schema import SearchSpec, Spec
from ..programs.spec import load_spec
from ..programs.state import PredictorState
from ..signatures import field_types
from .compiled import VERSIONS, Compiled, _version
from .data import Examples, check_disjoint
from .evaluator import candidate_of, predictors_of, same_names
from .given import Data, MetricLike, Program, check_program, checked_examples, opened_target, split_dev
from .judging import judge_files, metric_of
from .label_metrics import knowing_labels
from .options import check_options, check_stop, optimize_options, source_of
from .pipeline import run_task
from .run_folder import RUNS, RunFolder, fingerprint, open_run
from .stopping import WISHES
from .task import Reporter, Task
from .undeclared import undeclared_labels

logger = logging.getLogger("cuecard")

AFTER = ("votes", "recalibrate")  # of `search`: what is tried after it


class Silent:
    """A reporter that says nothing."""

    def begin(self, task: Task, folder: RunFolder, recorded: int) -> None:
        """See `Reporter.begin`."""

    def phase(self, name: str, share: float) -> None:
        """See `Reporter.phase`."""

    def runs(self, done: int, seconds: float) -> None:
        """See `Reporter.runs`."""

    def trial(self, trial: Trial, share: float, seconds: float) -> None:
        """See `Reporter.trial`."""

    def stopping(self, reason: str) -> None:
        """See `Reporter.stopping`. It is said all the same: else nobody would know what a key did."""
        logger.warning("the search stops after the block that is running (%s)", WISHES[reason])


def load(
    path: str | PathLike[str],
    *,
    program: Program | None = None,
    target: Target | str | None = None,
    allow_outside: bool = False,
) -> Program:
    """The program of a YAML spec or of a compiled file. Loading runs no code and opens no model but `target`.

    program: the Python program, for a file that was compiled from one; target: where it runs (a `Target`, or a model's
    name); without one, on the LM that DSPy is configured with. Raises `InputError`.
    """
    spec = load_spec(path, allow_outside=allow_outside)
    if program is not None:
        check_program(program)
        loaded = apply_spec(spec, program)
    elif spec.predictors and not spec.steps:
        raise InputError(
            "this file was compiled from a Python program, which it does not hold",
            path=path,
            hint="Give the program: cuecard.load(path, program=MyProgram()).",
        )
    else:
        loaded = build(spec)
    if target is not None:
        opened = opened_target(target)
        readouts = [part.readout for part in predictors_of(loaded).values()]
        check_target(readouts, opened.engine, spec.compiled.target if spec.compiled else None, spec.path)
        loaded.set_lm(opened.lm)
    return loaded


def compile(
    program: Program | str | PathLike[str],
    *,
    trainset: Data = (),
    devset: Data = (),
    testset: Data = (),
    metric: MetricLike | None = None,
    target: Target | str | None = None,
    budget: Budget | Mapping[str, float] | None = None,
    stop: StopRules | Mapping[str, float] | None = None,
    choose: FrontRule | Mapping[str, float] | None = None,
    seed: int | None = None,
    search: SearchSpec | Mapping[str, Any] | None = None,
    optimizer: str | Mapping[str, Any] | None = None,
    name: str | None = None,
    runs: str | PathLike[str] = RUNS,
    fresh: bool = False,
    study: str | None = None,
    reporter: Reporter | None = None,
) -> Compiled:
    """Compile a program: search for the prompts and settings with which the target does the task best.

    program: any `dspy.Module`, or the path of a YAML spec (see `compile_spec` for what is then read from it);
    trainset, devset, testset: lists of `dspy.Example`, `Examples`, or paths; without a devset, dev is split off the
    trainset; metric: a name, a mapping, a list, a `Metric` or a function `(example, prediction)`; target: default the
    pulled `smollm2-135m`; budget: `{"metric_calls": 2000, "seconds": 600}`, also `model_calls` and `tokens`, whichever
    comes first; stop: `{"score": 0.9, "trials_without_gain": 40}`, what ends the search before; choose:
    `{"at_least": 0.6}` for the shortest prompts with that dev score, or `{"at_most_tokens": 400}`; seed: default 0, or
    the spec's; search: the keys of the spec's `search`; optimizer: default `joint`; name: of the run and the file,
    default the program's class; runs: the folder of run folders; fresh: start anew even if an unfinished run could be
    resumed; study: where other processes search with this one, `sqlite:///study.db`, a server's database or a journal
    file. No row may stand in two of the sets.

    Returns the compiled program, a callable `dspy.Module`; `.write(path)` keeps it. The baseline stays what it was
    where no candidate beats it by a paired test. Raises `InputError` for wrong input, `RunError` when the run fails;
    the same call resumes it then.

    >>> compiled = cuecard.compile(program, trainset=train, devset=dev, metric="exact_match", budget={"seconds": 300})
    >>> compiled(question="How tall is Ben Nevis?").label
    """
    if isinstance(program, str | PathLike):
        data = {"trainset": trainset, "devset": devset, "testset": testset}
        _refuse(**data, metric=metric, stop=stop, choose=choose, search=search, optimizer=optimizer, name=name)
        from .from_spec import compile_spec

        return compile_spec(
            program,
            target=target,
            budget=optimize_options(budget, 0, None, "joint")[1] if budget else None,
            seed=seed,
            fresh=fresh,
            runs=runs,
            study=study,
            reporter=reporter,
        )
    check_program(program)
    if metric is None:
        raise InputError("a compile needs a metric", expected="metric='exact_match', a function, ...")
    options, limits = optimize_options(budget, seed or 0, search, optimizer or "joint", stop, choose)
    program = program.program if isinstance(program, Compiled) else program
    name = name or type(program).__name__.lower()
    check_options(name, options.optimizer, options.search, options.options)
    shared = None if study is None else check_joins(study, options.optimizer)
    adopted = program if isinstance(program, Graph) else adopt(program, PredictorState(format="dspy"))
    train, dev, test = _splits((trainset, devset, testset), adopted, options.seed)
    task = Task(
        name=name,
        program=adopted,
        metric=knowing_labels(metric_of(metric), adopted),
        train=train,
        dev=dev,
        test=test,
        target=opened_target(target),
        columns=same_names(adopted) if not isinstance(adopted, Graph) else adopted.columns,
        budget=limits,
        stop=StopRules(**options.stop.model_dump()),
        choose=FrontRule(**options.choose.model_dump()),
        seed=options.seed,
        optimizer=options.optimizer,
        options=options.options,
        search=options.search,
        proposer=_proposer(options.search),
        study=shared,
    )
    return compile_task(task, metric_source=source_of(metric), runs=Path(runs), fresh=fresh, reporter=reporter)


def _proposer(search: SearchSpec) -> Target | None:
    """The model that is asked for instructions, where it is not the target."""
    from .from_spec import proposer_of

    return proposer_of(Spec(), search)


def _refuse(**given: Any) -> None:
    """Raise `InputError` for an argument beside a spec's path, which would be overlooked."""
    superfluous = next((key for key, value in given.items() if value not in (None, ())), None)
    if superfluous is not None:
        raise InputError(f"{superfluous} stands in the spec", hint="Change the spec, or load the program first.")


def _splits(data: Sequence[Data], program: Program, seed: int) -> tuple[Examples, Examples, Examples]:
    """The train, dev and test examples. No row stands in two of them."""
    train, dev, test = (checked_examples(part, program) for part in data)
    if not dev:
        train, dev = split_dev(train, seed)
    check_disjoint(train=train, dev=dev, test=test)
    return train, dev, test


def compile_task(
    task: Task,
    *,
    metric_source: Any,
    runs: Path,
    fresh: bool = False,
    reporter: Reporter | None = None,
    spec: Spec | None = None,
) -> Compiled:
    """Compile a task in its run folder, a new one or the unfinished one of the same fingerprint."""
    check_task(task)
    signatures = {name: part.signature for name, part in predictors_of(task.program).items()}
    for line in undeclared_labels(signatures, task.columns, task.train, task.dev):
        logger.warning(line)
    identity = _identity_of(task, metric_source)
    of = {} if task.study is None else _study_of(identity)
    if task.study is not None:
        check_study(task.study, task.name, of)
    digest = fingerprint(identity)
    folder = open_run(runs, task.name, digest, fresh=fresh, shared=task.study is not None)
    marked = Task(**{**vars(task), "fingerprint": digest, "study_of": of})
    return Compiled(run_task(marked, folder, reporter or Silent()), spec)


def check_task(task: Task) -> None:
    """Raise `InputError` for what would make a compile meaningless."""
    check_options(task.name, task.optimizer, task.search, task.options)
    check_stop(task.stop, task.metric, task.optimizer)
    if task.study is not None:
        check_joins(task.study.text, task.optimizer)
    if not predictors_of(task.program):
        raise InputError("the program calls no model: it has no predictors")
    _check_texts(task.search.instructions.texts, list(predictors_of(task.program)))
    if not task.dev:
        raise InputError("a compile needs dev examples", hint="Give a devset, or a trainset of at least four rows.")


def _check_texts(texts: Sequence[str] | Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """Raise `InputError` for other wordings that belong to no predictor, or to nobody knows which."""
    field = "optimize.search.instructions.texts"
    if not isinstance(texts, Mapping):
        if texts and len(names) > 1:
            message = f"found a list for a program with the predictors {', '.join(names)}"
            raise InputError(message, field=field, expected="{PREDICTOR: [TEXT, ...]}")
        return
    unknown = next((name for name in texts if name not in names), None)
    if unknown is not None:
        message, expected = f"the program has no predictor {unknown!r}", f"one of {', '.join(names)}"
        raise InputError(message, field=field, expected=expected, nearest=nearest(unknown, names))


def _identity_of(task: Task, metric_source: Any) -> dict[str, Any]:
    predictors = predictors_of(task.program)
    return {
        "program": {name: _signature_text(part.signature) for name, part in predictors.items()},
        "shape": repr(type(task.program)),
        "states": {name: state.model_dump(mode="json") for name, state in candidate_of(task.program).states.items()},
        "metric": metric_source,
        **({"judges": files} if (files := judge_files(task.metric)) else {}),
        "data": [[_row_text(row) for row in rows] for rows in (task.train, task.dev, task.test)],
        "target": task.target.engine.identity,
        "budget": asdict(task.budget),
        "stop": asdict(task.stop),
        "choose": asdict(task.choose),
        "seed": task.seed,
        "optimizer": task.optimizer,
        "options": dict(task.options),
        "proposer": None if task.proposer is None else task.proposer.engine.identity,
        "description": task.description,
        "search": task.search.model_dump(mode="json"),
        "columns": {name: dict(fields) for name, fields in task.columns.items()},
        "versions": {name: _version(name) for name in VERSIONS},
        **({} if task.study is None else {"study": task.study.shown}),
    }


def _study_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """What processes must agree in that share a study, by the `PARTS` of one: not their budgets and rules, nor what is
    tried after the search.
    """
    search = {name: value for name, value in identity["search"].items() if name not in AFTER}
    names = ("program", "shape", "states", "description", "columns")
    parts = {
        "program": {name: identity[name] for name in names},
        "data": identity["data"][:2],
        "metric": [identity["metric"], identity.get("judges")],
        "target": identity["target"],
        "search": [search, identity["proposer"]],
    }
    return {**{name: fingerprint({"": part})[:16] for name, part in parts.items()}, "seed": str(identity["seed"])}


def _signature_text(signature: type[dspy.Signature]) -> str:
    """What a signature's fields are, the same in every process: no function in a type goes by its address."""
    types = {name: ADDRESS.sub("", repr(type_)) for name, type_ in field_types(signature).items()}
    return repr({name: (types[name], field.json_schema_extra) for name, field in signature.fields.items()})


def _row_text(row: Row) -> str:
    return repr((sorted(row.inputs.items()), sorted(row.labels.items())))
