"""Metrics: how good a prediction is, and how sure that number is."""

from .base import Declaration, FieldMetric, Measurement, Metric, Record, TextMetric
from .function import FunctionMetric
from .registry import metric, names
from .statistics import (
    PairedResult,
    Score,
    bootstrap,
    interval,
    losing,
    paired_test,
    smallest_detectable_difference,
    wilson,
)
from .weighted import Weighted

__all__ = [
    "Declaration",
    "FieldMetric",
    "FunctionMetric",
    "Measurement",
    "Metric",
    "PairedResult",
    "Record",
    "Score",
    "TextMetric",
    "Weighted",
    "bootstrap",
    "interval",
    "losing",
    "metric",
    "names",
    "paired_test",
    "smallest_detectable_difference",
    "wilson",
]
