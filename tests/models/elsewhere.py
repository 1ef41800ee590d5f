"""A device that is not the CPU, for machines that have none.

Tensors there are computed by the CPU but say that they are on another device, and refuse what a GPU would refuse: to be
mixed with a CPU's tensors, or read by numpy. So what an engine does on a device is run, with the code paths that are
not the CPU's: a tensor that was made in the wrong place, or left there, fails. What only the device's own kernels could
show (their speed, their rounding, what they lack) does not show.

It goes by the name `meta`, a device that torch knows in every build.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from cuecard.models.compute import compute

NAME = "meta"
T = TypeVar("T")
aten = torch.ops.aten

# A GPU takes indices from the CPU in these, and copies between devices.
MIXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten.copy.default}


class _Tensor(Tensor):
    """A tensor that says it is elsewhere. `inner` is where it really is."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> _Tensor:
        made: _Tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=NAME,
        )  # fmt: skip
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert a device's tensor to numpy; copy it to the CPU first")
        return self.inner.numpy()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what is made on the device from nothing."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Makes tensors of numbers on the CPU and copies them: what is made at once on `meta` has lost its numbers."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            return function(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    """One operation: on the CPU, and its tensors said to be where they would be."""
    given: dict[int, Tensor] = {}
    asked: list[torch.device] = []

    def here(value: Any) -> Any:
        if isinstance(value, torch.device):
            asked.append(value)
            return torch.device("cpu")
        if isinstance(value, Tensor):
            inner = value.inner if isinstance(value, _Tensor) else value
            assert inner.device.type == "cpu", f"{function} has a tensor whose numbers are lost"
            given[id(inner)] = value
            return inner
        return value

    args, kwargs = tree_map(here, (args, kwargs))
    there = [value for value in given.values() if isinstance(value, _Tensor)]
    strangers = [value for value in given.values() if value.dim() and not isinstance(value, _Tensor)]
    if there and strangers and function not in COPIES:
        indexed = function in MIXED and isinstance(given[id(args[0])], _Tensor)
        if not indexed or any(value.is_floating_point() for value in strangers):
            raise RuntimeError(f"{function}: expected all tensors to be on the same device, found {NAME} and cpu")
    away = asked[0].type == NAME if asked else bool(there)

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        same = given.get(id(value))  # of an operation in place, or of a copy to where it is
        if same is not None and (not asked or isinstance(same, _Tensor) == away):
            return same
        made = value if same is None else value.clone()
        return _Tensor(made) if away else made

    return tree_map(back, _computed(function, args, kwargs))


def _computed(function: Any, args: Any, kwargs: Any) -> Any:
    if function in (aten.histc.default,) and not args[0].is_floating_point():  # on a CPU only of floats
        return function(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return function(*args, **kwargs)


def elsewhere(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What `function` gives where the device is there; and what it raises."""

    def run() -> T:
        with torch.inference_mode(), _Mode(), _Literals():
            return function(*args, **kwargs)

    return compute(run)


def moved(model: Any) -> Any:
    """The model, with its weights on the device. To be called `elsewhere`."""
    memo: dict[int, torch.nn.Parameter] = {}
    for part in model.modules():
        for name, weight in part._parameters.items():
            if weight is not None and id(weight) not in memo:
                memo[id(weight)] = torch.nn.Parameter(_Tensor(weight.data.clone()), requires_grad=False)
            if weight is not None:
                part._parameters[name] = memo[id(weight)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _Tensor(buffer.clone())
    return model


class Elsewhere:
    """An engine, made and called where the device is."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.engine = elsewhere(make)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Any]) -> Any:
        return elsewhere(self.engine.generate, requests)

    def score(self, requests: Sequence[Any]) -> Any:
        return elsewhere(self.engine.score, requests)

    def spans(self, requests: Sequence[Any]) -> Any:
        return elsewhere(self.engine.spans, requests)

    def features(self, requests: Sequence[Any]) -> Any:
        return elsewhere(self.engine.features, requests)
