"""Two small layers under adapters: the library's, and the same with ours."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from train.lora_linear import LoraLinear, add_on
from train.models import known_warnings


class Two(nn.Module):
    """Two layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def made(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[PeftModel, PeftModel]:
    """The library's, and the same with ours."""
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 3, "lora_alpha": 12, "target_modules": ["first", "second"], **options})
    with known_warnings():
        plain = get_peft_model(Two().to(dtype), config)
        if config.bias == "none":  # peft allows one adapter with biases alone
            plain.add_adapter("other", config)
    for name, p in plain.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, dtype=dtype)
    ours = copy.deepcopy(plain)
    add_on(ours)
    assert sum(type(m) is LoraLinear for m in ours.modules()) == len(config.target_modules)
    return plain, ours


def disabled(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


def merged(model: PeftModel) -> None:
    model.merge_adapter()


def two(model: PeftModel) -> None:
    model.base_model.set_adapter(["default", "other"])
