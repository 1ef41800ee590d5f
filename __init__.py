"""Cuecard: a compiler for declarative language-model programs, whose target is one local model held in process.

The names below are the API. They are imported when they are first used, so that `import cuecard` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler.api import compile, load
    from .compiler.compiled import Compiled
    from .compiler.data import Example, Examples, load_examples
    from .compiler.explain import Explanation, explain
    from .compiler.from_spec import compile_spec
    from .compiler.regression import assert_not_worse
    from .compiler.scoring import Evaluation, evaluate
    from .compiler.teleprompter import Joint
    from .errors import CuecardError, InputError, ReadError, RunError
    from .metrics import metric
    from .models.engine import Decoding, Engine
    from .models.lm import language_model
    from .models.server import server_target
    from .models.target import Target, target
    from .optimizers.base import Budget
    from .programs.predictor import Predictor
    from .programs.state import Calibration, PredictorState, ReadOut
    from .signatures import signature

_HOMES = {
    "Budget": "optimizers.base",
    "Calibration": "programs.state",
    "Compiled": "compiler.compiled",
    "CuecardError": "errors",
    "Decoding": "models.engine",
    "Engine": "models.engine",
    "Evaluation": "compiler.scoring",
    "Example": "compiler.data",
    "Examples": "compiler.data",
    "Explanation": "compiler.explain",
    "InputError": "errors",
    "Joint": "compiler.teleprompter",
    "Predictor": "programs.predictor",
    "PredictorState": "programs.state",
    "ReadError": "errors",
    "ReadOut": "programs.state",
    "RunError": "errors",
    "Target": "models.target",
    "assert_not_worse": "compiler.regression",
    "compile": "compiler.api",
    "compile_spec": "compiler.from_spec",
    "evaluate": "compiler.scoring",
    "explain": "compiler.explain",
    "language_model": "models.lm",
    "load": "compiler.api",
    "load_examples": "compiler.data",
    "metric": "metrics",
    "server_target": "models.server",
    "signature": "signatures",
    "target": "models.target",
}

__all__ = [
    "Budget",
    "Calibration",
    "Compiled",
    "CuecardError",
    "Decoding",
    "Engine",
    "Evaluation",
    "Example",
    "Examples",
    "Explanation",
    "InputError",
    "Joint",
    "Predictor",
    "PredictorState",
    "ReadError",
    "ReadOut",
    "RunError",
    "Target",
    "assert_not_worse",
    "compile",
    "compile_spec",
    "evaluate",
    "explain",
    "language_model",
    "load",
    "load_examples",
    "metric",
    "server_target",
    "signature",
    "target",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cuecard' has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
