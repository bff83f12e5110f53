"""Responses on a CPU, token by token: each step multiplies every matrix of the model with a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.lora_linear import LoraLinear

CPUINFO = Path("/proc/cpuinfo")
FEW = 32
"""Up to so many rows W x' is the faster product on an AMD CPU: 2 times with 2 and 4, 1.3 with 8 and 16, 1.2 with 32;
not with 64. On an Intel CPU x W' is faster or as fast with any number. (torch 2.13 in float32, on an EPYC with AVX2 and
a Xeon with AVX-512.)"""


@contextmanager
def fast_decoding(model: nn.Module) -> Iterator[None]:
    """Inside, without gradients, tokens take up to half less time on a CPU in full precision.

    A layer and the adapter that is at work when this begins are one matrix. It stands beside the base's weights, which
    stay as they are: what is added to them could not be taken off again to the last bit. On a GPU, where that memory
    is dear, and in half precision, where the sum would be rounded, nothing is summed.
    """
    changed: list[nn.Module] = []
    try:
        with torch.no_grad():
            for layer in model.modules():
                if type(layer) is LoraLinear and _is_full_on_cpu(layer.base_layer.weight):
                    both = layer.sum_of_both()
                    if both is not None:
                        changed.append(layer)
                        layer.summed, layer.__class__ = both, _Summed
                elif type(layer) is nn.Linear and _is_full_on_cpu(layer.weight):
                    changed.append(layer)
                    layer.__class__ = _FewRows
        yield
    finally:
        for layer in changed:
            plain: Any = LoraLinear if isinstance(layer, LoraLinear) else nn.Linear
            layer.__class__ = plain
            vars(layer).pop("summed", None)


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None, *, turned: bool | None = None) -> Tensor:
    """`nn.functional.linear`; x (..., in), weight (out, in), bias (out,), returns (..., out).

    `turned`: whether a few rows are multiplied as W x'; by default where that is faster.
    """
    rows = x.reshape(-1, x.shape[-1])
    if not (1 < len(rows) <= FEW and (is_amd() if turned is None else turned)):
        return nn.functional.linear(x, weight, bias)
    y = (weight @ rows.t()).t().contiguous()
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)


class _FewRows(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return few_rows(x, self.weight, self.bias)


class _Summed(LoraLinear):
    summed: Tensor
    """W + scale · BA."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        bias: Any = self.base_layer.bias
        return few_rows(x, self.summed, bias)


@cache
def is_amd(cpuinfo: Path = CPUINFO) -> bool:
    """Whether an AMD CPU multiplies here. False where the system does not say."""
    try:
        return "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _is_full_on_cpu(weight: Any) -> bool:
    return weight.device.type == "cpu" and torch.finfo(weight.dtype).bits >= 32
