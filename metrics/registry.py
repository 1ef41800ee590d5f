"""From what a spec says to a metric: by name, by `module:function`, as a mapping with options, as a weighted list.

A metric's options are the keyword parameters of its factory, with their types. Other packages add metrics through the
entry-point group `cuecard.metrics`: each entry point names a `Metric` subclass, or a function with annotated keyword
parameters that returns a `Metric`; a parameter `fields: tuple[str, ...] = ()` makes it take `field` and `fields`. The
names of the built-in metrics cannot be taken.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from ..errors import InputError, nearest
from .base import Metric
from .calibration import CalibrationError
from .corpus import Bleu, Chrf, Ter
from .edit import Levenshtein
from .embedding import Similarity
from .extraction import SetF1, SpanF1
from .function import FunctionMetric, load
from .json_fields import JsonFields
from .labels import Accuracy, MacroF1, Mcc
from .matching import F1, ExactMatch
from .numeric import Numeric
from .patterns import Contains, Length, Regex
from .rouge import Rouge1, Rouge2, RougeL, RougeLsum
from .weighted import Weighted

GROUP = "cuecard.metrics"

Factory = Callable[..., Metric]

_KINDS: tuple[type[Metric], ...] = (
    *(ExactMatch, F1, Contains, Regex, Length, Levenshtein, Similarity, Numeric),
    *(Accuracy, MacroF1, Mcc, CalibrationError, JsonFields, SetF1, SpanF1),
    *(Rouge1, Rouge2, RougeL, RougeLsum, Bleu, Chrf, Ter),
)
_BUILT_IN: Mapping[str, Factory] = MappingProxyType({kind.name: kind for kind in _KINDS})
_COMPOSED = ("python", "weighted")


@dataclass(frozen=True)
class _Context:
    """Where a metric's spec stands, and what it may do."""

    allow_code: bool
    folder: Path | None
    path: str | PathLike[str] | None
    line: int | None
    key: str = "metric"
    extra: Mapping[str, Factory] = field(default_factory=dict)

    def fail(self, message: str, **parts: Any) -> NoReturn:
        raise self.error(message, **parts)

    def error(self, message: str, **parts: Any) -> InputError:
        return InputError(message, path=self.path, line=self.line, field=self.key, **parts)


def names() -> tuple[str, ...]:
    """The names that `metric` knows, sorted: built-in metrics and those of installed packages."""
    return tuple(sorted({*_BUILT_IN, *_COMPOSED, *_plugins()}))


def metric(
    spec: Any,
    *,
    allow_code: bool = False,
    path: str | PathLike[str] | None = None,
    line: int | None = None,
    folder: str | PathLike[str] | None = None,
    extra: Mapping[str, Factory] | None = None,
) -> Metric:
    """The metric that `spec` describes. `extra`: metrics by name beside those that `names` lists.

    `spec` is one of:
    - a name, such as `"rouge_l"`; `names()` lists them;
    - `"module:function"`, a Python function of (example, prediction), imported only when `allow_code` is true, from
      `folder` (by default the folder of `path`) or from where Python looks;
    - a mapping: `{"metric": "rouge_l", "field": "answer", "weight": 1, "use_stemmer": True}`; `fields` names several;
    - a list of these: their weighted sum, the weights normalised;
    - a callable in DSPy's style, `(example, prediction, trace=None)`, or a `Metric`.

    Raises `InputError` that tells `path` and `line` and the nearest valid name.
    """
    if folder is None and path is not None:
        folder = Path(path).parent
    place = None if folder is None else Path(folder)
    return _read(spec, _Context(allow_code, place, path, line, extra=extra or {}))


def _read(spec: Any, context: _Context) -> Metric:
    if isinstance(spec, Mapping):
        return _from_mapping(spec, context)
    if isinstance(spec, list | tuple):
        return _from_list(spec, context)
    return _make(spec, {}, context)


def _from_mapping(spec: Mapping[str, Any], context: _Context) -> Metric:
    if "metric" not in spec:
        near = nearest("metric", [key for key in spec if isinstance(key, str)])
        found = f"found {near!r} instead" if near else "the key 'metric' is missing"
        context.fail(found, expected="{metric: NAME, ...}")
    _weight(spec, context)
    options = {key: value for key, value in spec.items() if key not in ("metric", "weight")}
    return _make(spec["metric"], options, context)


def _from_list(specs: Sequence[Any], context: _Context) -> Metric:
    if not specs:
        context.fail("the list of metrics is empty", expected="at least one metric")
    places = [replace(context, key=f"{context.key}[{i}]") for i in range(len(specs))]
    weights = [_weight(spec, place) for spec, place in zip(specs, places, strict=True)]
    parts = [_read(spec, place) for spec, place in zip(specs, places, strict=True)]
    return parts[0] if len(parts) == 1 else Weighted(parts, weights)


def _weight(spec: Any, context: _Context) -> float:
    weight = spec.get("weight", 1.0) if isinstance(spec, Mapping) else 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not (math.isfinite(weight) and weight > 0):
        context.fail(f"the weight {weight!r} cannot be used", expected="a number above 0")
    return float(weight)


def _make(kind: Any, options: Mapping[str, Any], context: _Context) -> Metric:
    """The metric that `kind` (a name, a reference, a callable or a metric) and its options describe."""
    if isinstance(kind, Metric):
        return _call(kind.name, lambda: kind, options, context)
    if isinstance(kind, type) and issubclass(kind, Metric):
        return _call(kind.__name__, kind, options, context)
    if isinstance(kind, str):
        return _by_name(kind, options, context)
    if callable(kind):
        return _function(kind, "", options, context)
    context.fail(
        f"{kind!r} is not a metric", expected="a name, 'module:function', a mapping with the key 'metric', or a list"
    )


def _by_name(name: str, options: Mapping[str, Any], context: _Context) -> Metric:
    if ":" in name:
        return _code(name, options, context)
    if name == "python":

        def python(*, function: str) -> Metric:
            return _code(function, rest, context)

        rest = {key: value for key, value in options.items() if key != "function"}
        return _call(name, python, {key: value for key, value in options.items() if key == "function"}, context)
    if name == "weighted":

        def weighted(*, metrics: list[Any]) -> Metric:
            return _from_list(metrics, replace(context, key=f"{context.key}.metrics"))

        return _call(name, weighted, options, context)
    factory = _BUILT_IN.get(name) or context.extra.get(name)
    if factory is None:
        plugins = _plugins()
        if name not in plugins:
            known = sorted({*names(), *context.extra})
            message = f"there is no metric {name!r}"
            context.fail(message, expected=f"one of {', '.join(known)}", nearest=nearest(name, known))
        factory = _load_plugin(plugins[name], context)
    return _call(name, factory, options, context)


def _code(reference: str, options: Mapping[str, Any], context: _Context) -> Metric:
    """The metric behind `module:function`: a function, or a `Metric` or a subclass of it."""
    if not context.allow_code:
        context.fail(
            f"{reference!r} is Python code, which is only run when you allow it",
            hint="Pass `--allow-code` (in Python, `allow_code=True`) if you trust it.",
        )
    try:
        found = load(reference, context.folder)
    except InputError as error:
        raise context.error(error.message, expected=error.expected, nearest=error.nearest) from error.__cause__
    if isinstance(found, Metric) or (isinstance(found, type) and issubclass(found, Metric)):
        return _make(found, options, context)
    if not callable(found):
        context.fail(f"{reference!r} is {found!r}", expected="a function of (example, prediction)")
    return _function(found, reference, options, context)


def _function(function: Callable[..., Any], name: str, options: Mapping[str, Any], context: _Context) -> Metric:
    def factory(*, low: float = 0.0, high: float = 1.0) -> Metric:
        return FunctionMetric(function, name=name, low=low, high=high)

    return _call(name or getattr(function, "__name__", type(function).__name__), factory, options, context)


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load_plugin(point: EntryPoint, context: _Context) -> Factory:
    try:
        factory: Factory = point.load()
    except Exception as error:
        package = point.dist.name if point.dist else "an installed package"
        message = f"metric {point.name!r} of {package} cannot be loaded: {type(error).__name__}: {error}"
        raise context.error(message) from error
    return factory


def _call(name: str, factory: Factory, options: Mapping[str, Any], context: _Context) -> Metric:
    """Call `factory` with `options`, after checking their names and types against its parameters."""
    parameters = inspect.signature(factory, eval_str=True).parameters
    values = {}
    for key, value in _with_fields(options, context).items():
        if key not in parameters:
            valid = _spoken(parameters)
            near = nearest(str(key), valid)
            expected = f"one of {', '.join(valid)}" if valid else "no options"
            written = "field" if key == "fields" and "field" in options else key
            context.fail(f"metric {name!r} has no option {written!r}", expected=expected, nearest=near)
        values[key] = _typed(name, key, value, parameters[key].annotation, context)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in values:
            context.fail(f"metric {name!r} needs the option {key!r}")
    try:
        made = factory(**values)
    except InputError as error:
        if error.path is not None or error.field is not None:
            raise  # It already says where.
        raise context.error(
            error.message, expected=error.expected, nearest=error.nearest, hint=error.hint
        ) from error.__cause__
    if not isinstance(made, Metric):
        context.fail(f"metric {name!r} makes {made!r}", expected="a Metric")
    return made


def _with_fields(options: Mapping[str, Any], context: _Context) -> dict[str, Any]:
    """The options, with `field: a` written as `fields: (a,)`."""
    if "field" in options and "fields" in options:
        context.fail("both 'field' and 'fields' are given", expected="one of them")
    values = dict(options)
    if "field" in values:
        if not isinstance(values["field"], str):
            context.fail(f"the field {values['field']!r} is not a name", expected="one name; `fields` takes several")
        values["fields"] = (values.pop("field"),)
    elif "fields" in values:
        given = values["fields"]
        if not isinstance(given, list | tuple) or not given or not all(isinstance(field, str) for field in given):
            context.fail(f"the fields {given!r} are not a list of names", expected="such as [answer, reason]")
        if len(set(given)) < len(given):
            context.fail(f"the fields {list(given)!r} name one twice", expected="each field once")
        values["fields"] = tuple(given)
    return values


def _spoken(parameters: Mapping[str, Any]) -> list[str]:
    """The options a user may write, `field` beside `fields`."""
    return sorted({*parameters, "field"} if "fields" in parameters else parameters)


def _typed(name: str, key: str, value: Any, annotation: Any, context: _Context) -> Any:
    if annotation is inspect.Parameter.empty:
        return value
    try:
        return TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise context.error(f"option {key!r} of metric {name!r} is {value!r}", expected=expected) from None
