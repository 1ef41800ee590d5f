"""What pydantic found wrong with a spec, told by the spec's own key paths and lines.

Pydantic's paths also name the branches of unions and the long forms of short keys; those parts are left out, because
they do not stand in the file. Where every branch of a union failed, one error lists what would have been right.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import nearest
from .problems import KeyProblems, Keys
from .yaml_source import Source

_EXPECTED: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "string_pattern_mismatch": "a name of letters, digits, '_', '-' and '.'",
}
M = TypeVar("M", bound=BaseModel)
_QUOTED = re.compile(r"'([^']*)'")


@dataclass(frozen=True)
class _Fault:
    """One of pydantic's errors, at its place in the file. `branch`: its path went through a union or a short form."""

    keys: Keys
    branch: bool
    details: ErrorDetails
    found: Any

    @property
    def kind(self) -> str:
        return self.details["type"]


def validated(model: type[M], source: Source, problems: KeyProblems) -> M | None:
    """`source` as a `model`; the errors go to `problems`, and their key paths to `problems.dropped`.

    What is wrong is left out, so that it does not hide what is wrong elsewhere: the checks that follow see all that is
    right. None where nothing can be made of the source.
    """
    data = copy.deepcopy(source.data)
    for attempt in range(4):
        try:
            made = model.model_validate(data)
        except ValidationError as error:
            faults = [_locate(details, data) for details in error.errors(include_url=False)]
        else:
            break
        if attempt == 0:
            _tell(model, faults, problems)
        places = [_droppable(fault.keys) for fault in faults]
        if () in places:
            return None
        problems.dropped.update(places)
        for keys in places:
            _drop(data, keys)
    else:
        return None
    return made


def describe(value: Any) -> str:
    """A value as an error names it: short, and as it stands in YAML."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    return repr(value if not isinstance(value, str) or len(value) <= 60 else value[:57] + "...")


def _locate(details: ErrorDetails, data: Any) -> _Fault:
    keys: list[str | int] = []
    here, branch = data, False
    for part in details["loc"]:
        inside = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        if inside:
            keys.append(part)
            here = here[part]
        elif details["type"] != "missing" or part != details["loc"][-1]:
            branch = True
    return _Fault(tuple(keys), branch, details, here)


def _droppable(keys: Keys) -> Keys:
    """The key path to leave out: a list as a whole, since its other items would get new numbers."""
    return next((keys[:i] for i, key in enumerate(keys) if isinstance(key, int)), keys)


def _tell(model: type[BaseModel], faults: list[_Fault], problems: KeyProblems) -> None:
    told: set[Keys] = set()
    for fault in faults:
        deeper = any(f.branch and f.keys[: len(fault.keys)] == fault.keys != f.keys for f in faults)
        if fault.branch and deeper:
            continue  # another branch of the union came further, and says more
        if fault.kind == "missing":
            problems.at(fault.keys, f"the key {fault.details['loc'][-1]!r} is missing")
        elif fault.kind == "extra_forbidden":
            *above, name = fault.keys
            valid, home = _valid_keys(model, tuple(above)), _home(model, tuple(above), str(name))
            near = None if home else nearest(str(name), valid)
            problems.at(
                fault.keys,
                "unknown key",
                nearest=near,
                expected=None if near or home else f"one of {', '.join(valid)}",
                hint=f"Write it under `{home}:`." if home else None,
            )
        elif fault.keys not in told:
            told.add(fault.keys)
            _tell_value(fault, [f for f in faults if f.keys == fault.keys], problems)


def _tell_value(fault: _Fault, same_place: list[_Fault], problems: KeyProblems) -> None:
    if fault.kind == "value_error":
        problems.at(fault.keys, str(fault.details["ctx"]["error"]))
        return
    expected = list(dict.fromkeys(_expected(f) for f in same_place))
    labels = [label for f in same_place for label in _QUOTED.findall(f.details.get("ctx", {}).get("expected", ""))]
    near = nearest(fault.found, labels) if isinstance(fault.found, str) else None
    text_wanted = fault.kind == "string_type" and isinstance(fault.found, bool | int | float)
    hint = "Put it in quotes." if text_wanted else None
    found = f"found {describe(fault.found)}"
    problems.at(fault.keys, found, expected=" or ".join(expected), nearest=near, hint=hint)


def _expected(fault: _Fault) -> str:
    template = _EXPECTED.get(fault.kind)
    return template.format(**fault.details.get("ctx", {})) if template else fault.details["msg"]


def _valid_keys(model: type[BaseModel], keys: Keys) -> list[str]:
    """The keys that a mapping at this place may have."""
    return sorted({name for place in _places(model.model_json_schema(by_alias=True), keys) for name in _inner(place)})


def _home(model: type[BaseModel], keys: Keys, name: str) -> str | None:
    """The mapping right below this place in which `name` is a key, where there is just one."""
    schema = model.model_json_schema(by_alias=True)
    below = {key: child for place in _places(schema, keys) for key, child in _inner(place).items()}
    homes = [key for key, child in below.items() if any(name in _inner(branch) for branch in _branches(child, schema))]
    return homes[0] if len(homes) == 1 else None


def _places(schema: dict[str, Any], keys: Keys) -> list[dict[str, Any]]:
    """What a schema says of the values at a key path, branch by branch."""
    places = _branches(schema, schema)
    for key in keys:
        inner: list[dict[str, Any]] = []
        for place in places:
            child = place.get("items") if isinstance(key, int) else _inner(place).get(str(key))
            child = child or place.get("additionalProperties")
            inner += _branches(child, schema) if isinstance(child, dict) else []
        places = inner
    return places


def _inner(place: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = place.get("properties", {})
    return found


def _branches(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _branches(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    if "anyOf" in node:
        return [branch for option in node["anyOf"] for branch in _branches(option, schema)]
    return [node]


def _drop(data: Any, keys: Iterable[str | int]) -> None:
    *parents, last = keys
    for key in parents:
        if key not in data:
            return
        data = data[key]
    data.pop(last, None)
