"""Responses on a CPU, token by token: each step multiplies every matrix of the model with a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train.lora_linear import LoraLinear
from train.products import product


@contextmanager
def fast_decoding(model: nn.Module) -> Iterator[None]:
    """Inside, without gradients, tokens take less time on a CPU in full precision.

    A layer and the adapter that is at work when this begins are one matrix. It stands beside the base's weights, which
    stay as they are: what is added to them could not be taken off again to the last bit. On a GPU, where that memory
    is dear, and in half precision, where the sum would be rounded, nothing is summed.
    """
    changed: list[LoraLinear] = []
    try:
        with torch.no_grad():
            for layer in model.modules():
                if type(layer) is LoraLinear and _is_full_on_cpu(layer.base_layer.weight):
                    both = layer.sum_of_both()
                    if both is not None:
                        changed.append(layer)
                        layer.summed, layer.__class__ = both, _Summed
        yield
    finally:
        for layer in changed:
            layer.__class__ = LoraLinear
            vars(layer).pop("summed", None)


class _Summed(LoraLinear):
    summed: Tensor
    """W + scale · BA."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        bias: Any = self.base_layer.bias
        return product(x.reshape(-1, x.shape[-1]), self.summed, bias).view(*x.shape[:-1], len(self.summed))


def _is_full_on_cpu(weight: Any) -> bool:
    return weight.device.type == "cpu" and torch.finfo(weight.dtype).bits >= 32
