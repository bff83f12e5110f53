"""Base weights in 4 bits, as QLoRA holds them: NF4, its scales quantised too (Dettmers et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from data.errors import BadInput


def quantization(dtype: torch.dtype, *, whole: Sequence[str] | None, device: torch.device) -> BitsAndBytesConfig:
    """The library's setting. `dtype`: what is computed in. `whole`: names of the layers left as they are.

    Raises BadInput where bitsandbytes is missing or does not work.
    """
    check(device)
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=None if whole is None else list(whole),
    )


def stay_differentiable(model: nn.Module) -> None:
    """Let no layer lay its weights out for inference alone.

    On a CPU with AVX512-BF16 the library does so at a layer's first forward in evaluation and never goes back: from
    then on the layer passes no gradient to what is before it, and computes in bfloat16.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def check(device: torch.device) -> None:
    """Multiply with one small 4-bit matrix: only that shows whether the library fits this machine. Raises BadInput."""
    try:
        from bitsandbytes.nn.modules import Linear4bit

        options: dict[str, Any] = {"bias": False, "compute_dtype": torch.float32, "quant_type": "nf4"}
        layer: nn.Module = Linear4bit(64, 64, **options)  # type: ignore[no-untyped-call]
        layer.to(device)
        finite = bool(torch.isfinite(layer(torch.ones(1, 64, device=device))).all())
    except ImportError:
        raise BadInput(
            "--load_in_4bit: bitsandbytes is not installed. Install it with `pip install bitsandbytes`, or leave the "
            "flag out."
        ) from None
    except (RuntimeError, OSError, ValueError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise BadInput(
            f"--load_in_4bit: bitsandbytes does not work on this machine ({reason}). Leave it out."
        ) from None
    if not finite:
        raise BadInput("--load_in_4bit: bitsandbytes computes wrong numbers on this machine. Leave the flag out.")
