"""An optimizer of DSPy by its name (`dspy.MIPROv2`), with its own arguments, on our evaluation and budget.

The optimizer gets the program as a `Student`, a metric that looks up what the evaluator measured, and the target as its
LM. When the budget is spent, or the optimizer breaks (some do with a small model), the best program that it had run is
taken. What is taken is instruction and demos by predictor; everything else stays as the program has it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TextIO

import dspy
import numpy as np
from dspy.teleprompt import Teleprompter

from ..errors import CuecardError, InputError, nearest
from ..seeds import derive_seed
from .base import Budget, Candidate, Evaluator, Outcome, Row
from .student import Ended, Student, Watch, candidate_of

PREFIX = "dspy."
MOST_ERRORS = 10**9  # an answer that can't be read is a score here, and no error that ends everything
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "BetterTogether": "it is a sequence of other optimizers",
        "BootstrapFinetune": "it changes the model's weights",
        "Ensemble": "what it makes is several programs",
        "KNNFewShot": "it bootstraps anew at every call; `knn_few_shot` does without",
        "AvatarOptimizer": "it is for programs of DSPy's class Avatar alone",
    }
)
OURS = frozenset({"self", "student", "trainset", "valset", "metric", "num_threads", "max_errors"})
OBJECTS = frozenset({"teacher", "teacher_settings", "prompt_model", "task_model", "reflection_lm", "optimizers",
                     "instruction_proposer", "code_proposer", "component_selector", "eval_kwargs", "gepa_kwargs",
                     "log_dir", "use_wandb", "wandb_api_key", "wandb_init_kwargs", "use_mlflow", "train_kwargs",
                     "optimizer_compile_args", "warn_on_score_mismatch", "use_cloudpickle", 
                     "requires_permission_to_run", "provide_traceback", "callbacks"})  # fmt: skip
MODELS = ("prompt_model", "task_model", "reflection_lm")


def is_foreign(name: str) -> bool:
    """Whether an optimizer's name is that of a class of DSPy."""
    return name.startswith(PREFIX)


def teleprompter_named(name: str) -> type[Teleprompter]:
    """DSPy's class of the name `dspy.NAME`. Raises `InputError`."""
    known = _classes()
    bare = name.removeprefix(PREFIX)
    if bare in REFUSED and hasattr(dspy.teleprompt, bare):
        raise InputError(f"{name} cannot be used: {REFUSED[bare]}", field="optimize.optimizer")
    if bare not in known:
        names = [f"{PREFIX}{each}" for each in known]
        raise InputError(
            f"DSPy has no optimizer {bare!r}",
            field="optimize.optimizer",
            expected=f"one of {', '.join(names)}",
            nearest=nearest(name, names),
        )
    return known[bare]


def _classes() -> dict[str, type[Teleprompter]]:
    found = {}
    for name in sorted(dspy.teleprompt.__all__):
        made = getattr(dspy.teleprompt, name, None)
        if inspect.isclass(made) and issubclass(made, Teleprompter) and name not in REFUSED:
            found[name] = made
    return found


def _parameters(made: type[Teleprompter]) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """The parameters of a class's `__init__` (those of its bases too, where it passes others on) and `compile`."""
    begun: dict[str, inspect.Parameter] = {}
    for each in made.__mro__:
        if "__init__" not in vars(each) or each is object:
            continue
        given = inspect.signature(each.__init__).parameters  # type: ignore[misc]
        begun = {**given, **begun}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in given.values()):
            break
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    both = (begun, dict(inspect.signature(made.compile).parameters))
    first, second = ({name: p for name, p in part.items() if p.kind in named and name != "self"} for part in both)
    return first, second


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise `InputError` for an argument that the class does not take, or that is not the user's to give."""
    begun, asked = _parameters(teleprompter_named(name))
    names = sorted(({*begun} | {*asked}) - OURS - OBJECTS)
    for argument in arguments:
        if argument not in names:
            given = argument in OURS | OBJECTS
            message = f"{name} is given its {argument!r}" if given else f"{name} takes no {argument!r}"
            near = None if given else nearest(argument, names)
            expected = f"one of {', '.join(names)}" if names else "no argument"
            raise InputError(message, field="optimize.optimizer", expected=expected, nearest=near)


@dataclass(frozen=True)
class Found:
    """What an optimizer came to.

    stopped_by: `finished`, `unchanged` (it gave the program back as it was), a limit of the budget, `file`, `interrupt`
    or `crashed`; reason: why, where there is more to say; ticks: how many steps it made, to stop there again; complete:
    the candidates that ran on all of dev, with their outcomes.
    """

    candidate: Candidate
    stopped_by: str
    ticks: int
    complete: tuple[tuple[Candidate, Sequence[Outcome]], ...]
    reason: str | None = None


# ---- the run


def run_teleprompter(
    name: str,
    arguments: Mapping[str, Any],
    program: dspy.Module,
    evaluator: Evaluator,
    lm: dspy.LM,
    *,
    train: Sequence[Row],
    dev: Sequence[Row],
    baseline: Candidate,
    budget: Budget,
    seed: int,
    log: TextIO,
    until: int | None = None,
    asked: Callable[[int], str | None] = lambda ticks: None,
) -> Found:
    """Run DSPy's optimizer `name` on `program`; what it prints goes to `log`.

    Raises `InputError` for its arguments, and what ends every run (a dead engine, a metric that breaks); anything else
    that goes wrong is told in what it returns.
    """
    check_arguments(name, arguments)
    watch = Watch(evaluator, (train, dev), baseline, budget, until, asked)
    student = Student(program.deepcopy(), watch)
    own = _Asked(lm, watch)
    made = teleprompter_named(name)
    stopped_by, reason, candidate = "finished", None, baseline
    try:
        with (
            kept_output(log),
            _alone(seed),
            dspy.context(lm=own.lm, num_threads=1, max_errors=MOST_ERRORS, callbacks=[]),
        ):
            optimizer, call = _built(made, dict(arguments), watch, own.lm, len(train), seed)
            result = optimizer.compile(student, **call)
        if not isinstance(result, Student):
            raise TypeError(f"it gave a {type(result).__name__} for a program")
        candidate = candidate_of(result.program, baseline)
        if candidate.digest == candidate_of(program, baseline).digest:
            stopped_by, reason = "unchanged", f"{name} gave the program back as it was; optimizer.log may say why"
    except Ended as ended:
        if ended.error is not None:
            raise ended.error from None
        stopped_by, candidate = ended.reason, watch.best()
    except CuecardError:
        raise
    except Exception as error:
        stopped_by, reason = "crashed", f"{name} broke: {type(error).__name__}: {_line(error)}"
        candidate = watch.best()
    return Found(candidate, stopped_by, watch.ticks, tuple(watch.complete(dev)), reason)


def _built(
    made: type[Teleprompter], given: dict[str, Any], watch: Watch, lm: Any, trained: int, seed: int
) -> tuple[Teleprompter, dict[str, Any]]:
    """The optimizer, and what its `compile` is called with besides the student."""
    begun, asked = _parameters(made)
    ours: dict[str, Any] = {
        "metric": metric_for(watch),
        "num_threads": 1,
        "seed": derive_seed(seed, "teleprompter") % 2**31,
        **dict.fromkeys(MODELS, lm),
    }
    call: dict[str, Any] = {"trainset": watch.examples[:trained], "valset": watch.examples[trained:]}
    call |= {name: value for name, value in given.items() if name in asked and name not in begun}
    if "seed" in asked and "seed" not in begun:
        call.setdefault("seed", ours["seed"])
    settings = {name: value for name, value in ours.items() if name in begun}
    settings |= {name: value for name, value in given.items() if name in begun}
    limits = {"auto", "max_full_evals", "max_metric_calls"}
    if limits <= {*begun} and not limits & {*given}:  # GEPA's, which wants one of them
        left = None if watch.budget.metric_calls is None else watch.budget.metric_calls - watch.evaluator.spent
        settings |= {"auto": "light"} if left is None else {"max_metric_calls": max(1, left)}
    return made(**settings), {name: value for name, value in call.items() if name in asked}


def metric_for(watch: Watch) -> Callable[..., Any]:
    """The metric that the optimizer is given: the score that the evaluator has measured. GEPA, which asks for a
    predictor by name, is also told in words what was wanted.
    """

    def metric(example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        outcome = getattr(prediction, "_outcome", None)
        if outcome is None or outcome.measurement is None:
            raise ValueError("the program gave no answer")
        score = outcome.measurement.score
        if pred_name is None:
            return score
        wanted = ", ".join(f"{name}: {value}" for name, value in outcome.row.labels.items())
        told = f"The answer could not be read: {outcome.unread}. " if outcome.unread else ""
        return dspy.Prediction(score=score, feedback=f"{told}The score is {score:g}. Wanted was {wanted}.")

    return metric


class _Asked:
    """The LM for the optimizer's own questions: each is a step, after which it may be stopped."""

    def __init__(self, lm: dspy.LM, watch: Watch) -> None:
        self.lm = lm.copy(engine=_Bridge(lm.engine, watch))


class _Bridge:
    """DSPy's engine contract over ours, with the watch asked first."""

    def __init__(self, bridge: Any, watch: Watch) -> None:
        self._bridge, self._watch = bridge, watch

    def __deepcopy__(self, memo: object) -> _Bridge:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bridge, name)

    def complete(self, request: Any) -> Any:
        """See `EngineBridge.complete`."""
        self._watch.tick()
        return self._bridge.complete(request)


@contextlib.contextmanager
def kept_output(log: TextIO) -> Iterator[None]:
    """What DSPy prints and logs goes to `log` instead of the screen."""
    loggers = [logging.getLogger("dspy"), logging.getLogger("gepa")]
    handler = logging.StreamHandler(log)
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


@contextlib.contextmanager
def _alone(seed: int) -> Iterator[None]:
    """Python's and numpy's shared generators seeded, which some optimizers draw from, and put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _line(error: BaseException) -> str:
    """What an error says; where it says nothing, which line raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].name}: {frames[-1].line}" if frames else "no more is known"
    return " ".join((str(error) or where).split())
