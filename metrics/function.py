"""A Python function as a metric, DSPy's kind included, and finding one by `module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError, nearest
from .base import Measurement, Metric, Record

_MOST_FURTHER = 3  # GEPA's metrics take five: example, prediction, trace, the predictor's name and its trace.


class FunctionMetric(Metric):
    """`function(example, prediction)` or DSPy's `function(example, prediction, trace=None)` as a metric.

    The function gives a bool, a number, or a `dspy.Prediction` with a `score`, within `low`..`high`. It is given what
    `measure` is given, with plain mappings made a `dspy.Example` and a `dspy.Prediction`, so that both `x["answer"]`
    and `x.answer` work. What it raises, and a result that is no finite number in the range, is an `InputError`: a
    defect in a metric must not pass for a bad score.
    """

    def __init__(self, function: Callable[..., Any], *, name: str = "", low: float = 0.0, high: float = 1.0) -> None:
        """`name` defaults to the function's own. Raises `InputError` when it cannot be called with two values."""
        self.name = name or getattr(function, "__name__", type(function).__name__)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(f"metric {self.name!r} has the range {low!r} to {high!r}", expected="finite low < high")
        self.low, self.high = float(low), float(high)
        self.function = function
        self._rest = _further_arguments(function, self.name)

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """See `Metric.measure`."""
        example, prediction = _as_dspy(example, "Example"), _as_dspy(prediction, "Prediction")
        try:
            result = self.function(example, prediction, *self._rest)
        except Exception as error:
            path, line = _where(error)
            message = f"metric {self.name!r} raised {type(error).__name__}: {error}"
            raise InputError(message, path=path, line=line) from error
        return Measurement(self._number(result))

    def _number(self, result: Any) -> float:
        try:
            # str and bytes have no __float__, though float() takes them: a score must be a number already.
            score = float(result) if hasattr(result, "__float__") else math.nan
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise InputError(f"metric {self.name!r} returned {result!r}", expected="a bool or a finite number")
        if not self.low <= score <= self.high:
            raise InputError(
                f"metric {self.name!r} returned {score!r}",
                expected=f"a number from {self.low:g} to {self.high:g}",
                hint="Declare another range with the options `low` and `high`.",
            )
        return score


def _further_arguments(function: Callable[..., Any], name: str) -> tuple[None, ...]:
    """None for each argument required after the first two; DSPy, too, passes `trace=None` when it evaluates."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ()  # Some builtins have no signature to look at; the call itself will tell.
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind in positional]
    rest = (None,) * min(len(required) - 2, _MOST_FURTHER)
    try:
        signature.bind(None, None, *rest)
    except TypeError:
        raise InputError(
            f"metric {name!r} takes {signature}", expected="(example, prediction) or (example, prediction, trace=None)"
        ) from None
    return rest


def _as_dspy(record: Record, kind: str) -> Record:
    if not isinstance(record, Mapping):
        return record
    import dspy

    made: Record = getattr(dspy, kind)(dict(record))
    return made


def _where(error: Exception) -> tuple[str | None, int | None]:
    """File and line, within the file that defines the metric, at which it failed."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # The first frame is the call in `measure`.
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return (own[-1].filename, own[-1].lineno) if own else (None, None)


def load(reference: str, folder: Path | None = None) -> Any:
    """Import `module:attribute` and hand back the attribute. Runs the module's code.

    The module is looked for in `folder` first, then where Python looks. Raises `InputError` when it is not there, when
    importing it fails, or when it has no such attribute.
    """
    module_name, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise InputError(f"{reference!r} is not a reference to a function", expected="module:function")
    try:
        with _importable(folder):
            module = _import(module_name, folder)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            where = "" if folder is None else f" in {folder} or"
            raise InputError(f"there is no module {error.name!r}{where} where Python looks") from None
        raise InputError(f"importing {module_name!r} failed with {type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        message = f"module {module_name!r} has no {attribute!r}"
        raise InputError(message, nearest=nearest(attribute, public)) from None


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """Let the modules in `folder` import each other while one of them is imported."""
    if folder is None:
        yield
        return
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _import(name: str, folder: Path | None) -> ModuleType:
    """Import `name`; a file in `folder` wins over a module of the same name that is already imported from elsewhere."""
    file = None if folder is None or "." in name else (folder / f"{name}.py").resolve()
    if file is None or not file.is_file():
        return importlib.import_module(name)
    private = f"_cuecard_{name}_{sha256(str(file).encode()).hexdigest()[:12]}"
    if private in sys.modules:
        return sys.modules[private]
    spec = importlib.util.spec_from_file_location(private, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[private]
        raise
    return module
