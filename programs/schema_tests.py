"""The keys of metrics and tests: those of a spec, and a file of tests beside it (`NAME.tests.yaml`).

Which assertions and metrics there are, and what each of them reads, is known where they are run; here stands what
every one of them may have. The names are those that promptfoo's users know.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from .ranges import NotNegative, Number, Positive, PositiveNumber, Share
from .state import Strict

JUDGE, PREFERENCE = "judge", "preference"
PERPLEXITY = "perplexity"
SHORT: Mapping[str, str] = MappingProxyType({JUDGE: "rubric", PREFERENCE: "rubric", PERPLEXITY: "model"})
"""Metrics that may stand as a key with their options, and the option that a plain value is."""


class MetricSpec(Strict):
    """One metric by name. Keys beside `metric` and `weight` are the metric's own options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    metric: str
    weight: PositiveNumber = 1.0

    @property
    def options(self) -> Mapping[str, Any]:
        """The metric's own options."""
        return dict(self.model_extra or {})


class JudgeMetricSpec(Strict):
    """A judge as a metric: its rubric, or all of its options. The same as `{metric: judge, ...}`."""

    judge: str | dict[str, Any]
    weight: PositiveNumber = 1.0


class PreferenceMetricSpec(Strict):
    """A judge of pairs as a metric: its rubric, or all of its options. The same as `{metric: preference, ...}`."""

    preference: str | dict[str, Any]
    weight: PositiveNumber = 1.0


class PerplexityMetricSpec(Strict):
    """Perplexity as a metric: the model that reads the answers, or all of its options."""

    perplexity: str | dict[str, Any]
    weight: PositiveNumber = 1.0


def unfolded(item: Any) -> Any:
    """`{judge: {rubric: ...}}` and `{judge: rubric}` as `{metric: judge, rubric: ...}`; anything else as it is."""
    if not isinstance(item, Mapping) or "metric" in item:
        return item
    name = next((name for name in SHORT if name in item), None)
    if name is None:
        return item
    given = item[name]
    options = dict(given) if isinstance(given, Mapping) else {SHORT[name]: given}
    return {"metric": name, **{key: value for key, value in item.items() if key != name}, **options}


def _metric_list(value: Any) -> Any:
    items = value if isinstance(value, list | tuple) else [value]
    return [{"metric": item} if isinstance(item, str) else unfolded(item) for item in items]


def _short_metrics(metrics: tuple[MetricSpec, ...]) -> Any:
    items = [metric.model_dump(mode="json", exclude_unset=True) for metric in metrics]
    short = [item["metric"] if set(item) == {"metric"} else item for item in items]
    return short[0] if len(short) == 1 else short


OneMetric = MetricSpec | JudgeMetricSpec | PreferenceMetricSpec | PerplexityMetricSpec

Metrics = Annotated[
    tuple[MetricSpec, ...],
    BeforeValidator(
        _metric_list,
        json_schema_input_type=str | OneMetric | list[str | OneMetric],
    ),
    PlainSerializer(_short_metrics),
]


class AssertSpec(Strict):
    """One condition on an output, or (with `assert`) a set of them. Which `type` reads what, the test runner knows."""

    type: str
    field: str | None = Field(None, description="The output that it looks at; needed where there are several.")
    value: Any = None
    threshold: Number | None = None
    weight: NotNegative = Field(1.0, description="Its share in the test's score; 0: it is told, and never fails.")
    options: dict[str, Any] = Field(default_factory=dict)
    assertions: tuple[AssertSpec, ...] | None = Field(None, alias="assert")


class TestSpec(Strict):
    """A regression test: assertions on the outputs for given inputs, or a gate for a metric over a file of examples.

    The first kind has `inputs` and `assert`, or `cases`, a file of inputs with or without `assert`; the second `data`
    and at least one of `at_least` and `baseline`.
    """

    __test__ = False  # not a test class of pytest

    name: str
    inputs: dict[str, Any] | None = None
    cases: str | None = Field(
        None, description="A file of inputs, one case a row; `__expected` columns are assertions."
    )
    conditions: tuple[AssertSpec, ...] | None = Field(None, alias="assert")
    threshold: Share | None = Field(None, description="The least weighted mean of the scores. Default: all must pass.")
    data: str | None = None
    metric: Metrics | None = None
    at_least: Number | None = None
    baseline: str | None = None
    tolerance: NotNegative | None = Field(None, description="How much worse than the baseline is still accepted.")
    repeat: Positive = 1
    tags: tuple[str, ...] = ()


class TestsFile(Strict):
    """A file of tests apart from its program."""

    __test__ = False  # not a test class of pytest

    program: str = Field(description="The spec or compiled program, relative to this file.")
    description: str | None = None
    tests: tuple[TestSpec, ...] = ()
