"""A linear layer under one LoRA adapter (Hu et al. 2021), computed with as little besides the products as can be.

The library adds the adapter's output to the layer's in passes of their own over all tokens, forward and backward. Here
the second product is added onto the first. A step of SmolLM2-135M on a CPU takes a tenth less. The numbers are the
library's but for rounding, and so is the module: what it cannot do is left to the library.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.products import FrozenLinear, product


class LoraLinear(Linear):
    """`peft`'s layer. With one plain adapter at work, in the numbers of the base, it is computed by `_AddedOn`."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        adapter = None if args or options else self._plain_adapter(x)
        if adapter is None:
            return super().forward(x, *args, **options)
        weights = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        base, rows = self.base_layer, x.reshape(-1, x.shape[-1])
        y: Tensor = _AddedOn.apply(  # type: ignore[no-untyped-call]
            rows, base.weight, base.bias, *weights, self.scaling[adapter]
        )
        return y.view(*x.shape[:-1], -1)  # made out here: models may write into it

    def sum_of_both(self) -> Tensor | None:
        """W + scale · BA (out, in), a new tensor; None where it is not one plain adapter that is at work."""
        weight: Any = self.base_layer.weight
        name = self._plain_adapter(weight)
        if name is None:
            return None
        found: Tensor = weight.addmm(self.lora_B[name].weight, self.lora_A[name].weight, alpha=self.scaling[name])
        return found

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The one adapter at work, where it is a product of two matrices in the numbers of input and frozen base."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or not x.numel():
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        if not isinstance(self.lora_dropout[name], nn.Identity) or torch.is_autocast_enabled(x.device.type):
            return None
        if any(p.requires_grad for p in self.base_layer.parameters()):
            return None
        kinds = {x.dtype, self.base_layer.weight.dtype, self.lora_A[name].weight.dtype, self.lora_B[name].weight.dtype}
        return name if len(kinds) == 1 else None


def add_on(model: nn.Module) -> None:
    """Let adapters of plain linear layers be computed so; those of other layers (4 bits, Conv1D) stay as they are."""
    for module in model.modules():
        if type(module) is not Linear or module.fan_in_fan_out:
            continue
        if type(module.base_layer) in (nn.Linear, FrozenLinear):
            module.__class__ = LoraLinear  # the same module, so that all that was registered with it stays


class _AddedOn(torch.autograd.Function):
    """y = x W' + bias + scale · (x A') B', with gradients for x, A and B. Of the way there, x A' alone is kept.

    Shapes: x (N, in), W (out, in), bias (out,), A (r, in), B (out, r); returns (N, out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        down = product(x, a)
        ctx.save_for_backward(x, down, weight, a, b)
        ctx.scale = scale
        return product(x, weight, bias).addmm_(down, b.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, down, weight, a, b = ctx.saved_tensors
        (of_y,) = gradients
        of_down = product(of_y, b.t()).mul_(ctx.scale)
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = product(of_y, weight.t()).addmm_(of_down, a)
        if ctx.needs_input_grad[3]:
            of_a = product(of_down.t(), x.t())
        if ctx.needs_input_grad[4]:
            of_b = product(down.t(), of_y.t()).t().mul_(ctx.scale)
        return of_x, None, None, of_a, of_b, None
