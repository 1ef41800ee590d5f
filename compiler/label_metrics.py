"""Metrics over labels (macro F1, MCC) learn from the program which labels there are: from the types of its outputs."""

from __future__ import annotations

import dspy

from ..metrics.base import Metric
from ..programs.graph import Graph
from ..signatures import choices, field_types
from .judging import check_judges


def knowing_labels(metric: Metric, program: dspy.Module) -> Metric:
    """`metric`, told of every output of `program` that has a finite set of values."""
    if isinstance(program, Graph):
        types = {**program.label_types, **program.output_types}
        check_judges(metric, program.input_types, program.output_names)
    else:
        types = {}
        for _, predictor in program.named_predictors():
            known = field_types(predictor.signature)
            types |= {name: known[name] for name in predictor.signature.output_fields}
    found = {name: choices(type_) for name, type_ in types.items()}
    return metric.with_labels({name: labels for name, labels in found.items() if labels is not None})
