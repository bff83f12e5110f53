"""Products with weight matrices, by whichever of PyTorch's two libraries is the faster one on this CPU.

PyTorch multiplies matrices in float32 with MKL, which on AMD's CPUs makes nothing of AVX-512. oneDNN, that PyTorch
carries too, does: on two cores of a Zen 5 it was 2.3 times as fast (490 against 215 GFLOPS), with AVX2 alone a tenth
faster, with the same numbers but for rounding. Which one is taken follows from the CPU and the number of rows, never
from a measurement, so that a run that is resumed computes what it did before.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read at the first product
    # Kernels are kept for every number of rows, by default 1024 in each of two caches: 700 MB where lengths differ.
    os.environ.setdefault(_cache, "32")

CPUINFO = Path("/proc/cpuinfo")
FEW = 4
"""Up to so many rows, but not for one, MKL's W x' is the fastest on an AMD CPU, for a vocabulary's head by a third.
(torch 2.13 on that Zen 5. With oneDNN kept to AVX2 there, W x' is a seventh faster with 16 rows, with 8 and 32 not.)"""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, amd: bool | None = None) -> Tensor:
    """x W' + bias, where no gradients are kept. Shapes: x (N, in), weight (out, in), bias (out,); returns (N, out).

    `amd`: whether an AMD CPU multiplies; by default what the system says.
    """
    assert not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)), "oneDNN's passes none on"
    on_amd = is_amd() if amd is None else amd
    if not (on_amd and x.numel() and _is_for_onednn(x) and _is_for_onednn(weight)):
        return nn.functional.linear(x, weight, bias)
    if 1 < len(x) <= FEW:
        y = (weight @ x.t()).t().contiguous()
        return y if bias is None else y.add_(bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class FrozenLinear(nn.Linear):
    """`nn.Linear` through `product`, as long as its weights are not trained."""

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if learns or torch.is_autocast_enabled(x.device.type) or not _is_for_onednn(x):
            return super().forward(x)
        y: Tensor = _Frozen.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], len(self.weight))  # made out here: models may write into it


def use_fast_products(model: nn.Module) -> None:
    """Let the plain linear layers of a model be such."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear  # the same module, so that all that was registered with it stays


@cache
def is_amd(cpuinfo: Path = CPUINFO) -> bool:
    """Whether an AMD CPU multiplies here, and PyTorch has oneDNN. False where the system does not say."""
    try:
        amd = "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return amd and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _is_for_onednn(tensor: Tensor) -> bool:
    """It knows no float64; what is shorter is PyTorch's own choice."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


class _Frozen(torch.autograd.Function):
    """x W' + bias with a gradient for x alone. Shapes as in `product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return product(gradients[0], weight.t()), None, None
