"""The linear layer under one adapter: the library's numbers and gradients, and the library wherever it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.train.two_layers import disabled, made, merged, two
from train import lora_linear, products
from train.lora_linear import LoraLinear


def numbers(model: PeftModel, x: Tensor) -> dict[str, Tensor]:
    """Output, and the gradients of a loss of it for the input and all weights."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.sin().sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "x": x.grad, "y": y.detach()}  # type: ignore[dict-item]


def assert_same(plain: PeftModel, ours: PeftModel, *, added_on: bool, tolerance: float = 1e-12) -> None:
    x = torch.randn(2, 7, 6, dtype=next(plain.parameters()).dtype)
    with patch.object(lora_linear._AddedOn, "apply", side_effect=lora_linear._AddedOn.apply) as called:
        found, expected = numbers(ours, x), numbers(plain, x)
    assert called.call_count == (2 if added_on else 0)
    assert found.keys() == expected.keys() and len(expected) >= 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("adapter", ["default", "other"])
def test_output_and_gradients_are_the_librarys(adapter: str) -> None:
    plain, ours = made()
    for model in (plain, ours):
        model.set_adapter(adapter)
    assert_same(plain, ours, added_on=True)


@pytest.mark.parametrize("amd", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 4, 16])
def test_in_float32_too_whichever_library_multiplies(rank: int, amd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "is_amd", lambda: amd)
    assert_same(*made(torch.float32, r=rank), added_on=True, tolerance=1e-4)


def test_gradcheck() -> None:
    weights = [torch.randn(s, dtype=torch.float64) for s in ((4, 6), (5, 6), (5,), (4, 6), (5, 4))]
    x, _, _, a, b = (w.requires_grad_(n not in (1, 2)) for n, w in enumerate(weights))
    fixed = weights[1], weights[2]
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear._AddedOn.apply(x, *fixed, a, b, 0.7), (x, a, b))


def test_a_frozen_adapter_lets_the_gradient_through_and_gets_none() -> None:
    plain, ours = made()
    for model in (plain, ours):
        for p in model.parameters():
            p.requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert set(numbers(ours, x)) == {"x", "y"}
    torch.testing.assert_close(numbers(ours, x)["x"], numbers(plain, x)["x"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", [disabled, merged, two])
def test_what_it_cannot_do_the_library_does(change: Callable[[PeftModel], None]) -> None:
    plain, ours = made()
    for model in (plain, ours):
        change(model)
        for p in model.parameters():
            p.requires_grad_(True)
    assert_same(plain, ours, added_on=False)


@pytest.mark.parametrize(
    "options",
    [
        {"lora_bias": True, "target_modules": ["first"]},
        {"use_dora": True},
        {"lora_dropout": 0.5},
        {"bias": "lora_only", "target_modules": ["first"]},
    ],
)
def test_other_kinds_of_adapter_are_the_librarys(options: dict[str, Any]) -> None:
    plain, ours = made(**options)
    for model in (plain, ours):
        model.eval()
    assert_same(plain, ours, added_on=False)


def test_numbers_of_another_format_than_the_base_are_the_librarys() -> None:
    plain, ours = made(torch.float32)
    x = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), plain(x))
    for model in (plain, ours):
        for layer in (model.base_model.model.first, model.base_model.model.second):
            layer.base_layer.to(torch.bfloat16)
    assert torch.equal(ours(x.bfloat16()), plain(x.bfloat16()))


def test_a_model_may_write_into_the_output() -> None:
    """As OLMo's clips its queries in place."""
    plain, ours = made()
    for model in (plain, ours):
        model.base_model.model.first.register_forward_hook(lambda module, args, output: output.clamp_(-1, 1))
    assert_same(plain, ours, added_on=True)


def test_a_merged_and_unloaded_model_is_plain_again() -> None:
    plain, ours = made()
    x = torch.randn(3, 6, dtype=torch.float64)
    whole = ours.merge_and_unload()
    assert not any(isinstance(m, LoraLinear) for m in whole.modules())
    torch.testing.assert_close(whole(x), plain(x), rtol=1e-12, atol=1e-12)
