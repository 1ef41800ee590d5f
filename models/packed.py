"""Weights in the order in which a CPU multiplies by them, arranged once instead of at every product.

oneDNN multiplies by a matrix in blocks whose order depends on the processor. Given a plain matrix it arranges the
blocks at every call, which for the few rows of a decoding step takes longer than the product: with packed weights one
row takes half the time, 16 rows two thirds, 64 rows three quarters, and many rows a little less. The products are the
same to the last bit. A packed matrix takes the plain one's place in memory, except for one that is an embedding, too,
of which rows are looked up.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 64  # for how many rows the blocks are arranged; other numbers are hardly slower


class PackedLinear(nn.Module):
    """Stands in place of an `nn.Linear` on a CPU in bfloat16. `weight` is the packed matrix, or, where `shared`, the
    plain one that others have as well.
    """

    def __init__(self, linear: nn.Linear, *, shared: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.weight = linear.weight if shared else nn.Parameter(self.packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """`states` [..., inputs] to [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        shared = self.weight.layout == torch.strided
        return PackedLinear(copy.deepcopy(self.plain(), memo), shared=shared)

    def plain(self) -> nn.Linear:
        """The layer as it was."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        weight = self.weight if self.weight.layout == torch.strided else nn.Parameter(self.packed.to_dense())
        linear.weight = weight.requires_grad_(False)
        linear.bias = self.bias
        return linear


def pack(model: Any) -> bool:
    """Pack the matrices of a transformers model, in place, where its device and dtype have use for that: on a CPU in
    bfloat16. Says whether anything was packed. What a model holds in other ways than as `nn.Linear` stays as it is.
    """
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or not _available():
        return False
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    owners = Counter(id(part.weight) for part in model.modules() if type(part) is nn.Linear)

    def packed(part: nn.Linear) -> PackedLinear:
        return PackedLinear(part, shared=id(part.weight) in tables or owners[id(part.weight)] > 1)

    return _replace(model, nn.Linear, packed)


def unpack(model: Any) -> None:
    """Undo `pack`."""
    _replace(model, PackedLinear, PackedLinear.plain)


def _replace(model: Any, kind: type[nn.Module], change: Any) -> bool:
    """Change the parts of a kind, each once, wherever they stand."""
    found: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for owner in model.modules():
        for name, part in owner.named_children():
            if type(part) is kind and part.weight.dtype == torch.bfloat16:
                found.setdefault(part, []).append((owner, name))
    changes = bool(found)
    put_in_place(found, change)
    return changes


def put_in_place(found: dict[Any, list[tuple[nn.Module, str]]], change: Callable[[Any], nn.Module]) -> None:
    """Put what `change` makes of each part where the part is, by its owners' attributes, and let go of it: `found` is
    emptied on the way, so that no more than one part is there twice.
    """
    while found:
        part, places = found.popitem()
        made = change(part)
        for owner, attribute in places:
            setattr(owner, attribute, made)
        del part


def _available() -> bool:
    """Whether this torch has the kernels, and the processor what they need."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
