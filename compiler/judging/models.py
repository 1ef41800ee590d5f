"""What judges run on: the models that they name, checked when a metric is made, and each opened once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy
from pydantic import ValidationError

from ...errors import InputError, nearest
from ...models.address import is_address, shown
from ...models.lm import language_model
from ...models.target import Target
from ...models.target import target as open_target
from ...programs.schema import ModelSpec

ModelLike = str | Mapping[str, Any]
Open = Callable[[ModelLike], Target]


class NoModel(InputError):
    """A judge was asked where no model runs."""


def check_model(model: ModelLike | None) -> None:
    """Raise `InputError`, whose `field` is the key, for what a spec's own `model` could not be either."""
    if not isinstance(model, Mapping):
        return
    try:
        ModelSpec.model_validate(model)
    except ValidationError as error:
        first = error.errors()[0]
        found, told = str(first["loc"][-1]) if first["loc"] else "", first["msg"].removeprefix("Input should be ")
        field = ".".join(map(str, ("model", *first["loc"])))
        if first["type"] == "extra_forbidden":
            near = nearest(found, ModelSpec.model_fields)
            raise InputError(f"a model has no key {found!r}", field="model", nearest=near) from None
        raise InputError(f"found {first['input']!r}", field=field, expected=told) from None


def _open(model: ModelLike) -> Target:
    if not isinstance(model, str):
        raise InputError("a judge's model with options needs a spec", expected="the model's name")
    if is_address(model):  # whoever wrote it decides what it is sent
        hint = "Say so in Python: Models(cuecard.target), or in the spec's `metric`."
        raise InputError(f"a judge's server {shown(model)} needs a spec", expected="a model in process", hint=hint)
    return open_target(model)


@dataclass
class Models:
    """The models that judges run on, each opened once."""

    open: Open = _open
    opened: dict[str, dspy.LM] = field(default_factory=dict)

    def lm(self, model: ModelLike) -> dspy.LM:
        """The LM of a model."""
        key = repr(model)
        if key not in self.opened:
            self.opened[key] = language_model(self.open(model).engine)
        return self.opened[key]
