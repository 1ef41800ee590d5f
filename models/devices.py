"""Which device and dtype a model runs on: what the user asks for if it is there, else the best that is."""

from __future__ import annotations

from ..errors import InputError, nearest

DTYPES = ("bfloat16", "float16", "float32")


def choose_device(device: str = "auto") -> str:
    """`device` if this machine has it; for `auto`, CUDA, then MPS, then the CPU. `InputError` says what is there."""
    here = devices()
    if device == "auto":
        return here[0]
    wanted = "cuda:0" if device == "cuda" else device
    if wanted not in here:
        raise InputError(
            f"there is no device {device!r} on this machine",
            field="device",
            expected="one of auto, " + ", ".join(here),
            nearest=nearest(device, ("auto", *here)),
        )
    return wanted


def devices() -> tuple[str, ...]:
    """The devices of this machine, best first: `cuda:0`, ..., `mps`, `cpu`."""
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return (*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu")


def choose_dtype(dtype: str, device: str) -> str:
    """`dtype`; for `auto`, bfloat16 where `device` computes in it, else float32 on a CPU and float16 elsewhere.

    Raises `InputError` for an unknown name.
    """
    if dtype == "auto":
        return "bfloat16" if _has_bfloat16(device) else "float32" if device == "cpu" else "float16"
    if dtype not in DTYPES:
        raise InputError(
            f"there is no dtype {dtype!r}",
            field="dtype",
            expected="one of auto, " + ", ".join(DTYPES),
            nearest=nearest(dtype, ("auto", *DTYPES)),
        )
    return dtype


def _has_bfloat16(device: str) -> bool:
    """Whether the device multiplies in bfloat16 itself rather than by going through float32."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return bool(torch.cpu._is_avx512_bf16_supported())
    able = torch.cpu.get_capabilities()
    return any(bool(able.get(feature)) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
