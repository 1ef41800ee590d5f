"""What each predictor of a program would be asked, without asking any: its inputs for one input of the program.

What a node would write stands as the example's label, where the data has one, or as `{field}`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import dspy

from ...programs.graph import Graph
from ...programs.predictor import Predictor
from ...programs.schema import Spec

logger = logging.getLogger("cuecard")

SPLITS = ("dev", "test", "train")


def first_example(spec: Spec, program: Graph) -> tuple[dict[str, Any], str]:
    """The columns of the first example of the spec's data, and where it stands; nothing where the files are missing.

    Raises `InputError` for a file that is there but wrong.
    """
    from ..from_spec import read_examples

    for split in SPLITS:
        name = getattr(spec.data, split) if spec.data is not None else None
        if name is not None and (spec.folder / name).is_file():
            example = read_examples(spec.folder / name, program)[0]
            return {**example.labels, **example.inputs}, f"the first example of {name}"
    return {}, ""


def fill(signature: type[dspy.Signature], values: Mapping[str, Any]) -> dict[str, Any]:
    """A predictor's inputs: `values` where they have them, else `{field}`."""
    return {name: values.get(name, placeholder(name)) for name in signature.input_fields}


def placeholder(name: str) -> str:
    """What stands for a value that is not known: `{name}`."""
    return "{" + name + "}"


def fill_graph(program: Graph, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Predictor -> its inputs, where the program's inputs and the fields between its nodes are `values`, by column.

    The program itself runs, with predictors that answer with labels and placeholders; so what a template or a module
    makes of its inputs is what it always makes of them.
    """
    copy = program.deepcopy()
    asked: dict[str, dict[str, Any]] = {}
    predictors: dict[str, Predictor] = dict(copy.named_predictors())
    for name, part in predictors.items():
        part.__dict__["forward"] = _stand_in(name, part, program.columns.get(name, {}), values, asked)
    try:
        copy(**{name: values.get(name, placeholder(name)) for name in program.input_types})
    except Exception:  # a module that makes decisions may stumble over a placeholder; what it had asked stands
        logger.debug("the program stopped at a placeholder", exc_info=True)
    return {name: asked.get(name) or fill(part.signature, {}) for name, part in predictors.items()}


def _stand_in(
    name: str, part: Predictor, columns: Mapping[str, str], values: Mapping[str, Any], asked: dict[str, dict[str, Any]]
) -> Callable[..., dspy.Prediction]:
    def forward(**inputs: Any) -> dspy.Prediction:
        fields = {key: value for key, value in inputs.items() if key in part.signature.input_fields}
        asked.setdefault(name, fields)
        outputs = part.signature.output_fields
        return dspy.Prediction(**{key: _label(values, columns.get(key, key), key) for key in outputs})

    return forward


def _label(values: Mapping[str, Any], column: str, field: str) -> Any:
    value = values.get(column, placeholder(field))
    return value[0] if isinstance(value, list) and value and isinstance(value[0], str) else value
