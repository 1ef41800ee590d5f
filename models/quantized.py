"""Weights in 8 or 4 bits: a model's matrices are rounded when it is loaded, held packed, and multiplied as they are.

What is rounded: the matrices of the model's stacks of layers (`nn.Linear`, and `Conv1D` as GPT-2 has it). Embeddings
and the output layer are not: mostly they are one tensor, of which rows are looked up, and an error in it moves the
probability of every token. Nor are norms, convolutions, and what the model's authors keep in float32 (T5's `wo`).

`int8`: a scale for each output channel, symmetric around zero (vector-wise absmax quantization: Dettmers et al.,
LLM.int8, 2022, section 2, without its part for outliers, since what is multiplied stays a float here). `int4`: a scale
and a zero for each 32 inputs of a channel, which take another bit a weight, rounded to nearest. No examples are needed
for either, and the same weights give the same bytes.

On a CPU and in bfloat16 few rows are multiplied by torch's own kernels, which read the packed weights: a step of
decoding takes the time that reading the weights takes. Many rows, other dtypes and other devices unpack a matrix when
it is its turn and multiply floats: that saves memory, not time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError, nearest
from .packed import put_in_place

FULL = "full"  # the weights as they are, in the target's dtype
VERSION = "1"  # part of a model's identity: raised when what the weights are rounded to, or their product, changes
GROUP = 32  # inputs with a scale and a zero of their own in 4 bits: the fewest that torch's kernel takes
ALIGNMENT = 64  # bytes: torch's kernels read whole vectors
BLOCKS = (64, 32, 16)  # output channels that torch packs together in 4 bits: AVX-512, AVX2, others


class QuantizedLinear(nn.Module):
    """Stands in place of a linear layer, whose weight [outputs, inputs] it holds in fewer bits.

    weight, bias: on the device where they will be used; the weight's dtype is that of what is multiplied with it.
    """

    kind: str
    packed_rows: int  # rows up to which the packed kernel is the faster one
    scales: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.packs = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and self._has_kernel()
        self._round(weight)

    @staticmethod
    def fits(outputs: int, inputs: int) -> bool:
        """Whether a matrix of that size can be held like this."""
        raise NotImplementedError

    @staticmethod
    def size(outputs: int, inputs: int, itemsize: int) -> int:
        """The bytes that a matrix takes. itemsize: of the dtype, in bytes."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight [outputs, inputs] that is multiplied by, as floats: made anew each time, for models that ask."""
        raise NotImplementedError

    def forward(self, states: Tensor) -> Tensor:
        """`states` [..., inputs] to [..., outputs]."""
        rows = states.reshape(-1, self.in_features)
        found = self._packed(_aligned(rows)) if self.packs and len(rows) <= self.packed_rows else self._unpacked(rows)
        if self.bias is not None:
            found += self.bias
        return found.view(*states.shape[:-1], self.out_features)

    def _has_kernel(self) -> bool:
        """Whether torch has a kernel for the matrix on a CPU."""
        raise NotImplementedError

    def _round(self, weight: Tensor) -> None:
        """Fill the buffers."""
        raise NotImplementedError

    def _packed(self, rows: Tensor) -> Tensor:
        """rows [n, inputs], aligned, by torch's packed kernel."""
        raise NotImplementedError

    def _unpacked(self, rows: Tensor) -> Tensor:
        """rows [n, inputs] by a product of floats."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """8 bits a weight: `levels` int8 [outputs, inputs] times `scales` [outputs]."""

    kind = "int8"
    # All matrices of 12 layers of SmolLM2 135M on one AVX-512 core that others used as well, in ms (full, packed,
    # unpacked): 1 row 4.5, 2.1, 6.2; 8 rows 4.9, 3.8, 8.0; 16 rows 6.1, 7.0, 7.7; 24 rows 7.2, 9.9, 8.6; 64 rows 16,
    # 43, 22; 256 rows 52, 136, 69.
    packed_rows = 16
    levels: Tensor

    @staticmethod
    def fits(outputs: int, inputs: int) -> bool:
        """See `QuantizedLinear.fits`."""
        return True

    @staticmethod
    def size(outputs: int, inputs: int, itemsize: int) -> int:
        """See `QuantizedLinear.size`."""
        return outputs * (inputs + itemsize)

    @property
    def weight(self) -> Tensor:
        """See `QuantizedLinear.weight`."""
        return self.levels.to(self.scales.dtype) * self.scales[:, None]

    def _has_kernel(self) -> bool:
        # The kernel reads inputs by 32 at most, and past the end of what is no multiple of that.
        return self.in_features % 32 == 0 and hasattr(torch.ops.aten, "_weight_int8pack_mm")

    def _round(self, weight: Tensor) -> None:
        exact = _exact(weight)
        # The scale is rounded to the dtype first, so that the levels make up for that.
        scales = _positive(exact.abs().amax(dim=1) / 127, weight.dtype)
        levels = exact.div_(scales.float()[:, None]).round_().clamp_(-127, 127)
        self.register_buffer("levels", levels.to(torch.int8))
        self.register_buffer("scales", scales)

    def _packed(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.levels, self.scales)
        return found

    def _unpacked(self, rows: Tensor) -> Tensor:
        if rows.dtype == torch.float16:  # sums of levels would leave its range
            return functional.linear(rows, self.weight)
        return functional.linear(rows, self.levels.to(rows.dtype)).mul_(self.scales)  # every level is a bfloat16


class Int4Linear(QuantizedLinear):
    """4 bits a weight: levels 0 to 15, two in a byte of `pairs`. A weight is `(level - 8) * scale + zero`.

    scales: scale and zero [inputs / GROUP, outputs, 2]; pairs: uint8 [outputs, inputs / 2], as torch's kernel wants
    them, or each level beside that of the next input where there is no kernel.
    """

    kind = "int4"
    # Measured as above: 1 row 4.5, 1.1, 18; 24 rows 7.2, 8.8, 49; 64 rows 16, 31, 41; 96 rows 16, 48, 42; 256 rows 52,
    # 118, 63.
    packed_rows = 64
    pairs: Tensor
    _block: int  # output channels that are packed together

    @staticmethod
    def fits(outputs: int, inputs: int) -> bool:
        """See `QuantizedLinear.fits`."""
        return inputs % GROUP == 0

    @staticmethod
    def size(outputs: int, inputs: int, itemsize: int) -> int:
        """See `QuantizedLinear.size`."""
        return outputs * inputs // 2 + 2 * itemsize * outputs * inputs // GROUP

    @property
    def weight(self) -> Tensor:
        """See `QuantizedLinear.weight`."""
        return self._turned().t() if self.packs else self._from_pairs(self.pairs)

    def _has_kernel(self) -> bool:
        here = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
        return here and hasattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu") and self.out_features % 64 == 0

    def _round(self, weight: Tensor) -> None:
        exact = _exact(weight).view(self.out_features, -1, GROUP)
        low, high = exact.aminmax(dim=2)
        scale = _positive((high - low) / 15, weight.dtype)
        zero = (low + 8 * scale.float()).to(weight.dtype)
        levels = exact.sub_(zero.float()[..., None]).div_(scale.float()[..., None]).round_().add_(8).clamp_(0, 15)
        levels = levels.view(self.out_features, self.in_features).to(torch.uint8)
        self.register_buffer("scales", torch.stack([scale, zero], dim=2).transpose(0, 1).contiguous())
        plain = levels[:, 0::2] | (levels[:, 1::2] << 4)
        self.register_buffer("pairs", plain)
        if self.packs:
            self.pairs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
            expected = self._from_pairs(plain)
            fitting = (block for block in BLOCKS if torch.equal(self._turned(block).t(), expected))
            self._block = next(fitting, 0)
            if not self._block:  # packed in a way that is not known here
                self.packs, self.pairs = False, plain

    def _packed(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.pairs, GROUP, self.scales)
        return found

    def _unpacked(self, rows: Tensor) -> Tensor:
        return torch.mm(rows, self._turned()) if self.packs else functional.linear(rows, self.weight)

    def _from_pairs(self, pairs: Tensor) -> Tensor:
        """The weight [outputs, inputs] where each level stands beside that of the next input."""
        levels = torch.stack([pairs & 15, pairs >> 4], dim=2).view(self.out_features, -1, GROUP)
        scale, zero = self.scales.transpose(0, 1).float().unbind(2)
        exact = (levels.float() - 8) * scale[..., None] + zero[..., None]
        return exact.view(self.out_features, -1).to(self.scales.dtype)

    def _turned(self, block: int | None = None) -> Tensor:
        """The weight [inputs, outputs], unpacked by the kernel: it multiplies the unit matrix.

        torch packs a block of output channels by their inputs, so that the same bytes are also those of a matrix with
        inputs / GROUP times as many channels of GROUP inputs each; to unpack that takes the time of GROUP rows.
        """
        size = block or self._block
        groups, blocks = self.in_features // GROUP, self.out_features // size
        scales = self.scales.view(groups, blocks, size, 2).transpose(0, 1).reshape(1, -1, 2)
        unit = torch.eye(GROUP, dtype=scales.dtype)
        pairs = self.pairs.view(-1, GROUP // 2)
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(unit, pairs, GROUP, scales)
        return found.view(GROUP, blocks, groups, size).permute(2, 0, 1, 3).reshape(self.in_features, -1)


KINDS: dict[str, type[QuantizedLinear]] = {kind.kind: kind for kind in (Int8Linear, Int4Linear)}
WEIGHTS = (FULL, *KINDS)


def check_weights(weights: str) -> None:
    """Raise `InputError` for what is no kind of weights."""
    if weights not in WEIGHTS:
        raise InputError(
            f"there are no weights of the kind {weights!r}",
            field="weights",
            expected="one of " + ", ".join(WEIGHTS),
            nearest=nearest(weights, WEIGHTS),
        )


@torch.no_grad()
def quantize(model: Any, weights: str, *, name: str, device: str = "cpu") -> Any:
    """Round the weights of a transformers model, in place, and return it on `device`.

    weights: of `KINDS`; the model may still be on another device, which then holds it alone while no more than a matrix
    at a time is on `device` in full. Raises `InputError` for a model whose layers are not made of plain matrices.
    """
    kind = KINDS[weights]
    found = _matrices(model, kind, name)

    def rounded(matrix: Any) -> QuantizedLinear:
        weight = matrix.weight.detach() if isinstance(matrix, nn.Linear) else matrix.weight.detach().t()
        return kind(weight.to(device), matrix.bias)

    put_in_place(found, rounded)
    return model.to(device)


def saved_bytes(model: Any, weights: str, *, name: str, itemsize: int) -> int:
    """The bytes that `quantize` takes away from a model, which may be on the device `meta`. itemsize: of its dtype."""
    kind = KINDS[weights]
    shapes = [_shape(matrix) for matrix in _matrices(model, kind, name)]
    return sum(outputs * inputs * itemsize - kind.size(outputs, inputs, itemsize) for outputs, inputs in shapes)


def weights_of(model: Any) -> str:
    """The kind of a model's weights: `full`, or of `KINDS`."""
    return next((part.kind for part in model.modules() if isinstance(part, QuantizedLinear)), FULL)


def parameters_of(model: Any) -> int:
    """How many weights a model has, in however many bits; shared ones count once."""
    rounded = (part for part in model.modules() if isinstance(part, QuantizedLinear))
    plain = sum(int(weight.numel()) for weight in model.parameters())
    return plain + sum(part.in_features * part.out_features for part in rounded)


def weight_bytes(model: Any) -> int:
    """The bytes that a model's weights take; shared ones count once."""
    rounded = (part for part in model.modules() if isinstance(part, QuantizedLinear))
    held = [*model.parameters(), *(buffer for part in rounded for buffer in part.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def identity_part(weights: str) -> str | None:
    """What `identity` is told of the weights: their kind and `VERSION`; nothing of those that are as they are."""
    return None if weights == FULL else f"{weights}-{VERSION}"


def dtype_text(dtype: str, weights: str) -> str:
    """A target's dtype in words: `bfloat16`, or `bfloat16, int8 weights`."""
    return dtype if weights == FULL else f"{dtype}, {weights} weights"


def _matrices(model: Any, kind: type[QuantizedLinear], name: str) -> dict[Any, list[tuple[nn.Module, str]]]:
    """The matrices that are replaced, each with the modules that have it and the attribute that it is there.

    Raises `InputError` where that is less than half of the layers' weights: little would be saved.
    """
    from transformers.pytorch_utils import Conv1D

    parts = dict(model.named_modules())
    stacks = [f"{place}." for place, part in parts.items() if isinstance(part, nn.ModuleList)]
    layers = {place: part for place, part in parts.items() if place.startswith(tuple(stacks))}
    kept = _kept_in_float32(model)
    found: dict[Any, list[tuple[nn.Module, str]]] = {}
    for place, owner in layers.items():
        for attribute, part in owner.named_children():
            plain = type(part) in (nn.Linear, Conv1D) and not isinstance(owner, nn.ModuleList)
            if plain and kind.fits(*_shape(part)) and not any(f".{word}." in f".{place}.{attribute}." for word in kept):
                found.setdefault(part, []).append((owner, attribute))
    large = {id(weight): weight for part in layers.values() for weight in part.parameters() if weight.dim() > 1}
    whole, held = sum(weight.numel() for weight in large.values()), sum(part.weight.numel() for part in found)
    if 2 * held <= whole or not held:
        share = f"{held / whole:.0%} of" if held else "none of"
        raise InputError(
            f"model {name!r} ({model.config.model_type}) can't have {kind.kind} weights: "
            f"{share} its layers' weights are plain matrices of sizes that can be rounded",
            field="weights",
            expected="more than half, as in Llama, Qwen, Gemma, GPT-2 or T5",
            hint="Leave the weights as they are (full), or use another model: experts in one tensor are not rounded.",
        )
    return found


def _kept_in_float32(model: Any) -> set[str]:
    """Names of modules whose precision matters, by the model's authors."""
    lists = (getattr(model, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    return {word for words in lists for word in words or ()}


def _shape(matrix: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    first, second = matrix.weight.shape
    return (first, second) if isinstance(matrix, nn.Linear) else (second, first)


def _exact(weight: Tensor) -> Tensor:
    """A copy of a weight in float32, row by row in memory."""
    return weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _positive(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """`scales` in the dtype, without zeros, which weights that are all alike would give."""
    limits = torch.finfo(dtype)
    least = limits.tiny * limits.eps if dtype == torch.float16 else limits.tiny  # float16 scales are often subnormal
    return scales.to(dtype).clamp_min_(least)


def _aligned(rows: Tensor) -> Tensor:
    """`rows` side by side in memory, from where a kernel may load whole vectors."""
    rows = rows.contiguous()
    return rows if rows.data_ptr() % ALIGNMENT == 0 else rows.clone()
